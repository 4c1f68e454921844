"""The same records, as every tool and kernel prints them, are the same rows."""

import random
import re
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from guest_svc.traces.exits.accesses import OPERAND_NAMES, decode
from guest_svc.traces.text.payloads import read_payload
from guest_svc.traces.text.table import Event, Flag, Known, Table
from tests.traces.writer import HEADS, SVM, TEXTS, VMX, accounted, lines, random_records, read

SAMPLES: Final = Path(__file__).with_name("tracecmd_samples.txt").read_text("utf-8")
SECTIONS: Final = dict(re.findall(r"^### (.*)\n((?:(?!###).*\n)*)", SAMPLES, flags=re.M))
PLUGIN, KERNEL, SHORT, RAW = SECTIONS.values()
E, N, M, C = Event.EXIT, Event.ENTRY, Event.MSR, Event.CR

# What trace-cmd was given, by the kernel's numbers: microseconds after 2925.640000 s, event, and the columns.
_ADDRESS, _NEXT = 0xFFFFF8031234567B, 0xFFFFF80312345690
RECORDS: Final[list[tuple[int, Event, dict[str, int]]]] = [
    (961, N, {"rip": 0xFFFFF80312345678}),
    (980, E, {"vendor": VMX, "reason": 29, "rip": _ADDRESS, "info1": 0x216}),
    (983, N, {"rip": _ADDRESS}),
    (992, E, {"vendor": VMX, "reason": 29, "rip": _NEXT, "info1": 7}),
    (994, N, {"rip": _NEXT}),
    (1001, E, {"vendor": SVM, "reason": 0x37, "rip": _NEXT}),
    (1002, E, {"vendor": SVM, "reason": 0x26, "rip": _NEXT, "info1": 2}),
    (1003, E, {"vendor": SVM, "reason": 0x400, "rip": 0x400433, "info1": 0x2_0000_0006}),
    (1004, E, {"vendor": SVM, "reason": 0x8E, "rip": 0x400433}),
    (1005, E, {"vendor": VMX, "reason": 7, "rip": 0x1000}),
    (1006, E, {"vendor": VMX, "reason": 75, "rip": 0x1000}),
    (1007, E, {"vendor": VMX, "reason": 76, "rip": 0x1000}),
    (1008, E, {"vendor": VMX, "reason": 33, "rip": 0x1000, "flags": Flag.FAILED_ENTRY}),
    (1009, C, {"number": 0, "value": 0x80050033, "flags": Flag.WRITE}),
    (1010, M, {"number": 0x6E0, "value": 0x1FB1E5AC1F9, "flags": Flag.WRITE}),
    (1011, M, {"number": 0xCE, "value": 0, "flags": Flag.FAULT}),
    (1012, Event.PIO, {"number": 0x5658, "value": 4}),
    (1013, Event.INJ_VIRQ, {"number": 0xB0}),
    (1014, Event.INJ_EXCEPTION, {"number": 1}),
    (1015, Event.INJ_EXCEPTION, {"number": 13, "value": 0x24}),
]
# Lines where a dialect prints a number without saying whose it is.
NO_VENDOR: Final = {PLUGIN: {1004, 1006, 1007}, KERNEL: {1004, 1007}, SHORT: set[int](), RAW: set[int]()}
_COMPARED: Final = ("vendor", "reason", "rip", "info1", "number", "value", "flags")


def rows(table: Table) -> list[dict[str, int]]:
    """Return records one by one, without the number of the line."""
    names = [name for name in Table.__slots__ if name != "line"]
    return [{name: int(getattr(table, name)[at]) for name in names} for at in range(len(table))]


@pytest.mark.parametrize("section", [PLUGIN, KERNEL, SHORT, RAW], ids=["plugin", "kernel", "short", "raw"])
def test_every_line_of_the_samples_is_the_record_it_was_made_of(section: str) -> None:
    """Real output of trace-cmd in four modes gives one table, but for what a mode does not print."""
    table, scanner = read(section.encode())
    expected = [dict(one[2]) | {"us": one[0], "event": one[1]} for one in RECORDS[: len(table)]]
    found = rows(table)
    assert len(found) == (5 if section is SHORT else len(RECORDS))
    for want, got in zip(expected, found, strict=True):
        if want["us"] in NO_VENDOR[section]:
            want["vendor"] = 0
        assert got["time_ns"] == 2_925_640_000_000 + 1000 * want["us"]
        assert got["event"] == want["event"]
        for name in _COMPARED:
            assert got[name] == want.get(name, -1 if name == "reason" else 0), (want, name)
        assert (got["cpu"], got["thread"]) == (0, 7289)
        assert got["vcpu"] == (0 if "CPU 0/K" in section else -1)
    assert (scanner.header_cpus, scanner.tally.malformed.count) == (1, 0)
    assert accounted(scanner) == scanner.tally.lines == section.count("\n")


