"""Machines side by side: a row of one table each, run over the same symbols.

What a machine counts waits here until it is settled: written into the records and the bill of its lane,
as if the oracle loop had run.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hypervisor_svc.arch import reference as ref
from hypervisor_svc.engine import records
from hypervisor_svc.engine.lane import Lane
from hypervisor_svc.engine.machine import (
    IDLE,
    IS_LOOPS,
    MAX_STATES,
    MAX_STEPS,
    ROW,
    UNKNOWN,
    Machine,
    run_machines,
    step_number,
    tell_steps,
)
from hypervisor_svc.engine.probe import Row
from hypervisor_svc.engine.records import Words
from hypervisor_svc.engine.states import PARTS, Part, put_states
from hypervisor_svc.engine.stretch import Steps, Stretch

_AT_ONCE: Final = 4
_FIRST_STEPS: Final = 256  # of a machine there is room for; more is made as they are learned
_U_NUMBER: Final = np.uint64(0xFFFF)
_STEP: Final = np.uint64(1)
_BACK: Final = ~np.uint64(0)


class _Places(NamedTuple):
    """Where every vCPU's machines are; shape (vCPUs, rows) each."""

    states: Words  # a state's place in the table
    opened: Words  # MOV DRs before the open window
    last: Words  # the entry taken last since the lane was settled

    def copy(self) -> "_Places":
        return _Places(*(array.copy() for array in self))

    def restore(self, row: int, saved: "_Places") -> None:
        for array, before in zip(self, saved, strict=True):
            array[:, row] = before[:, row]


