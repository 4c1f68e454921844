"""What a policy is shown at a moment, and what it can answer."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from hypervisor_svc.engine.vocabulary import (
    SHOWN_INPUTS,
    Action,
    Check,
    Control,
    Debugger,
    Input,
    Moment,
    RegisterClass,
)


@dataclass(frozen=True, slots=True)
class Do:
    """An answer: micro-actions, and the next memory or None to keep it."""

    actions: frozenset[Action]
    memory: IntEnum | None = None


def do(*actions: Action | Iterable[Action], memory: IntEnum | None = None) -> Do:
    """Return an answer; groups of actions may be given as iterables. Order does not matter."""
    flat: set[Action] = set()
    for action in actions:
        flat.update((action,) if isinstance(action, Action) else action)
    return Do(frozenset(flat), memory)


class PolicyError(ValueError):
    """A policy that cannot be tabulated; the message names it, the moment and the input."""

    def __init__(self, message: str, moment: Moment | None = None, where: str = "") -> None:
        """Tell what is wrong; ``moment`` is that of the method, ``where`` also the state that it was in."""
        super().__init__(message)
        self.moment, self.where = moment, where


class Asked(BaseException):  # no Exception: a policy that catches errors must let a question through
    """A question to the tabulator: an input whose value the policy wants to know."""

    def __init__(self, wanted: Input) -> None:
        """Name the input."""
        super().__init__(wanted)
        self.wanted = wanted


class Sees:
    """What a policy can see at a moment; asking for what is not shown there is a PolicyError."""

    def __init__(self, policy: str, moment: Moment, values: Mapping[Input, int]) -> None:
        """Hold the known ``values``; a further one raises the question to the tabulator."""
        self._policy = policy
        self._moment = moment
        self._values = values

    def _get(self, wanted: Input) -> int:
        if wanted in self._values:
            return self._values[wanted]
        if wanted not in SHOWN_INPUTS[self._moment]:
            message = f"{self._policy}: {self._moment.name} does not show {wanted.name.lower()}"
            raise PolicyError(message, self._moment)
        raise Asked(wanted)

    @property
    def memory(self) -> int:
        """The policy's own memory."""
        return self._get(Input.MEMORY)

    @property
    def breakpoints_enabled(self) -> bool:
        """The belief that the effective DR7 enables a breakpoint; changed by RECOMPUTE only."""
        return bool(self._get(Input.BREAKPOINTS_ENABLED))

    @property
    def debugger(self) -> Debugger:
        """What the host's debugger does with this vCPU."""
        return Debugger(self._get(Input.DEBUGGER))

    @property
    def host_breakpoints(self) -> bool:
        """Whether the host uses breakpoints on this physical CPU."""
        return bool(self._get(Input.HOST_BREAKPOINTS))

    @property
    def shadow_enables(self) -> bool:
        """Whether the shadow DR7 enables a breakpoint; it may be stale."""
        return bool(self._get(Input.SHADOW_ENABLES))

    @property
    def shadow_has_gd(self) -> bool:
        """Whether the shadow DR7 has general detect; it may be stale."""
        return bool(self._get(Input.SHADOW_HAS_GD))

    @property
    def moved(self) -> bool:
        """Whether this physical CPU is not the one of the vCPU's last load."""
        return bool(self._get(Input.MOVED))

    @property
    def debug_controls_at_reset(self) -> bool:
        """Whether the next entry would load what the host has there: DR7 0x400 and DEBUGCTL 0."""
        return bool(self._get(Input.DEBUG_CONTROLS_AT_RESET))

    @property
    def check(self) -> Check:
        """At DR_TRAPPED: the first check that fails, in the policy's own order."""
        return Check(self._get(Input.CHECK))

    @property
    def is_write(self) -> bool:
        """At DR_TRAPPED: whether it is a MOV to the register."""
        return bool(self._get(Input.IS_WRITE))

    @property
    def register_class(self) -> RegisterClass:
        """At DR_TRAPPED: which register is named."""
        return RegisterClass(self._get(Input.REGISTER_CLASS))

    @property
    def would_enable(self) -> bool:
        """At DR_TRAPPED: whether the DR7 value written enables a breakpoint."""
        return bool(self._get(Input.WOULD_ENABLE))

    @property
    def control(self) -> Control:
        """At CONTROL_CHANGED: what changed."""
        return Control(self._get(Input.CONTROL))