def test_info1_of_the_cve_is_a_read_of_dr6_into_rdx() -> None:
    """The line of the fix of CVE-2025-21839, which its author has trimmed, is read as far as it goes."""
    text = (
        b"CPU 0/KVM-7289    [023] d....  2925.640980: kvm_exit: vcpu 0 reason DR_ACCESS "
        b"info1 0x0000000000000216\n"
    )
    table, _ = read(text)
    access = decode(table, np.array([0]), VMX)
    assert (table.cpu[0], table.vcpu[0], table.known[0]) == (23, 0, Known.INFO1)
    assert (bool(access.is_access[0]), bool(access.is_decoded[0])) == (True, True)
    assert (int(access.register[0]), bool(access.is_read[0])) == (6, True)
    assert OPERAND_NAMES[access.operand[0]] == "RDX"


# Lines that people have shown in public, and what they say. Sources: commit c2fee09fc167; a perf record of
# 5.13; a kvm-unit-tests bug report; Firecracker's tests; Xen-devel; tracefs on SVM; perf-prof.
WILD: Final[list[tuple[bytes, dict[str, int]]]] = [
    (
        b"x-1 [0] 1.000000: kvm_nested_vmexit_inject: reason: DR_ACCESS ext_inf1: 0x0000000000000216",
        {"event": Event.NESTED_VMEXIT_INJECT, "reason": 29, "info1": 0x216},
    ),
    (
        b"[001]   770.850307:                       kvm:kvm_exit: vcpu 0 reason TRIPLE_FAULT rip 0x100146 "
        b"info1 0x0000000000000000 info2 0x0000000000000000 intr_info 0x00000000 error_code 0x00000000",
        {"event": E, "cpu": 1, "thread": -1, "vcpu": 0, "reason": 2, "rip": 0x100146},
    ),
    (
        b"CPU 0/KVM  699876 [020] 18136.763707: kvm:kvm_exit: reason EPT_MISCONFIG rip 0xfffff8031964a727 "
        b"info 0 0",
        {"event": E, "cpu": 20, "thread": 699876, "vcpu": 0, "reason": 49, "rip": 0xFFFFF8031964A727},
    ),
    (
        b'CPU 0/KVM  699876 [020] 18136.763707: kvm:kvm_nested_vmexit: CAN\'T FIND FIELD "rip"'
        b"<CANT FIND FIELD exit_code>vcpu 0 reason EPT_MISCONFIG rip 0x1f info1 0x0000000000000001",
        {"event": Event.NESTED_VMEXIT, "reason": 49, "rip": 0x1F, "info1": 1},
    ),
    (
        b"fc_vcpu 1  599500 [039] 1377662.550600: kvm:kvm_entry:  vcpu 1 rip 0xffffffff81036706",
        {"event": N, "cpu": 39, "thread": 599500, "vcpu": 1, "rip": 0xFFFFFFFF81036706},
    ),
    (
        b"fc_vcpu 1 2335220 [069] 12345.679150: kvm:kvm_entry: vcpu 1, rip 0xffffffff81036706",
        {"event": N, "cpu": 69, "thread": 2335220, "vcpu": 1, "rip": 0xFFFFFFFF81036706},
    ),
    (
        b"           <...>-43752 [001]  3615.602298: kvm_exit:    reason EXIT_MSR rip 0x4015c2 info 0 0",
        {"event": E, "thread": 43752, "vendor": SVM, "reason": 0x7C, "rip": 0x4015C2},
    ),
    (
        b"           <...>-43752 [001]  3615.602300: kvm_msr:              msr_read ce = 0x0 (#GP)",
        {"event": M, "number": 0xCE, "flags": Flag.FAULT},
    ),
    (
        b"           <...>-43752 [001]  3615.602301: kvm_inj_exception:    #GP (0x0)",
        {"event": Event.INJ_EXCEPTION, "number": 13, "value": 0},
    ),
    (
        b"qemu-system-x86-20263 [006] .... 75982.292657: kvm_nested_vmexit: vcpu 0 reason hypercall "
        b"rip 0x40122f info1 0x0000000000000000 info2 0x0000000000000000 intr_info 0x00000000 "
        b"error_code 0x00000000",
        {"event": Event.NESTED_VMEXIT, "thread": 20263, "vendor": SVM, "reason": 0x81, "rip": 0x40122F},
    ),
    (
        b"x-1 [0] 1.000000: kvm_exit: vcpu 0 reason vintr rip 0x4004ae info1 0x0000000000000000 "
        b"info2 0x0000000000000000 intr_info 0x00000000 error_code 0x00000000",
        {"event": E, "vendor": SVM, "reason": 0x64},
    ),
    (b"x-1 [0] 1.000000: kvm_inj_virq: IRQ 0xd1 [reinjected]", {"event": Event.INJ_VIRQ, "number": 0xD1}),
    (b"x-1 [0] 1.000000: kvm_inj_virq: irq 209", {"event": Event.INJ_VIRQ, "number": 0xD1}),
    (
        b"x-1 [0] 1.000000: kvm_cr: cr_write 0 = 0x80050033",
        {"event": C, "number": 0, "value": 0x80050033, "flags": Flag.WRITE},
    ),
    (
        b"2022-04-22 17:39:26.535148            <...> 126953 .... [078] 96822671.255015: kvm:kvm_exit: "
        b"reason APIC_WRITE rip 0xfffff801b782acff info 300 0",
        {"event": E, "cpu": 78, "thread": 126953, "reason": 56, "info1": 0x300},
    ),
]


