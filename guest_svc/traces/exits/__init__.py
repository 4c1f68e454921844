"""From a table of records to a guest's events: one event for each exit, and what it cannot say, said.

::

    roster ─ pairs ─ accesses ─ events ─ trace (the Workload)

``roster`` says which vCPUs and physical CPUs there are, ``pairs`` which entry, access of an MSR and
injection belong to an exit, ``accesses`` what an exit of MOV DR hides, ``events`` lays it out in columns.
"""
