"""One vCPU of the second model: what it attempts, what it steps, what a MOV SS holds back."""

from enum import Enum
from typing import Final

from exitlab.events import FETCH_END, EventKind, Mark, Mode

from . import debug_control
from .debug_registers import B0_TO_B3, BD_BS_BT, NO_CAUSE, SINGLE_STEP, Causes
from .processor import Processor
from .vocabulary import (
    ATTEMPTED,
    INSTRUCTIONS,
    MOV_DR,
    PORT_ACCESSES,
    RAISED,
    Event,
    Registers,
    Story,
    Told,
    digest,
)

CR4_DE: Final = 1 << 3
STORY_OF_VECTOR: Final = {6: Story.UD, 13: Story.GP}
NOT_STEPPED: Final = frozenset({EventKind.MOV_SS, EventKind.INT1, EventKind.INT3, EventKind.INTN})


class Shadow(Enum):
    """Where a guest is after a MOV SS."""

    NONE = "no MOV SS, or done with it"
    NEXT = "the next instruction begins"
    FETCHED = "the next instruction was fetched, and perhaps was a fetch alone"
    OVER = "what is held comes before the next event"


def _is_fetch(event: Event) -> bool:
    """Return whether ``event`` fetches, and does not only end an instruction."""
    return event.kind == EventKind.FETCH and event.arg != FETCH_END