@pytest.mark.parametrize(("text", "expected"), WILD)
def test_lines_seen_in_public_are_read(text: bytes, expected: dict[str, int]) -> None:
    """Each gives one record, with and without a carriage return."""
    for end in (b"\n", b"\r\n"):
        table, scanner = read(text + end)
        assert scanner.tally.malformed.count == 0
        assert len(table) == 1
        assert {name: rows(table)[0][name] for name in expected} == expected


def same_as_printed(records: list[dict[str, int]], text: str) -> list[dict[str, Any]]:
    """Return rows without what a dialect does not print."""
    unprinted: set[str] = set()
    if text in ("3.14", "5.4", "plugin"):
        unprinted = {"intr_info", "error_code"}
    kept = []
    for row in records:
        one: dict[str, Any] = {
            name: value for name, value in row.items() if name not in unprinted | {"known"}
        }
        one["value"] = None if row["event"] == Event.INJ_EXCEPTION else row["value"]  # old ones print a 0
        if text in ("3.14", "5.4") and row["event"] == N:
            one["rip"] = None
        kept.append(one)
    return kept


@pytest.mark.parametrize("isa", [VMX, SVM])
@pytest.mark.parametrize("text", TEXTS)
def test_random_records_are_the_same_in_every_dialect(text: str, isa: int) -> None:
    """Each kernel's and tool's text gives the rows that raw fields give."""
    records = random_records(random.Random(isa), 600, isa)
    whole, _ = read(lines(records, "raw"))
    table, scanner = read(lines(records, text))
    assert scanner.tally.malformed.count == 0
    assert accounted(scanner) == scanner.tally.lines
    truth, found = rows(whole), rows(table)
    for want, got in zip(truth, found, strict=True):
        if got["vendor"] == 0:  # a number that names nobody
            want["vendor"] = 0
            if want["flags"] & Flag.FAILED_ENTRY:
                want["flags"] = got["flags"]
    without_rips = [
        row | {"rip": 0} if text in ("3.14", "5.4") and row["event"] == N else row for row in truth
    ]
    assert same_as_printed(found, text) == same_as_printed(without_rips, text)


@pytest.mark.parametrize("head", HEADS)
def test_heads_do_not_matter(head: str) -> None:
    """Whatever stands before the time: names with blanks, flags, processes, other clocks."""
    records = random_records(random.Random(5), 200)
    truth, _ = read(lines(records))
    table, scanner = read(lines(records, head=head))
    assert scanner.tally.malformed.count == 0
    assert rows(table) == rows(truth)


@pytest.mark.parametrize("chunk_bytes", [300, 1000, 4096, 65_536])
def test_chunks_can_be_cut_anywhere(chunk_bytes: int) -> None:
    """However small the chunks are, the rows are the same and so are their lines."""
    text = lines(random_records(random.Random(9), 300), "6.14", "flags")
    whole, scanner = read(text)
    cut, other = read(text, chunk_bytes)
    assert rows(cut) == rows(whole)
    assert cut.line.tolist() == whole.line.tolist() == sorted(whole.line.tolist())
    assert other.tally == scanner.tally


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("isa", [VMX, SVM])
def test_columns_agree_with_the_reader_of_single_lines(text: str, isa: int) -> None:
    """What the formats read at once is what plain Python reads of the same line by keys."""
    said = lines(random_records(random.Random(3), 300, isa), text)
    table, _ = read(said)
    all_lines = said.decode().splitlines()
    checked = 0
    for row, number in zip(rows(table), table.line.tolist(), strict=True):
        event = Event(row["event"])
        if event not in (E, N):
            continue
        fields = read_payload(event, all_lines[number - 1].split(": ", 2)[2].strip())
        assert fields is not None
        assert {name: row[name] for name in fields} == fields
        checked += 1
    assert checked > 100
