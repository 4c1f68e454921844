"""What a block must be like before any of it is applied."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from exitlab.debugreg import VECTOR_DB
from exitlab.events import COLUMN_NAMES, EventColumns, EventKind, Mark, Mode

_KINDS: Final = len(EventKind)
_NOT_MODELLED: Final = (
    EventKind.VMRUN,
    EventKind.VMEXIT_TO_L1,
    EventKind.HOST_DEBUGGER,
    EventKind.GET_DEBUGREGS,
)
_NOT_COMPUTED: Final = (EventKind.INT1, EventKind.POPF, EventKind.MOV_SS, EventKind.STI)
MAX_REASONS: Final = 1024


class BadEvents(ValueError):
    """A block that cannot be applied: which column, which event of the session, and why."""

    def __init__(self, field: str, event: int, message: str) -> None:
        """Name the block's ``field`` and the session's ``event``."""
        super().__init__(f"event {event}: {message}")
        self.field = field
        self.event = event


def complete(events: EventColumns) -> EventColumns:
    """Return the events with zeros for every column that is left out."""
    count = len(events)
    zeros = np.zeros(count, np.uint64)
    arrays: list[NDArray[np.generic]] = []
    for name, dtype in zip(
        COLUMN_NAMES, ("u1", "u1", "u1", "u1", "u1", "u4", "u4", "u8", "u8"), strict=True
    ):
        array = getattr(events, name)
        arrays.append(zeros.view(dtype)[:count] if array is None else array)
    return EventColumns(*arrays)  # type: ignore[arg-type]  # of the right types by name


class Checker:
    """Checks blocks of one session; it remembers which exit reasons were recorded."""

    def __init__(self, vcpus: int, physical_cpus: int, *, is_computed: bool) -> None:
        """Hold what the session allows."""
        self._vcpus = vcpus
        self._physical_cpus = physical_cpus
        self._is_computed = is_computed
        self._reasons: set[int] = set()
        self._never = np.zeros(256, np.bool_)
        self._never[[*_NOT_MODELLED, *(_NOT_COMPUTED if is_computed else ())]] = True

    def check(self, events: EventColumns, first_event: int) -> None:
        """Refuse a block of complete columns that cannot be applied.

        Raises:
            BadEvents: naming the first bad event of the first rule that is broken.
        """
        if not len(events):
            return
        kinds = events.kinds

        def refuse(bad: NDArray[np.bool_], field: str, message: str) -> None:
            if bad.any():
                at = int(bad.argmax())
                values = getattr(events, field)
                text = message.format(value=int(values[at]), kind=_kind_name(int(kinds[at])))
                raise BadEvents(f"block.{field}", first_event + at, text)

        if int(kinds.min()) == 0 or int(kinds.max()) > _KINDS:
            refuse((kinds == 0) | (kinds > _KINDS), "kinds", f"kind {{value}} is unknown, expected 1 to {_KINDS}")
        if int(events.vcpus.max()) >= self._vcpus:  # type: ignore[union-attr]  # complete
            refuse(
                events.vcpus >= self._vcpus,  # type: ignore[operator]  # complete
                "vcpus",
                f"vCPU {{value}} is out of range, the session has {self._vcpus}",
            )
        present = np.bincount(kinds, minlength=256) > 0
        if (present & self._never).any():
            refuse(self._never[kinds], "kinds", "{kind} is not modelled yet in such a session")
        self._check_rest(events, present, refuse)

    def _check_rest(self, events: EventColumns, present: NDArray[np.bool_], refuse) -> None:  # type: ignore[no-untyped-def]  # local function
        kinds = events.kinds
        args, marks, modes, selectors = events.args, events.marks, events.modes, events.selectors
        assert args is not None  # complete
        assert marks is not None
        assert modes is not None
        assert selectors is not None
        if present[[EventKind.MOV_TO_DR, EventKind.MOV_FROM_DR]].any():
            refuse((kinds <= EventKind.MOV_FROM_DR) & (args > 7), "args", "debug register {value} does not exist")
        if present[EventKind.STAGE]:
            refuse((kinds == EventKind.STAGE) & (args > 5), "args", "stage slot {value} does not exist, 0 to 5 do")
        if present[EventKind.STATE]:
            refuse((kinds == EventKind.STATE) & (args > 0), "args", "state {value} is unknown, 0 is CR4.DE")
        for kind in (EventKind.SCHED_IN, EventKind.HOST_BREAKPOINTS):
            if present[kind]:
                bad = (kinds == kind) & (selectors >= self._physical_cpus)
                text = f"physical CPU {{value}} is out of range, the session has {self._physical_cpus}"
                refuse(bad, "selectors", text)
        if self._is_computed:
            if present[EventKind.EXCEPTION]:
                recorded = (kinds == EventKind.EXCEPTION) & (selectors == VECTOR_DB)
                refuse(recorded, "kinds", "a recorded #DB in a session that computes breakpoints")
            refuse(
                (modes & (Mode.TF | Mode.INTERRUPT_SHADOW)) != 0,
                "modes",
                "TF and the interrupt shadow are not modelled yet (modes {value:#x})",
            )
        both = Mark.IF_FAULT | Mark.IF_OK
        refuse((marks & both) == both, "marks", "IF_FAULT and IF_OK exclude each other")
        host = (kinds >= EventKind.SCHED_OUT) & ((marks & both) != 0)
        refuse(host, "marks", "{kind} cannot depend on a guest's fault")
        if present[EventKind.EXIT]:
            self._check_reasons(events, refuse)

    def _check_reasons(self, events: EventColumns, refuse) -> None:  # type: ignore[no-untyped-def]  # local function
        recorded = events.kinds == EventKind.EXIT
        assert events.selectors is not None  # complete
        reasons = self._reasons | {int(code) for code in np.unique(events.selectors[recorded])}
        if len(reasons) > MAX_REASONS:
            refuse(recorded, "selectors", f"more than {MAX_REASONS} different exit reasons in one session")
        self._reasons = reasons


def _kind_name(number: int) -> str:
    return EventKind(number).name if 1 <= number <= _KINDS else str(number)
