"""The guest: produces a guest's events, streams them to a hypervisor and prints what came of them."""
