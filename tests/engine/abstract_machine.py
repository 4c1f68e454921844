"""An abstract machine of a policy's table: what states a vCPU can come to, and by which cells.

The machine is one vCPU on a CPU that it shares. It keeps what a table can ask about and what that depends on:
rung, memory, belief, intercept, debugger, host breakpoints here, whether DEBUGCTL is zero, of each DR7 (the
shadow, the effective, the field's, the debugger's) whether it enables something, has general detect, or other
bits than a reset leaves. From power-up on every event that a stream may hold is tried. What that takes:

- a vCPU comes down all the way when an event needs the guest; exits are of any class; another vCPU may
  take the CPU, and the vCPU may come in on another, at any time;
- a MOV DR exits only while the intercept is on, and on SVM only if no check of the processor fails;
- #UD needs DR4 or DR5, which are DR6 and DR7; would_enable is of writes of DR7 alone; general detect is
  tested on the DR7 in the field, and goes to a debugger that owns the breakpoints;
- no #DB gets past such a debugger; any may come otherwise, as every instruction can be stepped;
- what a policy refuses does not happen; a nested guest is entered with any DR7 and DEBUGCTL and left with the
  reset ones; any exit may write DEBUGCTL, which RESET clears and INIT does not.

Source: ``docs/model.md`` and the ladder; a test looks for streams that refute these constraints.
"""

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Final

from hypervisor_svc.engine.records import KEEP_MEMORY
from hypervisor_svc.engine.vocabulary import Action, Check, Control, Input, Moment, RegisterClass
from tests.engine.abstract_state import (
    AWAY,
    ENABLES,
    FAST,
    HAS_GD,
    HAS_OTHER,
    HEAVY,
    LIGHT,
    NO_ACCESS,
    NOWHERE,
    OWNS,
    SEEN_ACTIONS,
    Access,
    Rules,
    State,
)

_ANSWERS: Final = 1 << Action.EMULATE | 1 << Action.INJECT


