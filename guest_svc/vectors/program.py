"""A vector's guest under way: which events come, and what follows from what they showed.

Each instruction of a step is fetched, so each can hit an instruction breakpoint; its own event follows
where it has one. While the guest or its host's debugger steps, TF is on the last event of each
instruction. A fault goes on with the next step, past the store of the result; after an instruction
breakpoint the instruction runs, with RF.
"""

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from exitlab.events import STATE_CR4_DE, DebuggerControl, EventKind, Mark, Mode
from exitlab.v1 import outcome_pb2
from guest_svc.vectors.layout import HANDLER, Layout, Place
from guest_svc.vectors.model import MOV_OPS, Step, Vector
from guest_svc.vectors.rows import (
    TRAP_FLAGS,
    Answer,
    Row,
    access_of,
    end_of,
    fetch_of,
    rows_from_outside,
    staged,
    written,
)

_FAULTS: Final = frozenset(
    {outcome_pb2.STORY_DB_FAULT, outcome_pb2.STORY_UD, outcome_pb2.STORY_GP, outcome_pb2.STORY_VMEXIT}
)
_SHADOWS: Final = frozenset({"mov_ss", "pop_ss"})

Conversation = Generator[list[Row], list[Answer], None]
_Result = TypeVar("_Result")
_Talk = Generator[list[Row], list[Answer], _Result]


def conversation(vector: Vector, *, is_written_by_guest: bool = False) -> Conversation:
    """Yield the rows of a vector, and take in what the architecture answered to those yielded.

    All rows come at once, unless what follows depends on an answer: where the handler repeats an access
    after a general-detect fault, and while the guest is stepped. The registers that a vector starts with
    are set by the host, or by the guest itself if they are to be ``is_written_by_guest``.
    """
    return _Program(vector).run(is_written_by_guest=is_written_by_guest)


@dataclass(slots=True)
class _Guest:
    """What decides how a vCPU's next instruction becomes events."""

    has_trap_flag: bool = False
    is_shadowed: bool = False  # by a MOV SS just before
    control: int = 0  # of the host's debugger

    @property
    def is_stepped(self) -> bool:
        """Whether instructions run with TF set, be it by the guest or by the host."""
        return self.has_trap_flag or bool(self.control & DebuggerControl.SINGLESTEP)


