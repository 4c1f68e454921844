"""The second model's processor: a MOV DR and a debug exception, and who has a say in them.

The guest comes first; between it and its exceptions may stand a debugger on the host and, while a
nested guest runs, the guest hypervisor.
"""

from typing import Final

from exitlab.events import STAGE_DEBUGCTL, STAGE_DR6, STAGE_DR7, EventKind, Mark, Mode

from . import debug_control
from .controls import Debugger, Nested
from .debug_control import NOT_RECORDED, DebugControl
from .debug_registers import BD, DR7_AT_RESET, GENERAL_DETECT, NO_CAUSE, SAME_AS, Causes, DebugRegisters
from .vocabulary import Event, Registers, Story, Told

LOW_32: Final = 0xFFFF_FFFF


class Processor:
    """A processor of one vendor with the registers of one vCPU."""

    def __init__(self, vendor: str, rtm: bool, bus_lock: bool, computed: bool) -> None:
        """Start as after power-up; a recording may begin at any time."""
        self.is_vmx = vendor == "vmx"
        self.debugctl = DebugControl() if computed else NOT_RECORDED
        self.dr = DebugRegisters(rtm, bus_lock)
        self.debugger = Debugger()
        self.nested: Nested | None = None

    def registers(self) -> Registers:
        """Return the registers as MOVs would read them now."""
        return self.dr.all_six()

    # How exceptions arrive.

    def handler_sees(self, story: Story) -> Told:
        """Return ``story`` with DR6 and DR7 as the handler's first MOVs would read them."""
        six = self.registers()
        return Told(story, six.dr6 | six.dr7 << 32, six.undefined_dr6)

    def raise_db(self, story: Story, causes: Causes) -> Told:
        """Raise a debug exception; it leaves the story where the host's debugger takes it."""
        if not causes.certain or self.debugger.takes_debug_exceptions:
            return Told()
        return self._deliver_db(story, causes)

    def _deliver_db(self, story: Story, causes: Causes) -> Told:
        """Deliver a debug exception to the guest, or to the guest hypervisor that intercepts it."""
        if self.nested is not None and self.nested.intercepts_db:
            return self._leave_nested(self.nested, causes)
        self.dr.note(causes)
        return self.handler_sees(story)

    def int1(self, held: Causes) -> Told:
        """Execute INT1: a debug trap without a cause of its own, which VMX alone takes for a #DB.

        With something held it is one on SVM too.
        """
        if held.certain and not self.is_vmx:
            return self.raise_db(Story.DB_TRAP, held)
        if self.is_vmx and self.debugger.takes_debug_exceptions:
            return Told()
        if self.is_vmx and self.nested is not None and self.nested.intercepts_db:
            return self._leave_nested(self.nested, held)
        if held.certain:
            self.dr.note(held)
        return self.handler_sees(Story.DB_TRAP)

    def int3(self) -> Told:
        """Execute INT3."""
        return Told() if self.debugger.has_software_breakpoints else self.handler_sees(Story.BP)

    def matches(self, kind: int, first: int, length: int) -> Causes:
        """Return what an access or fetch hits, as far as the guest is concerned."""
        if self.debugger.takes_debug_exceptions:
            return NO_CAUSE
        return self.dr.matches(kind, first, length)

    # MOV to and from debug registers.

    def mov_dr(self, event: Event) -> Told:
        """Do or refuse a MOV DR, one check a paragraph; one that is known to have retired is done."""
        operand = event.value & LOW_32 if event.modes & Mode.OPERAND_32 else event.value
        number = SAME_AS.get(event.arg, event.arg)
        is_write = event.kind == EventKind.MOV_TO_DR
        if event.marks & Mark.VALUE_UNKNOWN:
            operand = self.dr.get(number)
        if event.marks & Mark.RETIRED:
            return self._do_mov_dr(number, operand, event)

        nested = self.nested
        is_intercepted = nested is not None and nested.intercepts_mov_dr
        if nested is not None and is_intercepted and self.is_vmx:
            return self._leave_nested(nested)

        if event.arg in SAME_AS and self.dr.has_de:
            return self.handler_sees(Story.UD)

        if event.modes & Mode.CPL:
            return self.handler_sees(Story.GP)

        if self._tests_general_detect():
            return self._raise_general_detect()

        if nested is not None and is_intercepted:
            return self._leave_nested(nested)

        if is_write and number in (6, 7) and operand > LOW_32:
            return self.handler_sees(Story.GP)

        return self._do_mov_dr(number, operand, event)

    def _do_mov_dr(self, number: int, operand: int, event: Event) -> Told:
        """Do a MOV DR, and return what it shows."""
        if event.kind == EventKind.MOV_TO_DR:
            self.dr.set(number, operand)
            return Told()
        value = self.dr.get(number)
        shown = value & LOW_32 if event.modes & Mode.OPERAND_32 else value
        return Told(Story.READ, shown, self.dr.undefined_dr6 if number == 6 else 0)

    def _tests_general_detect(self) -> bool:
        """Return whether the DR7 that the processor has tells it to refuse a MOV DR."""
        debugger = self.debugger
        dr7 = debugger.dr7 if debugger.has_hardware_breakpoints else self.dr.dr7
        return dr7 & GENERAL_DETECT != 0

    def _raise_general_detect(self) -> Told:
        """Refuse a MOV DR.

        On VMX it exits before any check, so KVM looks at GD itself: under a debugger that only
        single-steps, the guest gets its exception.
        """
        is_emulated = self.is_vmx and not self.debugger.has_hardware_breakpoints
        if self.debugger.takes_debug_exceptions and not is_emulated:
            return Told()
        return self._deliver_db(Story.DB_FAULT, Causes(BD))

    def access_debugctl(self, event: Event) -> Told:
        """Read or write DEBUGCTL."""
        self.debugctl, told = debug_control.access(self.debugctl, event)
        return told

    # The host.

    def reset(self, clears_msrs: bool) -> None:
        """Become what RESET and INIT leave: no nested guest, but the debugger, and with INIT the MSRs."""
        self.dr.reset()
        self.nested = None
        if clears_msrs:
            self.debugctl = DebugControl()

    def set_debugregs(self, staged: dict[int, int]) -> None:
        """Set the registers as MOVs would."""
        for number, slot in {0: 0, 1: 1, 2: 2, 3: 3, 6: STAGE_DR6, 7: STAGE_DR7}.items():
            self.dr.set(number, staged[slot])

    def set_debugger(self, control: int, staged: dict[int, int]) -> Told:
        """Give the guest to a debugger or back; what is injected shows at once, and nothing stops it."""
        self.debugger = Debugger(control, staged[STAGE_DR7])
        if self.debugger.injects_db:
            self.dr.clear_general_detect()
            return self.handler_sees(Story.DB_FAULT)
        return self.handler_sees(Story.BP) if self.debugger.injects_bp else Told()

    # The guest hypervisor.

    def enter_nested(self, controls: int, staged: dict[int, int]) -> Told:
        """Enter a nested guest: SVM loads DR6 and DR7, VMX DR7 and DEBUGCTL if it is told to.

        A nested guest cannot nest: its hypervisor intercepts that.
        """
        if self.nested is not None:
            return self._leave_nested(self.nested)
        before = self.dr.dr7
        self.dr.set(7, staged[STAGE_DR7])
        self.nested = Nested(controls, self.dr.dr7, debug_control.of(staged[STAGE_DEBUGCTL]))
        if not self.is_vmx:
            self.dr.set(6, staged[STAGE_DR6])
        elif self.nested.loads:
            self.debugctl = self.nested.debugctl
        else:
            self.dr.set(7, before)
        return Told()

    def leave_nested(self) -> Told:
        """Leave a nested guest because its hypervisor wants to, unless it was left already."""
        return Told() if self.nested is None else self._leave_nested(self.nested)

    def _leave_nested(self, nested: Nested, causes: Causes = NO_CAUSE) -> Told:
        """Leave for the guest hypervisor, by a debug exception if there are causes.

        VMX leaves DR6 and DR7 alone, names the causes and takes DEBUGCTL away; SVM delivers to the
        registers first.
        """
        if causes.certain and not self.is_vmx:
            self.dr.note(causes)
        six = self.registers()
        self.nested = None
        self.dr.set(7, DR7_AT_RESET)
        if not self.is_vmx:
            return Told(Story.VMEXIT, six.dr6 | six.dr7 << 32, six.undefined_dr6)
        found = (self.debugctl if nested.saves else nested.debugctl).in_vmexit
        self.debugctl = DebugControl()
        dr7 = six.dr7 if nested.saves else nested.dr7
        value = causes.certain | causes.possible | found.bits | dr7 << 32
        return Told(Story.VMEXIT, value, causes.possible | found.unknown)