class Machine:
    """The abstract machine of one policy; it notes each cell that it takes."""

    def __init__(self, rules: Rules) -> None:
        """Keep only those parts of a state that some cell depends on."""
        self.rules = rules
        self.taken: set[int] = set()
        tests_gd = rules.asks(Input.CHECK) and not rules.is_svm
        has_cluster = any(cell >> Action.STAY & 1 for cell in rules.actions)
        bits = ENABLES if rules.asks(Input.BREAKPOINTS_ENABLED, Input.SHADOW_ENABLES) else 0
        bits |= HAS_GD if rules.asks(Input.SHADOW_HAS_GD) or tests_gd or has_cluster else 0
        bits |= ENABLES | HAS_GD | HAS_OTHER if rules.asks(Input.DEBUG_CONTROLS_AT_RESET) else 0
        self.dr7s = sorted({value & bits for value in range(8)})
        self.debugctls = (False, True) if rules.asks(Input.DEBUG_CONTROLS_AT_RESET) else (False,)
        self.believes = rules.asks(Input.BREAKPOINTS_ENABLED)
        knows_debugger = rules.asks(Input.DEBUGGER) or bool(bits) or rules.intercepts_db
        self.debuggers = [(0, 0)]
        if rules.takes_debugger and knows_debugger:
            self.debuggers += [(1, 0), *((OWNS, dr7) for dr7 in self.dr7s)]
        self.hosts = (False, True) if rules.takes_host and rules.asks(Input.HOST_BREAKPOINTS) else (False,)
        self.moves = (False, True) if rules.asks(Input.MOVED) else (True,)

    # A moment.

    def at(
        self, moment: Moment, state: State, access: Access = NO_ACCESS, control: int = 0
    ) -> tuple[State, int]:
        """Take the cell of a moment, and return the state after it and its actions."""
        rules = self.rules
        if rules.bases[moment] == NOWHERE:
            return state, 0
        strides = rules.strides[moment]
        cell = rules.bases[moment] + (
            strides[Input.MEMORY] * state.memory
            + strides[Input.BREAKPOINTS_ENABLED] * state.believes
            + strides[Input.DEBUGGER] * state.debugger
            + strides[Input.HOST_BREAKPOINTS] * state.host
            + strides[Input.SHADOW_ENABLES] * (state.shadow & ENABLES)
            + strides[Input.SHADOW_HAS_GD] * (state.shadow >> 1 & 1)
            + strides[Input.MOVED] * state.moved
            + strides[Input.DEBUG_CONTROLS_AT_RESET] * (state.field == 0 and not state.debugctl)
            + strides[Input.CHECK] * access.check
            + strides[Input.IS_WRITE] * access.is_write
            + strides[Input.REGISTER_CLASS] * access.register_class
            + strides[Input.WOULD_ENABLE] * access.would_enable
            + strides[Input.CONTROL] * control
        )
        self.taken.add(cell)
        if rules.next_memories[cell] != KEEP_MEMORY:
            state = state._replace(memory=rules.next_memories[cell])
        return state, rules.actions[cell]

    def do(self, state: State, actions: int, access: Access = NO_ACCESS) -> State:
        """Take micro-actions, in their one order, as far as the abstract state goes."""
        if not actions:
            return state
        taken = frozenset(action for action in SEEN_ACTIONS if actions >> action & 1)
        state = self._answer(state, taken, access)
        field, effective, believes = state.field, state.effective, state.believes
        owner_dr7 = state.debugger_dr7 if state.debugger == OWNS else state.shadow
        if Action.EFFECTIVE_MERGED in taken and state.debugger == OWNS:
            effective = (state.shadow & ~HAS_GD) | state.debugger_dr7
        elif Action.EFFECTIVE_RAW in taken:
            effective = state.shadow
        elif taken & {Action.EFFECTIVE, Action.EFFECTIVE_MERGED, Action.RECOMPUTE}:
            effective = owner_dr7
        if Action.RECOMPUTE in taken:
            field, believes = effective, self.believes and bool(effective & ENABLES)
        if Action.LOAD_DR7 in taken:
            field = effective
        if Action.MERGE_DB_HARDWARE in taken:
            field &= ~HAS_GD
        return state._replace(
            field=field,
            effective=effective,
            believes=believes,
            moved=self.moves[0] if Action.LOAD_DR0_3 in taken else state.moved,
            is_armed=(state.is_armed or Action.ARM in taken) and Action.DISARM not in taken,
        )

    def _answer(self, state: State, taken: frozenset[Action], access: Access) -> State:
        """Save DR7, merge a #DB, and answer an access: what comes before the effective registers."""
        shadow, effective, field = state.shadow, state.effective, state.field
        if Action.SAVE_DR7 in taken:
            shadow = field
        merges = Action.MERGE_DB_SHADOW in taken and not self.rules.db_keeps_gd
        if merges or (Action.INJECT in taken and access.check == Check.GD):
            shadow, field = shadow & ~HAS_GD, field & ~HAS_GD
            effective = effective if state.debugger == OWNS else effective & ~HAS_GD
        if Action.EMULATE in taken and access.is_write and access.register_class == RegisterClass.CONTROL:
            shadow = access.written if self.rules.can_write_gd else access.written & ~HAS_GD
            effective = effective if state.debugger == OWNS else shadow
        return state._replace(shadow=shadow, effective=effective, field=field)

    def cross(self, moment: Moment, state: State, control: int = 0) -> State:
        """Take the cell of a moment that is about no access."""
        state, actions = self.at(moment, state, control=control)
        return self.do(state, actions)

    # The ladder.

    def enter(self, state: State) -> State:
        """Come down into the guest."""
        while state.rung:
            state = self.cross(Moment(AWAY - state.rung), state)
            state = state._replace(rung=state.rung - 1, stays=False)
        return state

    def climb(self, state: State, rung: int) -> State:
        """Go up to a rung, if not there already."""
        while state.rung < rung:
            state = self.cross(Moment(Moment.LEAVE_GUEST + state.rung), state)
            state = state._replace(rung=state.rung + 1)
        return state

    # Events.

    def after(self, state: State) -> Iterator[State]:
        """Yield the states after each event that may come."""
        yield from self._host_events(state)
        yield from self._scheduling(state)
        if state.stays:
            for access in self._accesses(state, is_trapped=False):
                yield from self._answers(state, access)
        if state.rung:
            yield self.enter(state)
            return
        for rung in (FAST, LIGHT, HEAVY):
            gone = self.climb(state, rung)
            yield from {gone, *(gone._replace(debugctl=debugctl) for debugctl in self.debugctls)}
            yield from self._debug_exception_outside(gone)
        yield from self._debug_exception(state)
        yield from self._mov_dr(state)
        yield from self._nested_events(state)

    def _host_events(self, state: State) -> Iterator[State]:
        out = self.climb(state, HEAVY)
        yield out
        if self.rules.takes_debugregs:
            for dr7 in self.dr7s:
                yield self.cross(Moment.CONTROL_CHANGED, out._replace(shadow=dr7), Control.DEBUGREGS)
        for reset in {out._replace(shadow=0), out._replace(shadow=0, debugctl=False)}:
            yield self.cross(Moment.CONTROL_CHANGED, reset, Control.RESET)
        for debugger, dr7 in self.debuggers if self.rules.takes_debugger else ():
            taken = out._replace(debugger=debugger, debugger_dr7=dr7)
            yield self.cross(Moment.CONTROL_CHANGED, taken, Control.DEBUGGER)
            if not self.rules.db_keeps_gd:  # what is injected has cleared it
                injected = taken._replace(shadow=taken.shadow & ~HAS_GD)
                yield self.cross(Moment.CONTROL_CHANGED, injected, Control.DEBUGGER)
        for host in self.hosts if self.rules.takes_host else ():
            there = out._replace(host=host)
            if out.rung < AWAY:
                yield self.cross(Moment.CONTROL_CHANGED, there, Control.HOST_BREAKPOINTS)
            else:
                yield there

    def _scheduling(self, state: State) -> Iterator[State]:
        yield self.cross(Moment.SCHEDULED_OUT, self.climb(state, HEAVY))
        yield self.cross(Moment.SCHEDULED_IN, state)
        yield self.climb(state, AWAY)  # another vCPU takes the CPU
        for host, moved in product(self.hosts, self.moves):
            there = self.cross(Moment.SCHEDULED_IN, self.climb(state, HEAVY)._replace(host=host, moved=moved))
            left = self.climb(there._replace(host=state.host, moved=state.moved), AWAY)
            yield left._replace(host=host, moved=moved)

    def _debug_exception(self, state: State) -> Iterator[State]:
        """Raise a #DB in the guest: to it, to the hypervisor, or to the debugger."""
        cleared = state._replace(field=state.field & ~HAS_GD)
        if state.debugger:
            yield self.climb(cleared, HEAVY)
        if state.debugger == OWNS:
            return
        if not self.rules.intercepts_db:
            yield cleared
            return
        gone = self.climb(cleared if self.rules.is_svm else state, self.rules.db_class)
        yield from self._leaving(self.cross(Moment.DB_EXIT, gone))

    def _debug_exception_outside(self, state: State) -> Iterator[State]:
        """Raise one for an instruction that the hypervisor has emulated."""
        if state.debugger == OWNS or not self.rules.intercepts_db:
            return
        yield from self._leaving(self.cross(Moment.DB_EXIT, state))

    def _nested_events(self, state: State) -> Iterator[State]:
        """Enter a nested guest, whose exit is light, or leave one by an exit of any class but a fast one."""
        if self.rules.nests:
            for debugctl in self.debugctls:
                yield from self._switched(self.climb(state, LIGHT)._replace(debugctl=debugctl), self.dr7s)
            for rung in (LIGHT, HEAVY):
                yield from self._switched(self.climb(state, rung)._replace(debugctl=False), (0,))

    def _leaving(self, state: State) -> Iterator[State]:
        """Yield a state after an exception, and what leaving a nested guest by it makes of it.

        On VMX the exception is then none of L0's. No exit of a nested guest that raises one is fast.
        """
        yield state
        if self.rules.nests and self.rules.is_svm and state.rung >= LIGHT:
            yield from self._switched(state, (0,))

    def _switched(self, state: State, dr7s: Iterable[int]) -> Iterator[State]:
        """Switch DR7 for a nested guest."""
        for dr7 in dr7s:
            yield self.cross(Moment.CONTROL_CHANGED, state._replace(shadow=dr7), Control.NESTED)

    # MOV DR.

    def _mov_dr(self, state: State) -> Iterator[State]:
        if not state.is_armed:
            yield from (state._replace(field=dr7) for dr7 in self.dr7s)
            return
        gone = self.climb(state, self.rules.trap_class)
        for access in self._accesses(state, is_trapped=True):
            if access.check == Check.GD and state.debugger == OWNS:
                yield self.climb(state, HEAVY)
                yield self._interrupted(gone, access)
            else:
                yield from self._answers(gone, access)

    def _accesses(self, state: State, *, is_trapped: bool) -> Iterator[Access]:
        """Yield each access that may trap, with the first check that fails in the policy's order."""
        has_gd = bool(state.field & HAS_GD)
        is_checked = self.rules.is_svm and is_trapped  # by the processor, before it exits
        for is_write, register in product((False, True), RegisterClass):
            is_control = is_write and register == RegisterClass.CONTROL
            may_be_undefined = register != RegisterClass.ADDRESS and not is_checked
            conditions = {0}  # known to have retired
            if not is_checked:
                undefined = (0, 1) if may_be_undefined else (0,)
                conditions |= {u | p << 1 | has_gd << 2 for u, p in product(undefined, (0, 1))}
            for condition, dr7 in product(conditions, self.dr7s if is_control else (0,)):
                check = self.rules.check_order >> (2 * condition) & 3
                yield Access(check, is_write, register, dr7)

    def _interrupted(self, state: State, access: Access) -> State:
        """Return what an access leaves that exits and does not retire, for the host takes over."""
        state, actions = self.at(Moment.DR_TRAPPED, state, access)
        return self.do(state, actions & ~_ANSWERS, access)

    def _answers(self, state: State, access: Access) -> Iterator[State]:
        """Yield what an access leaves: answered, or not retired, or with high bits that fault."""
        yield self._interrupted(state, access)
        state, actions = self.at(Moment.DR_TRAPPED, state, access)
        if actions >> Action.REEXECUTE & 1:
            yield self.enter(self.do(state, actions, access))
            return
        if access.is_write and access.register_class != RegisterClass.ADDRESS:
            unwritten = actions & ~(1 << Action.EMULATE | 1 << Action.RECOMPUTE)
            yield self.do(state, unwritten, access)
        answered = self.do(state, actions, access)
        answered = answered._replace(stays=bool(actions >> Action.STAY & 1))
        yield answered
        yield from self._debug_exception_outside(answered._replace(stays=False))
