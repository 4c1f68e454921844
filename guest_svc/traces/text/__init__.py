"""From the bytes of a recorded text trace to a table of its records, whatever tool and kernel wrote it.

::

    files ─ chunks ─ scan ─ table, tally   (reader: one pass over all)
                      │
                      ├─ cursors, words   what is alike in many lines, whole columns at a time
                      ├─ times, names     where the time stands, and whose event follows it
                      ├─ formats          how each kernel and tool prints each event
                      ├─ lexicon          what few distinct texts say, each read once
                      └─ heads, payloads, reasons, oddities   what one text says, in plain Python

A chunk of some thousand whole lines is read at once: one cursor a line walks along a format, and what
it passes becomes columns. Nothing here knows what an exit means to a guest: that is ``exits``.
"""
