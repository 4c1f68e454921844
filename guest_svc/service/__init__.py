"""The guest as a service: runs that are started, watched, stopped and listed over gRPC.

::

    command      from the command's options to the server's end
    life         the process: bind, serve beside health, reflection and channelz, drain
    servicer     the calls of the contract
    asked        what a run may be asked for      limits  how many runs, watchers and bytes there may be
    runs         which runs there are, whose, how many, and what became of each; no gRPC
    held         one run as the service holds it
    hypervisors  where runs find theirs           private  the one that they share if no address is given
    process      one run's process, from outside  child    the same from inside
    frames       what the two say to each other
    listing      the workloads that are installed, listed by another process

Each run has a process of its own. So a workload that keeps the interpreter busy, needs much memory or
never returns is nobody else's trouble, a run is stopped as any command is, by a signal, and the service
itself needs neither numpy nor a plug-in's code.
"""
