"""The second model: what the architecture alone shows a guest, written a second time and slowly.

It exists to disagree. The project has a reference of its own; this one was written from the manuals,
the measured table of real processors and the rules in ``docs/model.md`` without looking at it, and it
shares no code, mask or table with it: only the numbers of the contract's events. Where the two tell
different stories, one is wrong.

Each vCPU is a ``Guest`` with a processor of its own and no hypervisor. An event goes in, and what the
guest sees of it comes out: a story, its value, and which bits of a DR6 or DEBUGCTL in that value are
undefined.

What is decided here, where neither a manual nor the rules say it:

- *Attempted* events, to which IF_FAULT and IF_OK look back, are the guest's own instructions, fetches
  and accesses, and recorded exceptions. What the host does, what arrives from outside, and entering and
  leaving a nested guest are not attempted by anybody. Before the first of them nothing has been raised.
  A MOV DR or exception that leaves a nested guest counts as raised; what a host's debugger takes does not.
- Undefined bits of DR6 stay so until the guest writes DR6 or the host or a reset sets it. A debug
  exception defines B0 to B3 anew and leaves the other undefined bits as they are.
- A disabled slot that matches may show in any debug exception that the same event raises, a single
  step's too, and in the cause that VMX names.
- A debug exception sets DR6 bit 16 (RTM, active low: none here comes from within a transaction) and
  leaves bit 11 (bus lock, active low) as it is.
- Staged operands belong to the vCPU that staged them. SET_DEBUGREGS, HOST_DEBUGGER, HOST_BREAKPOINTS
  and VMRUN use them up; a slot that was not staged counts as zero.
- RESET and INIT clear CR4, and with it CR4.DE, and end the shadow of a MOV SS and a nested guest. A host's
  debugger stays. What else the host does while a nested guest runs is done to the registers as they are.
- A MOV DR that did not retire is no more than an attempt without a fault: it shows nothing, changes
  nothing and uses up no shadow. One that writes an unknown value leaves its register as it is.
- A MOV DR that is known to have retired happens where what is held would be raised instead of it, and
  that comes with it.
- Only attempted events use up the shadow of a MOV SS. What is held is lost too when its instruction
  leaves a nested guest. What is held when a host's debugger comes goes to the debugger: where it would
  be raised instead of an event, that event does not happen and shows nothing.
- An INT1 with something held is a #DB like any other, on SVM too: intercepts and debuggers take it.
- An injected #DB is before the next instruction, so a fault. Of #DB and #BP together, KVM injects #DB.
- On SVM a MOV DR that L1 intercepts leaves before its operand is looked at; and DR6 is in the value of
  whatever leaves the nested guest. VMX names no cause where no exception left it.
- The DR7 that L1 finds where VMX does not save it is what it staged, with the fixed bits of DR7.
- INS and OUTS touch their ports whatever the number of iterations.
- An INIT leaves DEBUGCTL as a nested guest had it. A write of an unknown value leaves it as it is, known or
  not. A read that a recording carries the value of makes it known; that of a kept bit alone is looked at.

Not modelled: what breakpoints make of the memory that INS, OUTS and MMIO touch, the faults of
instructions other than MOV DR, BT, and bus locks.
"""

from collections.abc import Iterable

from .debug_registers import SAME_AS
from .guest import Guest
from .vocabulary import (
    ATTEMPTED,
    EXCEPTIONS,
    MOV_DR,
    Event,
    Registers,
    Story,
    Told,
    digest,
    events_of,
)

__all__ = [
    "ATTEMPTED",
    "EXCEPTIONS",
    "MOV_DR",
    "SAME_AS",
    "VENDORS",
    "Event",
    "Guest",
    "Registers",
    "SecondModel",
    "Story",
    "Told",
    "digest",
    "events_of",
]

VENDORS = ("vmx", "svm")


class SecondModel:
    """Several vCPUs, each alone with the architecture."""

    def __init__(
        self,
        vcpus: int,
        vendor: str = "vmx",
        rtm: bool = False,
        bus_lock: bool = False,
        computed: bool = True,
    ) -> None:
        """Start ``vcpus`` guests; ``computed`` matches breakpoints, otherwise exceptions come as events."""
        if vendor not in VENDORS:
            raise ValueError(f"expected the vendor vmx or svm, got {vendor!r}")
        self.vendor = vendor
        self.guests = [Guest(vendor, rtm, bus_lock, computed) for _ in range(vcpus)]

    def take(self, event: Event) -> Told:
        """Let the vCPU of ``event`` take it, and return what that guest sees."""
        return self.guests[event.vcpu].take(event)

    def tell(self, events: Iterable[Event]) -> list[Told]:
        """Take all ``events`` in order, and return the story of each."""
        return [self.take(event) for event in events]

    def registers(self, vcpu: int) -> Registers:
        """Return the registers of ``vcpu``."""
        return self.guests[vcpu].registers()
