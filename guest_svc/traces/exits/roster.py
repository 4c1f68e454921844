"""Which vCPUs and physical CPUs a trace has. A session wants them before its first event.

A vCPU is a thread: two virtual machines have a vCPU 0 each. Where no thread is printed it is the vCPU
that the record names, and where neither is, the physical CPU.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from exitlab.events import MAX_VCPUS
from guest_svc.errors import TraceError
from guest_svc.traces.text.table import UNKNOWN, Event, Table
from guest_svc.workloads.base import MAX_PHYSICAL_CPUS

_NAMED_BY_VCPU: Final = -2  # and below: the vCPU's number, negative
_NAMED_BY_CPU: Final = -(1 << 40)


class RosterGrew(Exception):
    """A vCPU or a physical CPU has shown up that the first stretch of a trace did not have."""

    def __init__(self, line: int) -> None:
        """Keep the line that shows it."""
        super().__init__(f"line {line}")
        self.line = line


@dataclass(frozen=True, slots=True)
class Member:
    """One vCPU of a trace: who it is there, and where it is first seen."""

    key: int
    printed_vcpu: int  # -1: not printed
    first_cpu: int  # a physical CPU as the trace numbers them

    def document(self, number: int, names: dict[int, str]) -> dict[str, Any]:
        """Return it as scripts read it."""
        return {
            "vcpu": number,
            "thread": self.key if self.key >= 0 else None,
            "name": names.get(self.key) or None,
            "printed_vcpu": self.printed_vcpu if self.printed_vcpu != UNKNOWN else None,
        }


class Roster:
    """The vCPUs and physical CPUs of a trace, numbered from 0 as a session wants them."""

    def __init__(self, members: list[Member], cpus: set[int]) -> None:
        """Take the vCPUs in the order of the numbers that the trace prints, then of their threads.

        Raises:
            TraceError: There are more than a session takes.

        """
        self.members = sorted(
            members, key=lambda one: (one.printed_vcpu == UNKNOWN, one.printed_vcpu, one.key)
        )
        self.cpus = np.array(sorted(cpus), np.int64)
        for what, count, most in (
            ("vCPU threads", len(members), MAX_VCPUS),
            ("physical CPUs", len(cpus), MAX_PHYSICAL_CPUS),
        ):
            if count > most:
                raise TraceError(f"it has more than {most} {what}; record one virtual machine")
        keys = np.array([one.key for one in self.members], np.int64)
        self._numbers = np.argsort(keys)
        self._keys = keys[self._numbers]

    @property
    def initial_cpus(self) -> tuple[int, ...]:
        """The physical CPU that each vCPU is first seen on, as a session numbers them."""
        return tuple(int(np.searchsorted(self.cpus, one.first_cpu)) for one in self.members)

    def vcpus(self, table: Table) -> NDArray[np.int64]:
        """Return each record's vCPU; -1 for a record of another thread.

        Raises:
            RosterGrew: An exit or entry is of a vCPU that is not here.

        """
        keys = keys_of(table)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        numbers = np.where(self._keys[at] == keys, self._numbers[at], UNKNOWN)
        self._check(table, numbers == UNKNOWN)
        return numbers

    def cpus_of(self, table: Table) -> NDArray[np.int64]:
        """Return each record's physical CPU, as a session numbers them; any for a LOST.

        Raises:
            RosterGrew: An exit or entry is on one that is not here.

        """
        at = np.minimum(np.searchsorted(self.cpus, table.cpu), len(self.cpus) - 1)
        self._check(table, self.cpus[at] != table.cpu)
        return at

    def _check(self, table: Table, is_new: NDArray[np.bool_]) -> None:
        is_new &= takes_part(table)
        if is_new.any():
            raise RosterGrew(int(table.line[is_new.argmax()]))


class Census:
    """Collects who takes part, table by table."""

    def __init__(self) -> None:
        """Begin with nobody."""
        self._members: dict[int, Member] = {}
        self.cpus: set[int] = set()

    @property
    def members(self) -> list[Member]:
        """Those seen so far, in the order of their first records."""
        return list(self._members.values())

    def add(self, table: Table) -> None:
        """Take in a table."""
        table = table.taken(takes_part(table))
        keys, first = np.unique(keys_of(table), return_index=True)
        for key, at in sorted(zip(keys.tolist(), first.tolist(), strict=True), key=lambda pair: pair[1]):
            if key not in self._members and len(self._members) <= MAX_VCPUS:
                self._members[key] = Member(key, int(table.vcpu[at]), int(table.cpu[at]))
        if len(self.cpus) <= MAX_PHYSICAL_CPUS:
            self.cpus.update(np.unique(table.cpu).tolist())


def takes_part(table: Table) -> NDArray[np.bool_]:
    """Return which records make their thread a vCPU."""
    found: NDArray[np.bool_] = (table.event == Event.EXIT) | (table.event == Event.ENTRY)
    return found


def keys_of(table: Table) -> NDArray[np.int64]:
    """Return what tells each record's vCPU from others."""
    vcpu, cpu = table.vcpu.astype(np.int64), table.cpu.astype(np.int64)
    unnamed = np.where(vcpu >= 0, _NAMED_BY_VCPU - vcpu, _NAMED_BY_CPU - cpu)
    keys: NDArray[np.int64] = np.where(table.thread >= 0, table.thread, unnamed)
    return keys
