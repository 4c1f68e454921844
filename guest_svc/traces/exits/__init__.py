"""From a table of records to a guest's events: one event for each exit, and what it cannot say, said.

::

    vendors, roster, pairs, accesses, events ─ stretches ─ trace (the Workload) ─ facts

``vendors`` says whose numbers the exits have, ``roster`` which vCPUs and physical CPUs there are, ``pairs``
which entry, access of an MSR and injection belong to an exit, ``accesses`` what an exit of MOV DR hides, and
``events`` lays it out in columns. ``stretches`` does so with one part of a trace after another, and ``facts``
tells what was found in all.
"""
