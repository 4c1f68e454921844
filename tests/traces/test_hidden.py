"""What exits of MOV DR prove of their host, and what a recorder's losses leave of that."""

from pathlib import Path
from typing import Final

import pytest

from guest_svc.evidence import evidence_of
from guest_svc.traces.exits.facts import trace_facts
from guest_svc.traces.exits.trace import TextTrace
from tests.traces.made import SMALL_CHUNKS, events_of, trace_of
from tests.traces.writer import Record, entry, exit_record, injected, lost

DR, CPUID, HLT = 29, 10, 12
DB, UD, GP, PF = 1, 6, 13, 14
#: Of a kernel whose entries print an address, and of one whose do not.
WITH_RIP: Final = "6.12"
WITHOUT_RIP: Final = "3.14"


def timed(steps: list[Record]) -> list[Record]:
    """Return records one after another, a microsecond apart."""
    return [
        Record(one.event, at * 1000, one.thread, one.cpu, one.vcpu, one.fields, one.isa)
        for at, one in enumerate(steps)
    ]


def window() -> list[Record]:
    """Return one window of a lazily tracking host: an access, and the exit that ends it."""
    return [exit_record(0, DR, 5), entry(0, 5), exit_record(0, HLT, 9), entry(0, 9)]


def burst(accesses: int) -> list[Record]:
    """Return accesses of a host that traps them all, with no address that would say so."""
    return [one for _ in range(accesses) for one in (exit_record(0, DR, 5), entry(0, 5))]


def refused(vector: int) -> list[Record]:
    """Return an access that the host answers with an exception."""
    return [exit_record(0, DR, 5), injected(0, vector), entry(0, 5)]


def read(trace: TextTrace) -> TextTrace:
    """Return a trace whose last block is taken."""
    assert events_of(trace)
    return trace


HOSTS: Final[list[tuple[str, list[Record], str, str, int]]] = [
    ("runs again", window(), WITH_RIP, "lazy", 1),
    ("goes on behind", [exit_record(0, DR, 5), entry(1, 8), exit_record(2, CPUID)], WITH_RIP, "trapping", 0),
    ("both", [exit_record(0, DR), entry(1, 8), *window()], WITH_RIP, "mixed", 1),
    ("shows nothing", window(), WITHOUT_RIP, "assumed_lazy", 1),
    ("none", [exit_record(0, CPUID), entry(1)], WITHOUT_RIP, "none", 0),
    ("one after another, often", [*burst(4), exit_record(0, HLT)], WITHOUT_RIP, "trapping", 0),
    ("one after another, too few", [*burst(3), exit_record(0, HLT)], WITHOUT_RIP, "assumed_lazy", 3),
    ("one after another, too rarely", [*burst(4), *window() * 40], WITHOUT_RIP, "assumed_lazy", 44),
    ("no exit but these", burst(9), WITHOUT_RIP, "assumed_lazy", 9),
    # A #DB by DR7.GD opens no window, and the guest's handler reads DR6 at once.
    ("after a refused one", [*refused(DB), *window()] * 9, WITHOUT_RIP, "assumed_lazy", 18),
    *((f"refused by {vector}", refused(vector), WITH_RIP, "not_shown", 0) for vector in (DB, UD, GP)),
    ("refused, then one", [*refused(GP), *window()], WITH_RIP, "lazy", 1),
    # The exception is of the host's own page, and the access comes after it.
    ("a page is fetched", [*refused(PF), exit_record(0, HLT)], WITH_RIP, "lazy", 1),
]


@pytest.mark.parametrize(
    ("records", "text", "host", "windows"), [case[1:] for case in HOSTS], ids=[case[0] for case in HOSTS]
)
def test_what_the_host_does_is_told_from_the_trace(
    records: list[Record], text: str, host: str, windows: int, tmp_path: Path
) -> None:
    """By where the guest goes on, else by accesses that follow one another, unless one was refused."""
    hidden = read(trace_of(tmp_path, timed(records), text)).findings.hidden
    assert (hidden.host, hidden.windows) == (host, windows)


@pytest.mark.parametrize("accesses", [1, 2, 13])
def test_nothing_is_assumed_of_a_host_that_turns_out_to_trap_all(accesses: int, tmp_path: Path) -> None:
    """What proves it stands at the end, many chunks after accesses that could be windows."""
    records = timed([*window() * 400, *burst(200), exit_record(0, HLT)])
    trace = read(trace_of(tmp_path, records, WITHOUT_RIP, chunk_bytes=SMALL_CHUNKS))
    assert (trace.findings.hidden.host, trace.findings.hidden.windows) == ("trapping", 0)
    again = read(trace.with_accesses(accesses))
    assert (again.findings.modelled, again.findings.hidden) == (0, trace.findings.hidden)