class _Program:
    """A vector's guest under way."""

    def __init__(self, vector: Vector) -> None:
        self._vector = vector
        self._layout = Layout(vector)
        self._guests = [_Guest() for _ in vector.physical_cpus]
        self._rows: list[Row] = []

    def run(self, *, is_written_by_guest: bool) -> Conversation:
        """Run all steps."""
        if self._vector.has_de:
            vcpus = range(len(self._guests))
            self._rows += [Row(EventKind.STATE, arg=STATE_CR4_DE, value=1, vcpu=vcpu) for vcpu in vcpus]
        if self._vector.init is not None:
            stages = staged(Step("set_debugregs", registers=self._vector.init), self._layout)
            if is_written_by_guest:
                self._rows += [written(stage) for stage in stages]
            else:
                self._rows += [*stages, Row(EventKind.SET_DEBUGREGS)]
        for number, step in enumerate(self._vector.steps):
            guest = self._guests[step.vcpu]
            if not self._layout.parts(number):
                self._rows += rows_from_outside(number, step, self._layout)
                self._take_control(step, guest)
                continue
            did_fault = yield from self._run_instructions(number, step, guest)
            if not did_fault:
                self._retire(step, guest)
        if self._rows:
            yield self._rows

    def _ask(self) -> _Talk[int]:
        """Send what there is and return the story of the last row."""
        rows, self._rows = self._rows, []
        answers = yield rows
        return answers[-1].story

    def _run_instructions(self, number: int, step: Step, guest: _Guest) -> _Talk[bool]:
        """Run a step's instructions; return whether one is known to have faulted, or left a nested guest."""
        is_shadowed = guest.is_shadowed
        self._rows += staged(step, self._layout)
        for part in self._layout.parts(number):
            fetch = fetch_of(step, part, self._layout)
            access = None
            if part.place.where == "insn":
                is_real_mode = self._vector.is_real_mode
                access = access_of(step, fetch, self._layout, is_real_mode=is_real_mode)
            if access is not None:
                did_fault = yield from self._run_access(step, fetch, access, guest)
            else:
                is_conditional = part.place.where == "post" and not self._must_ask(step, guest)
                fetch = replace(fetch, marks=Mark.IF_OK if is_conditional else 0)
                did_fault = yield from self._run_whole(fetch, guest)
            if did_fault:
                return True
        if step.op == "int3" and is_shadowed and not guest.control & DebuggerControl.USE_SW_BP:
            # What MOV SS held meets the first instruction of the breakpoint exception's handler.
            place = Place(number, "handler")
            self._rows.append(
                Row(EventKind.FETCH, value=HANDLER, vcpu=step.vcpu, at=place, after=place),
            )
        return False

    def _must_ask(self, step: Step, guest: _Guest) -> bool:
        return guest.is_stepped or (self._vector.retries_general_detect and step.op in MOV_OPS)

    def _run_whole(self, fetch: Row, guest: _Guest) -> _Talk[bool]:
        """Run an instruction that shows nothing but being fetched; return whether a nested guest was left."""
        is_shadowed, guest.is_shadowed = guest.is_shadowed, False
        if not guest.is_stepped:
            self._rows.append(fetch)
            if is_shadowed:
                self._rows.append(end_of(fetch))
            return False
        self._rows.append(replace(fetch, modes=fetch.modes | Mode.TF))
        story = yield from self._ask()
        if story == outcome_pb2.STORY_DB_FAULT:
            self._rows.append(replace(fetch, modes=fetch.modes | Mode.TF | Mode.RF))
            story = yield from self._ask()
        return self._has_left(story, guest)

    def _run_access(self, step: Step, fetch: Row, access: Row, guest: _Guest) -> _Talk[bool]:
        """Run an instruction with an event of its own; return as for all instructions of a step."""
        is_stepped, is_shadowed, guest.is_shadowed = guest.is_stepped, guest.is_shadowed, False
        trap_flag = Mode.TF if is_stepped else 0
        end = None
        if access.read_step is None:
            access = replace(access, modes=access.modes | trap_flag)
        elif is_stepped or is_shadowed:
            end = end_of(access)
            end = replace(end, modes=end.modes | trap_flag)
        self._rows += [fetch, access]
        if not self._must_ask(step, guest):
            if end is not None:
                self._rows.append(replace(end, marks=Mark.IF_OK))
            return False
        story = yield from self._ask()
        if story == outcome_pb2.STORY_DB_FAULT and self._vector.retries_general_detect:
            self._rows += [fetch, access]
            story = yield from self._ask()
        did_fault = story in _FAULTS
        if end is not None and not did_fault:
            self._rows.append(end)
            story = yield from self._ask()
        return self._has_left(story, guest) or did_fault

    def _has_left(self, story: int, guest: _Guest) -> bool:
        """Return whether a nested guest was left; the guest hypervisor goes on without TF."""
        has_left = story == outcome_pb2.STORY_VMEXIT
        if has_left:
            guest.has_trap_flag = False
        return has_left

    def _retire(self, step: Step, guest: _Guest) -> None:
        """Take in what a step that did not fault leaves behind."""
        guest.is_shadowed = step.op in _SHADOWS
        flag = TRAP_FLAGS.get(step.op, step.trap_flag)
        if flag is not None:
            guest.has_trap_flag = flag

    def _take_control(self, step: Step, guest: _Guest) -> None:
        """Take in what the host, or the guest hypervisor, did."""
        if step.op == "host_debugger":
            guest.control = step.selector if step.selector & DebuggerControl.ENABLE else 0
        elif step.op in ("reset", "init"):
            guest.has_trap_flag = guest.is_shadowed = False
        elif step.op == "vmexit_to_l1":
            guest.has_trap_flag = False