class Guest:
    """One vCPU with a processor of its own."""

    def __init__(
        self, vendor: str = "vmx", rtm: bool = False, bus_lock: bool = False, computed: bool = True
    ) -> None:
        """Start as after power-up."""
        self.computed = computed
        self.has_raised = False  # about the last unconditional attempted event
        self.staged: dict[int, int] = {}
        self.held = NO_CAUSE  # what a MOV SS hit
        self.shadow = Shadow.NONE
        self.processor = Processor(vendor, rtm, bus_lock, computed)

    def registers(self) -> Registers:
        """Return the registers as MOVs would read them now."""
        return self.processor.registers()

    def take(self, event: Event) -> Told:
        """Let ``event`` happen if its condition holds, and return what the guest sees."""
        if event.marks & Mark.IF_FAULT and not self.has_raised:
            return Told(Story.NOT_TAKEN)
        if event.marks & Mark.IF_OK and self.has_raised:
            return Told(Story.NOT_TAKEN)
        if event.kind not in ATTEMPTED:
            return self._from_outside(event)
        told, is_recorded = Told(), False
        if event.kind not in MOV_DR or not event.marks & Mark.NOT_RETIRED:
            instead = self._held_comes_first(event)
            told = self._attempt(event) if instead is None else instead
            is_recorded = event.kind == EventKind.EXCEPTION and instead is None
        if not event.marks & (Mark.IF_FAULT | Mark.IF_OK):
            self.has_raised = told.story in RAISED or is_recorded
        return told

    # The shadow of MOV SS.

    def _leave_shadow(self) -> Causes:
        """End the shadow, and return what was held."""
        held, self.held, self.shadow = self.held, NO_CAUSE, Shadow.NONE
        return held

    def _held_comes_first(self, event: Event) -> Told | None:
        """Return what is raised instead of ``event``, if anything is; what has retired has happened."""
        was_a_fetch_alone = self.shadow is Shadow.FETCHED and _is_fetch(event)
        has_retired = event.kind in MOV_DR and event.marks & Mark.RETIRED
        if has_retired or (self.shadow is not Shadow.OVER and not was_a_fetch_alone):
            return None
        held = self._leave_shadow()
        return self.processor.raise_db(Story.DB_FAULT, held) if held.certain else None

    def _mov_ss(self, event: Event) -> Told:
        """Load SS: what the load hits is held, unless it is in the shadow of another."""
        hits = self.processor.matches(EventKind.READ, event.value, event.arg)
        if self.shadow is not Shadow.NONE:
            return self.processor.raise_db(Story.DB_TRAP, self._leave_shadow().joined(hits))
        self.shadow = Shadow.NEXT
        self.held = hits if hits.certain else NO_CAUSE
        return Told()

    # What a guest attempts.

    def _attempt(self, event: Event) -> Told:
        """Attempt an instruction, in the shadow of a MOV SS or not."""
        if not self.computed:
            return self._execute(event)
        if _is_fetch(event):
            return self._fetch(event)
        if event.kind == EventKind.MOV_SS:
            return self._mov_ss(event)
        held = self._leave_shadow()
        if event.kind == EventKind.INT1:
            return self.processor.int1(held)
        told = self.processor.int3() if event.kind == EventKind.INT3 else self._execute(event)
        if event.kind == EventKind.INT3 or told.story == Story.READ:  # which show something else
            self.held, self.shadow = held, Shadow.OVER if held.certain else Shadow.NONE
            return told
        if told.story in RAISED or event.kind == EventKind.EXCEPTION:
            return told
        return self.processor.raise_db(Story.DB_TRAP, held.joined(self._traps_of(event)))

    def _fetch(self, event: Event) -> Told:
        """Fetch: a breakpoint is a fault, unless RF or, on VMX, a shadow suppresses it."""
        is_shadowed = self.shadow is Shadow.NEXT or event.modes & Mode.INTERRUPT_SHADOW
        is_suppressed = event.modes & Mode.RF or (is_shadowed and self.processor.is_vmx)
        hits = NO_CAUSE if is_suppressed else self.processor.matches(EventKind.FETCH, event.value, 1)
        if hits.certain:
            self._leave_shadow()
            return self.processor.raise_db(Story.DB_FAULT, hits)
        if event.modes & Mode.TF:
            causes = self._leave_shadow().joined(hits).joined(SINGLE_STEP)
            return self.processor.raise_db(Story.DB_TRAP, causes)
        if self.shadow is Shadow.NEXT:
            self.shadow = Shadow.FETCHED
        return Told()

    def _traps_of(self, event: Event) -> Causes:
        """Return what follows an instruction that did not fault: hits, and a single step."""
        causes = NO_CAUSE
        if event.kind in (EventKind.READ, EventKind.WRITE):
            causes = self.processor.matches(event.kind, event.value, event.arg)
        elif event.kind in PORT_ACCESSES:
            causes = self.processor.matches(event.kind, event.selector, event.arg)
        is_stepped = event.modes & Mode.TF and event.kind in INSTRUCTIONS - NOT_STEPPED
        return causes.joined(SINGLE_STEP) if is_stepped else causes

    def _execute(self, event: Event) -> Told:
        """Do what an instruction does beside hitting breakpoints."""
        if event.kind in MOV_DR:
            return self.processor.mov_dr(event)
        if debug_control.is_access(event):
            return self.processor.access_debugctl(event)
        if event.kind == EventKind.EXCEPTION:
            return self._recorded_exception(event)
        if event.kind == EventKind.MOV_TO_CR and event.arg == 4 and not event.marks & Mark.VALUE_UNKNOWN:
            self.processor.dr.has_de = event.value & CR4_DE != 0
        return Told()

    def _recorded_exception(self, event: Event) -> Told:
        """Take a recorded exception; an unknown DR6 of a #DB leaves its cause bits undefined."""
        if event.selector != 1:
            story = STORY_OF_VECTOR.get(event.selector)
            return Told() if story is None else self.processor.handler_sees(story)
        if self.computed:
            raise ValueError("a recorded #DB came where breakpoints are computed")
        if event.marks & Mark.VALUE_UNKNOWN:
            self.processor.dr.note_unknown_cause()
        else:
            self.processor.dr.note(Causes(event.value & (B0_TO_B3 | BD_BS_BT)))
        return self.processor.handler_sees(Story.DB_FAULT)

    # What no instruction of this guest does.

    def _from_outside(self, event: Event) -> Told:
        """Let happen what the host or the guest hypervisor does, or what arrives."""
        match event.kind:
            case EventKind.STAGE:
                self.staged[event.arg] = event.value
            case EventKind.SET_DEBUGREGS:
                self.processor.set_debugregs(self._use_staged())
            case EventKind.GET_DEBUGREGS:
                return Told(Story.REGISTERS, digest(self.registers()))
            case EventKind.HOST_DEBUGGER:
                return self.processor.set_debugger(event.selector, self._use_staged())
            case EventKind.HOST_BREAKPOINTS:
                self._use_staged()
            case EventKind.VMRUN:
                return self.processor.enter_nested(event.value, self._use_staged())
            case EventKind.VMEXIT_TO_L1:
                return self.processor.leave_nested()
            case EventKind.RESET | EventKind.INIT:
                self.processor.reset(clears_msrs=event.kind == EventKind.RESET)
                self._leave_shadow()
            case EventKind.STATE if event.arg == 0:
                self.processor.dr.has_de = event.value != 0
        return Told()

    def _use_staged(self) -> dict[int, int]:
        """Return the operands that were staged, and forget them; one that was not is zero."""
        staged, self.staged = self.staged, {}
        return {slot: staged.get(slot, 0) for slot in range(6)}
