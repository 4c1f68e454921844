"""What may come next in a stream: where vCPUs run, and what must wait for a nested guest."""

from typing import Final, NamedTuple

from exitlab.events import EventKind

from .guest import Guest, Shadow
from .mix import OUTSIDE, SCHEDULING, Mix
from .second_model import Event, SecondModel

# Happens wherever the vCPU is.
HOST: Final = OUTSIDE | {
    EventKind.GET_DEBUGREGS,
    EventKind.HOST_BREAKPOINTS,
    EventKind.HOST_DEBUGGER,
    EventKind.STATE,
}
# What the host leaves alone while a nested guest runs.
NOT_WHILE_NESTED: Final = HOST - {EventKind.STAGE, EventKind.HOST_BREAKPOINTS, EventKind.STATE}


class Row(NamedTuple):
    """One event with all nine columns."""

    kind: int
    arg: int
    modes: int
    marks: int
    vcpu: int
    gap_cycles: int
    selector: int
    value: int
    rip: int

    @property
    def event(self) -> Event:
        """What the second model sees of it."""
        return Event(self.kind, self.arg, self.modes, self.marks, self.vcpu, self.selector, self.value)


class Gate:
    """Lets rows into a stream, but not those that scheduling or a nested guest forbid.

    Staged operands wait for the event that uses them up, and are left out with it.
    """

    def __init__(self, mix: Mix) -> None:
        """Put vCPUs where they start; those that find their CPU taken wait, unless they may kick."""
        self._may_kick = mix.kicks
        self.cpu_of: dict[int, int | None] = {}
        for vcpu, cpu in enumerate(mix.initial_physical_cpus):
            self.cpu_of[vcpu] = cpu if self._may_enter(vcpu, cpu) else None
        vendors = mix.vendors if mix.nested else ()
        self._models = [SecondModel(mix.vcpus, vendor, mix.rtm, mix.bus_lock) for vendor in vendors]
        self._staged: list[Row] = []

    def admitted(self, row: Row) -> list[Row]:
        """Return the rows that go into the stream with ``row``, and let them happen."""
        if row.kind == EventKind.STAGE:
            self._staged.append(row)
            return []
        rows, self._staged = [*self._staged, row], []
        if not self._may_be_here(row) or not self._may_nest(row):
            return []
        if row.kind in SCHEDULING:
            self.cpu_of[row.vcpu] = row.selector if row.kind == EventKind.SCHED_IN else None
        for model in self._models:
            model.tell(one.event for one in rows)
        return rows

    def nested(self, vcpu: int) -> list[bool]:
        """Return for each vendor whether ``vcpu`` runs a nested guest."""
        return [guest.processor.nested is not None for guest in self._guests(vcpu)]

    def _guests(self, vcpu: int) -> list[Guest]:
        return [model.guests[vcpu] for model in self._models]

    def _may_enter(self, vcpu: int, cpu: int) -> bool:
        return self._may_kick or cpu not in {at for other, at in self.cpu_of.items() if other != vcpu}

    def _may_be_here(self, row: Row) -> bool:
        """Return whether scheduling allows ``row``."""
        if row.kind == EventKind.SCHED_IN:
            return self._may_enter(row.vcpu, row.selector)
        return row.kind in HOST or self.cpu_of[row.vcpu] is not None

    def _may_nest(self, row: Row) -> bool:
        """Return whether ``row`` has a meaning on every vendor, nested guest or not."""
        if row.kind in (EventKind.VMRUN, EventKind.VMEXIT_TO_L1):
            return {guest.shadow for guest in self._guests(row.vcpu)} == {Shadow.NONE}
        return row.kind not in NOT_WHILE_NESTED or not any(self.nested(row.vcpu))
