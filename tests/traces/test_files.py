"""What a file is, how it is read to its end whatever is in it, and that every line is accounted for."""

import contextlib
import gzip
import os
import random
import threading
from pathlib import Path

import pytest

from guest_svc.errors import TraceError
from guest_svc.traces.text.chunks import CHUNK_BYTES, LONGEST_LINE, chunks
from guest_svc.traces.text.files import TextFile, is_capture
from guest_svc.traces.text.reader import TraceReader
from guest_svc.traces.text.tally import Tally
from tests.traces.writer import (
    KERNELS,
    SVM,
    VMX,
    accounted,
    entry,
    exit_record,
    line,
    lines,
    random_records,
    read,
)

GOOD = lines(random_records(random.Random(2), 100))


def write(path: Path, text: bytes) -> Path:
    """Write a file and return its path."""
    path.write_bytes(text)
    return path


def tally_of(path: Path) -> Tally:
    """Read a whole trace and return what was found in it."""
    reader = TraceReader(path)
    for _ in reader.tables():
        pass
    return reader.tally


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "the file is empty"),
        (b"\x17\x08Dtracing6\0", r"a trace\.dat of trace-cmd; run first: trace-cmd report -R .*/trace"),
        (b"PERFILE2\x68\0", r"a perf\.data; run first: perf script --ns -i .*/trace"),
        (b"\x28\xb5\x2f\xfd\0\0", "compressed by zstd"),
        (b"\xfd7zXZ\x00\0", "compressed by xz"),
        (b"BZh91AY", "compressed by bzip2"),
        ("cpus=4\n".encode("utf-16"), "UTF-16 text; convert it first: iconv"),
        (GOOD.decode().encode("utf-16-le"), "UTF-16 text; convert it first: iconv"),
        (GOOD.decode().encode("utf-16-be"), "UTF-16 text; convert it first: iconv"),
        (b"\x7fELF\x02\x01\x01" + bytes(100), "a binary file, not a text trace: line 1 has a zero byte"),
        (b"a\nb\n\0\n", "a binary file, not a text trace: line 3 has a zero byte"),
        (
            b"a line\nanother\n",
            "line 1: neither perf script nor trace-cmd report print such a line; none of its 2",
        ),
        (b"# only a comment\n", "none of its 1 lines is a record"),
        (b"x-1 [000] 1.000000: sched_switch: prev\n", "no kvm_exit among its 1 records: 1 sched_switch"),
        (
            b"x-1 [000] 12345678: kvm_exit: reason HLT rip 0x1 info 0 0\n",
            "line 1: its time is a plain number",
        ),
        (b"x-1 [000] -1.000000: kvm_exit: reason HLT rip 0x1 info 0 0\n", "line 1: neither perf script nor"),
        (
            b"x-1 [000] 1.000000: kvm_exit: reason NOVEL rip 0x1 info 0 0\n",
            "line 1: an exit reason .*: NOVEL",
        ),
        (
            b"x-1 [000] 1.0: a\nvcpu-9 [001] 1.000000: kvm_exit: TRAP: HSR_EC: 0x0024 (DABT), PC: 0xffff8\n",
            "line 2: a record of arm64; only traces of x86 are read",
        ),
        (
            b"x-9 [001] 1.000000: kvm_s390_intercept_instruction: 00[0000-0000]: intercepted\n",
            "line 1: a record of s390; only traces of x86 are read",
        ),
        (
            b"x-9 [001] 1.000000: kvm_exit: SEPC:0x80200000, SCAUSE:0x15, STVAL:0x0, HTVAL:0x0, HTINST:0x0\n",
            "line 1: a record of riscv; only traces of x86 are read",
        ),
        (gzip.compress(b"", mtime=0), "the file is empty, compressed"),
        (gzip.compress(b"PERFILE2\x68\0", mtime=0), r"a perf\.data"),
        (b"\x1f\x8b\x08\x00garbage that is none", "the file is empty: the gzip data"),
    ],
)
def test_what_is_no_trace_is_refused_with_what_it_is(text: bytes, said: str, tmp_path: Path) -> None:
    """One error names the file and what is wrong, with the line where there is one."""
    path = write(tmp_path / "trace", text)
    with pytest.raises(TraceError, match=said) as caught:
        tally_of(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_format_is_found_by_content_alone(tmp_path: Path) -> None:
    """Names say nothing: text in an .npz is text, gzip needs no suffix, a byte order mark is passed over."""
    for name, text in (
        ("a.npz", GOOD),
        ("b.dat", gzip.compress(GOOD)),
        ("c", b"\xef\xbb\xbf" + GOOD),
        ("d.gz", GOOD.replace(b"\n", b"\r\n")),
        ("e", gzip.compress(GOOD[:1000]) + gzip.compress(GOOD[1000:]) + bytes(512)),
    ):
        path = write(tmp_path / name, text)
        assert not is_capture(path)
        tally = tally_of(path)
        assert (tally.lines, tally.malformed.count, tally.damage) == (GOOD.count(b"\n"), 0, "")


@pytest.mark.parametrize("length", [LONGEST_LINE + 1, 100_000, CHUNK_BYTES, 3 * CHUNK_BYTES + 5])
def test_lines_that_are_too_long_are_left_out_and_counted(length: int) -> None:
    """Wherever chunks are cut, the lines around them are read, with their numbers."""
    text = GOOD + b"y" * length + b"\n" + GOOD
    table, scanner = read(text)
    again, _ = read(GOOD)
    assert len(table) == 2 * len(again)
    assert (scanner.tally.too_long.count, scanner.tally.too_long.first_line) == (1, GOOD.count(b"\n") + 1)
    assert table.line.tolist()[-1] == text.count(b"\n")
    assert accounted(scanner) == scanner.tally.lines == text.count(b"\n")


def test_a_last_line_without_an_end_is_not_used() -> None:
    """A number may be cut in it; it is counted."""
    table, scanner = read(GOOD[:-5])
    whole, _ = read(GOOD)
    assert len(table) == len(whole) - 1
    assert (scanner.tally.cut_lines, scanner.tally.lines) == (1, GOOD.count(b"\n"))


def test_parts_of_any_size_make_the_same_chunks() -> None:
    """A pipe gives a text in other parts than a file."""
    text = lines(random_records(random.Random(4), 2000))
    whole = [chunk.text for chunk in chunks([text], 1 << 14)]
    draw = random.Random(5)
    cuts = sorted(draw.randrange(len(text)) for _ in range(300))
    parts = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert [chunk.text for chunk in chunks(parts, 1 << 14)] == whole


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    """It has no size, and is read once."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(GOOD,))
    writer.start()
    reader = TraceReader(path)
    found = sum(len(table) for table in reader.tables())
    writer.join()
    assert found == len(read(GOOD)[0])
    assert (reader.fraction_read, reader.can_read_again) == (None, False)


def test_how_much_is_read_is_known_of_a_file(tmp_path: Path) -> None:
    """In bytes as they are stored, so that a bar reaches its end for gzip too."""
    reader = TraceReader(
        write(tmp_path / "trace", gzip.compress(lines(random_records(random.Random(6), 20_000))))
    )
    seen = [reader.fraction_read]
    for _ in reader.tables():
        seen.append(reader.fraction_read)
    assert seen[0] == 0.0
    assert seen[-1] == 1.0


def test_a_file_that_grows_is_read_as_far_as_it_is_there(tmp_path: Path) -> None:
    """What is written while it is read is read too; the share read stays a share."""
    path = write(tmp_path / "trace", GOOD)
    file = TextFile(path)
    parts = file.parts()
    text = next(parts)
    with path.open("ab") as more:
        more.write(GOOD)
    assert text + b"".join(parts) == GOOD + GOOD
    assert file.read_bytes == 2 * len(GOOD)


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        (b"# tracer: nop\n\nCPU 3 is empty\nversion = 6\n", {"header_lines": 4}),
        (b"CPU:3 [17 EVENTS DROPPED]\nCPU:1 [LOST 5 EVENTS]\n", {"lost_notes": 2, "lost_events": 22}),
        (b"CPU:3 [LOST EVENTS]\n", {"lost_notes": 1, "lost_events": 0}),
        (b"LOST 12 events!\n", {"lost_notes": 1, "lost_events": 12}),
        (b"x 7 [000] 1.000000: PERF_RECORD_LOST lost 9\n", {"lost_notes": 1, "lost_events": 9}),
        (
            b"\tffffffff81036706 vmx_handle_exit+0x66 ([kernel.kallsyms])\n => do_syscall_64\n",
            {"call_chain_lines": 2},
        ),
        (b"x-1 [000] -1.000000: kvm_exit: reason HLT rip 0x1 info 0 0\n", {"negative_times": 1}),
    ],
)
def test_lines_that_are_no_records_are_told_apart(text: bytes, counts: dict[str, int]) -> None:
    """Headers, notes of loss, call chains, and what is wrong."""
    _, scanner = read(GOOD + text)
    assert {name: getattr(scanner.tally, name) - (name == "header_lines") for name in counts} == counts
    assert accounted(scanner) == scanner.tally.lines == (GOOD + text).count(b"\n")


def test_stray_bytes_in_names_do_no_harm() -> None:
    """A thread may be called anything."""
    for name in (
        b"\xff\xfe\x80",
        b"a: b",
        b"[000] x",
        b"1.000000: y",
        b"-5 x-7",
        b"kvm_exit: z",
        "äöü".encode(),
    ):
        said = line(exit_record(5_000_000, 12, 0x77)).encode().replace(b"CPU 0/KVM", name)
        table, _ = read(said + b"\n")
        assert (table.rip.tolist(), table.thread.tolist(), table.time_ns.tolist()) == (
            [0x77],
            [7289],
            [5_000_000],
        ), name


def damaged(draw: random.Random, text: bytes) -> bytes:
    """Return a trace that something has happened to."""
    kind = draw.randrange(6)
    said = text.splitlines(keepends=True)
    if kind == 0:
        return text[: draw.randrange(len(text))]
    if kind == 1:
        changed = bytearray(text)
        for _ in range(draw.randrange(1, 200)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        return bytes(changed)
    if kind == 2:
        draw.shuffle(said)
        return b"".join(said)
    if kind == 3:
        return b"".join(one for one in said if draw.random() < 0.5)
    if kind == 4:
        at = draw.randrange(len(text))
        return text[:at] + draw.randbytes(draw.randrange(5000)) + text[at:]
    return b"".join(one[: draw.randrange(len(one) + 1)] + b"\n" for one in said)


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens_to_a_trace_is_counted_or_refused(seed: int, tmp_path: Path) -> None:
    """No damage raises anything but one clear error, and no line is lost in silence."""
    draw = random.Random(seed)
    parts = [
        lines(
            random_records(draw, 60, draw.choice((VMX, SVM))), draw.choice((*KERNELS, "plugin", "raw")), head
        )
        for head in draw.sample(("ftrace", "flags", "latency", "perf", "perf-pid", "wall"), 3)
    ]
    text = damaged(draw, b"".join(parts))
    table, scanner = read(text, draw.choice((2000, 1 << 14, CHUNK_BYTES)))
    has_rest = not text.endswith(b"\n") and bool(text)
    assert accounted(scanner) == scanner.tally.lines == text.count(b"\n") + has_rest
    assert len(table) <= scanner.tally.lines
    path = write(tmp_path / "trace", text)
    with contextlib.suppress(TraceError):  # anything else fails the test
        tally_of(path)


def test_an_unknown_name_of_a_reason_is_counted_by_name() -> None:
    """It has no number that could be kept."""
    said = lines([exit_record(0, 12), entry(1)]).replace(b"HLT", b"NOVEL_EXIT")
    _, scanner = read(said + lines([exit_record(2, 12)]))
    assert scanner.tally.unnamed_reasons == {"NOVEL_EXIT": 1}
    assert (scanner.tally.malformed.count, scanner.tally.malformed.first_line) == (1, 2)
