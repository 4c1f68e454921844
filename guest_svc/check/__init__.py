"""``check-workload``: what a workload, or a service that runs workloads, must keep, as a table of MUSTs.

``musts`` says what a MUST is and runs a table of them; ``workload`` has the table for a Python workload and
``service`` that for a guest service. Both work at a ``stand``: a private hypervisor with a small window, and
a ``relay`` before it that watches each stream, holds answers back and cuts.
"""