class Gang:
    """The machines of lanes that are held to the same reference."""

    def __init__(self, machines: Sequence[Machine], vcpus: int) -> None:
        """Begin with no machine under way."""
        self._machines = machines
        rows = len(machines) + 1  # the last does nothing, and makes up four
        self._tables = np.zeros((rows, MAX_STATES * ROW), np.uint32)
        self._tables[-1, :ROW] = IDLE
        self._looks = np.zeros((rows, MAX_STEPS), np.uint8)
        self._taken = np.zeros((vcpus, rows, _FIRST_STEPS), np.uint64)
        self._places = _Places(*(np.zeros((vcpus, rows), np.uint64) for _ in _Places._fields))
        self._windows = np.zeros((rows, records.WINDOW_BUCKETS), np.uint64)
        self._accesses = np.zeros(vcpus, np.uint64)  # MOV DRs of each vCPU before the stretch
        self._settled = np.zeros((vcpus, rows), np.int64)  # the state's number when it was settled last

    def begin(self, row: int, numbers: Sequence[int], window_sizes: Words) -> None:
        """Have a machine begin in these states, a number and the open window's size for each vCPU."""
        where = self._places
        where.states[:, row] = np.array(numbers, np.uint64) * np.uint64(ROW)
        with np.errstate(over="ignore"):
            where.opened[:, row] = self._accesses - window_sizes
        where.last[:, row] = 0
        self._settled[:, row] = numbers

    def run(self, stretch: Stretch, rows: Sequence[int]) -> list[int]:
        """Run a stretch through these machines; return those that met a step of the oracle loop's.

        Of those nothing is counted, and they are where they were.
        """
        self._saved = self._places.copy()
        fallen: list[int] = []
        for begin in range(0, len(rows), _AT_ONCE):
            fallen += self._run_four(stretch, [*rows[begin : begin + _AT_ONCE]])
        for row in rows:
            if row not in fallen and not self._is_determined(row):
                self._take_back(stretch, row, stretch.ends)
                fallen.append(row)
        return fallen

    def finish(self, stretch: Stretch) -> None:
        """Go on after a stretch that was run, by machine or not."""
        self._accesses += stretch.accesses

    def steps(self, stretch: Stretch, row: int, count: int) -> Steps:
        """Return the step of each event of a block of ``count``, for a machine that ran the last stretch."""
        found = np.zeros(count, np.uint16)
        for vcpu, (begin, end) in enumerate(zip(stretch.begins, stretch.ends, strict=True)):
            state = self._saved.states[vcpu, row]
            tell_steps(stretch.symbols, stretch.events, begin, end, self._tables[row], state, found)
        return found

    def _run_four(self, stretch: Stretch, four: list[int]) -> list[int]:
        """Run a stretch through up to four machines; return those that fell out."""
        fallen: list[int] = []
        reached = stretch.begins
        while four and (vcpu := self._call(stretch, four, reached, stretch.ends, _STEP)) >= 0:
            symbol = int(stretch.symbols[int(reached[vcpu])])
            for row in four:
                self._learn(stretch, vcpu, row, symbol)
            out = [row for row in four if self._belongs_to_loop(vcpu, row, symbol)]
            for row in out:
                self._take_back(stretch, row, reached)
            fallen += out
            four = [row for row in four if row not in out]
        return fallen

    def _call(
        self, stretch: Stretch, four: Iterable[int], begins: Words, ends: Words, step: np.uint64
    ) -> int:
        """Run symbols from ``begins``, which go on, to ``ends``; return the vCPU that stops, or -1."""
        rows = [*four]
        rows += [len(self._machines)] * (_AT_ONCE - len(rows))
        where = self._places
        with np.errstate(over="ignore"):
            stopped: int = run_machines(
                *(stretch.symbols, stretch.accesses_before, begins, ends, self._accesses, step),
                *(self._tables, self._looks, where.states, self._taken, self._windows),
                *(where.opened, where.last, np.array(rows, np.uint64)),
            )
        return stopped

    def _learn(self, stretch: Stretch, vcpu: int, row: int, symbol: int) -> None:
        """Have a machine learn what its state does with this symbol, and with all others that are known."""
        place = int(self._places.states[vcpu, row])
        if self._tables[row, place | symbol] == UNKNOWN:
            words, reasons = stretch.words()
            entries = self._tables[row, place : place + len(words)]
            fresh = [0, *(1 + np.flatnonzero(entries[1:] == UNKNOWN)).tolist()]  # QUIET comes with any
            machine = self._machines[row]
            entries[fresh] = machine.learn(
                place // ROW, [words[symbol] for symbol in fresh], [reasons[symbol] for symbol in fresh]
            )
            self._looks[row] = machine.looks
            while len(machine.steps) > self._taken.shape[2]:
                self._taken = np.concatenate((self._taken, np.zeros_like(self._taken)), axis=2)

    def _belongs_to_loop(self, vcpu: int, row: int, symbol: int) -> bool:
        entry = int(self._tables[row, int(self._places.states[vcpu, row]) | symbol])
        return bool(self._looks[row, step_number(entry)] & IS_LOOPS)

    def _take_back(self, stretch: Stretch, row: int, reached: Words) -> None:
        """Take back what a machine counted in the symbols before ``reached``."""
        self._places.restore(row, self._saved)
        self._call(stretch, [row], stretch.begins, reached.copy(), _BACK)
        self._places.restore(row, self._saved)

    def _is_determined(self, row: int) -> bool:
        """Tell whether a machine's states and the guest's registers are all that the loop would need."""
        machine = self._machines[row]
        numbers = set((self._places.states[:, row] // np.uint64(ROW)).tolist())
        return all(machine.knowledge.is_determined(machine.states[number]) for number in numbers)

    # Between machines and records.

    def settle(self, row: int, lane: Lane, reference: Words) -> None:
        """Bring a lane's records and counters up to date; its machine can go on."""
        machine = self._machines[row]
        taken = self._taken[:, row]
        totals = taken.sum(axis=0)
        moved = np.flatnonzero(self._places.last[:, row])
        if len(moved):
            self._settle_vcpus(moved, row, lane, reference, totals)
        lane.state.window_sizes += self._windows[row]
        self._windows[row] = 0
        for number in np.flatnonzero(totals).tolist():
            step = machine.steps[number]
            assert step is not None  # only steps of the machine are taken
            total = int(totals[number])
            counted = np.array(step.vcpu_counts, np.uint64)
            lane.state.vcpus[:, records.EXECUTED : records.CLUSTERED + 1] += taken[:, number, None] * counted
            lane.state.counts[records.SWITCHES] += np.uint64(step.switches * total)
            if step.whole_window >= 0:
                lane.state.window_sizes[step.whole_window] += np.uint64(total)
            for key, operations in step.rows:
                lane.add_to_bill(key, operations, total)
            taken[:, number] = 0

    def _settle_vcpus(
        self, moved: NDArray[np.int64], row: int, lane: Lane, reference: Words, totals: Words
    ) -> None:
        """Bring the records of these vCPUs up to date, and bill the exits whose entries have run."""
        machine, where = self._machines[row], self._places
        records_of_vcpus = lane.state.vcpus[moved]
        homes = records_of_vcpus[:, records.HOME].astype(np.int64)
        cpus = lane.state.physical_cpus[homes]
        waiting = records_of_vcpus[:, records.PENDING_KEY : records.PENDING_OPERATIONS + 1]
        settled = self._settled[moved, row].tolist()
        bills = Counter(
            _together(pending, machine.entries[state])
            for pending, state in zip(waiting.tolist(), settled, strict=True)
            if pending[0]
        )
        last = (where.last[moved, row] & _U_NUMBER).astype(np.int64)
        self._bill_waits(machine, totals - np.bincount(last, minlength=len(totals)).astype(np.uint64), bills)
        for (key, operations), times in bills.items():
            lane.add_to_bill(key, operations, times)
        steps = [step for number in last.tolist() if (step := machine.steps[number]) is not None]
        codes = np.frombuffer(b"".join(step.state for step in steps), np.uint8).reshape(len(steps), PARTS)
        records_of_vcpus[:, records.TRUE : records.TRUE + 6] = reference[moved, : ref.DR7 + 1]
        put_states(codes, records_of_vcpus, cpus, moved.astype(np.uint64))
        waiting[:] = np.array([step.pending for step in steps], np.uint64)
        with np.errstate(over="ignore"):
            sizes = self._accesses[moved] - where.opened[moved, row]
        records_of_vcpus[:, records.WINDOW_SIZE] = sizes * (codes[:, Part.WINDOW] != records.WINDOW_CLOSED)
        lane.state.vcpus[moved] = records_of_vcpus
        lane.state.physical_cpus[homes] = cpus  # every vCPU has one of its own, else the loop would run
        where.last[moved, row] = 0
        self._settled[moved, row] = where.states[moved, row] // np.uint64(ROW)

    @staticmethod
    def _bill_waits(machine: Machine, taken: Words, bills: Counter[tuple[int, int]]) -> None:
        """Bill exits that waited for an entry that has run; those of the last steps still wait."""
        for number in taken.nonzero()[0].tolist():
            step = machine.steps[number]
            assert step is not None  # only steps of the machine are taken
            if step.pending.key:
                following = machine.entries[machine.number_of(step.state) or 0]
                bills[_together(step.pending, following)] += int(taken[number])


def _together(pending: Iterable[int], entry: Row) -> tuple[int, int]:
    """Return the row of a bill of an exit and the entry that it waited for."""
    key, operations = pending
    return int(key) + entry.key, int(operations) + entry.operations