def test_every_window_is_modelled_though_some_accesses_follow_one_another(tmp_path: Path) -> None:
    """A few that do prove nothing, wherever in the trace they stand."""
    records = timed([*burst(4), exit_record(0, HLT), entry(0), *window() * 400])
    trace = read(trace_of(tmp_path, records, WITHOUT_RIP, chunk_bytes=SMALL_CHUNKS))
    again = read(trace.with_accesses(13))
    assert again.findings.modelled == 12 * trace.findings.hidden.windows == 12 * 404


def test_lost_events_between_accesses_prove_nothing(tmp_path: Path) -> None:
    """The exit between may be among what is lost."""
    lossy = [one for _ in range(9) for one in (*burst(1), lost(0, 17))]
    trace = read(trace_of(tmp_path, timed([*lossy, exit_record(0, HLT)]), WITHOUT_RIP))
    assert (trace.findings.hidden.host, trace.findings.hidden.adjacent) == ("assumed_lazy", 0)
    assert (trace.tally.lost_events, trace.tally.lost_notes) == (9 * 17, 9)


@pytest.mark.parametrize("place", [1, 2])
def test_an_access_whose_entry_may_be_lost_is_unclear(place: int, tmp_path: Path) -> None:
    """The next recorded entry may be that of another exit, and the injection that of another access."""
    records = [exit_record(0, DR, 5), injected(0, GP), entry(0, 8), exit_record(0, HLT)]
    records.insert(place, lost(0, 5))
    hidden = read(trace_of(tmp_path, timed(records), WITH_RIP)).findings.hidden
    assert (hidden.unclear, hidden.emulated, hidden.faulted, hidden.windows) == (1, 0, 0, 1)


@pytest.mark.parametrize("has_exit_before", [True, False])
def test_guest_time_over_a_loss_is_0_and_a_lower_bound(has_exit_before: bool, tmp_path: Path) -> None:
    """Whether the guest ran all the time is not recorded."""
    before = [exit_record(0, CPUID)] if has_exit_before else []
    records = [*before, entry(1000), lost(0, 1000), exit_record(8 * 10**9, HLT), entry(8 * 10**9 + 1000)]
    trace = trace_of(tmp_path, [*records, exit_record(8 * 10**9 + 3000, HLT)], clock_hertz="3000000000")
    assert [row["gap_cycles"] for row in events_of(trace)] == [*([0] if before else []), 0, 6000]
    facts = trace_facts(trace)
    assert (facts["exits_after_loss"], facts["exits_without_entry"]) == (1, 0)
    assert evidence_of(facts)["lanes.guest_cycles"] == "lower_bound"


def test_counts_of_a_lossy_trace_are_lower_bounds(tmp_path: Path) -> None:
    """What was lost may have been anything; a trace without a loss is measured."""
    records = [*timed(window() * 4)]
    kinds = [
        evidence_of(trace_facts(read(trace_of(tmp_path, rows, WITH_RIP))))
        for rows in (records, [*records, lost(0, 3)])
    ]
    names = ("events", "trace.exits", "trace.dr_access", "lanes.exits", "lanes.guest_cycles")
    assert [{kind[name] for name in names} for kind in kinds] == [{"measured"}, {"lower_bound"}]
    assert {kind["lanes.mov_dr"] for kind in kinds} == {"lower_bound"}


def test_without_entries_guest_time_is_an_upper_bound_across_losses_too(tmp_path: Path) -> None:
    """All the time between exits is taken."""
    trace = trace_of(
        tmp_path, [exit_record(0, HLT), lost(0, 4), exit_record(9000, HLT)], clock_hertz="1000000000"
    )
    assert [row["gap_cycles"] for row in events_of(trace)] == [0, 9000]
    facts = trace_facts(trace)
    assert (facts["exits_after_loss"], evidence_of(facts)["lanes.guest_cycles"]) == (0, "upper_bound")


def test_an_entry_that_is_missing_makes_guest_time_a_lower_bound(tmp_path: Path) -> None:
    """It counts 0."""
    records = [entry(0), exit_record(1000, HLT), exit_record(5000, HLT)]
    facts = trace_facts(read(trace_of(tmp_path, records)))
    assert facts["exits_without_entry"] == 1
    assert evidence_of(facts)["lanes.guest_cycles"] == "lower_bound"


@pytest.mark.parametrize("losses", [[], [lost(0, 1)]])
def test_entries_long_before_the_first_exit_count(losses: list[Record], tmp_path: Path) -> None:
    """However many other records stand between, unless some are lost."""
    noise = [Record("kvm_set_irq", n * 1000) for n in range(1, 3000)]
    records = [entry(0), entry(500, vcpu=1, thread=8), *noise, *losses, exit_record(10**7, HLT)]
    trace = trace_of(tmp_path, records, chunk_bytes=SMALL_CHUNKS, clock_hertz="1000000000")
    assert [row["gap_cycles"] for row in events_of(trace)] == [0 if losses else 10**7]
    assert (trace.has_entries, trace.vcpus, trace.records) == (True, 2, len(records) - len(losses))
