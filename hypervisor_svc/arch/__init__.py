"""What debug registers mean to a guest, without any hypervisor.

``debug_registers`` holds the rules as small functions of numbers; ``reference`` runs whole streams
of events by them. Nothing here knows a policy, a price or a kernel version.
"""
