"""Writes the same records as each tool and kernel prints them; made apart from the reader, format by format.

Source of the formats: TP_printk of Linux 3.14 to 7.1.5 (arch/x86/kvm/trace.h); output of trace-cmd 3.1.6.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from exitlab.exit_reasons import SVM_EXIT_REASONS, VMX_EXIT_REASONS
from guest_svc.traces.text.chunks import CHUNK_BYTES, chunks
from guest_svc.traces.text.scan import Scanner
from guest_svc.traces.text.table import Table

VMX, SVM = 1, 2
KERNELS: Final = ("3.14", "5.4", "5.11", "6.12", "6.14")
TEXTS: Final = (*KERNELS, "plugin", "raw")
HEADS: Final = ("ftrace", "flags", "latency", "perf", "perf-pid", "perf-vm", "wall")


@dataclass(frozen=True, slots=True)
class Record:
    """One record: an event's name and its fields, as the kernel has them."""

    event: str
    ns: int
    thread: int = 7289
    cpu: int = 0
    vcpu: int = 0
    fields: Mapping[str, int] = field(default_factory=dict)
    isa: int = VMX

    @property
    def comm(self) -> str:
        """The thread's name, as QEMU gives it."""
        return f"CPU {self.vcpu}/KVM"


def exit_record(ns: int, reason: int, rip: int = 0x1000, info1: int = 0, **more: int) -> Record:
    """Return a kvm_exit; ``more`` are the head's fields, ``isa``, or those that are 0 otherwise."""
    head: dict[str, Any] = {name: more.pop(name) for name in ("thread", "cpu", "vcpu", "isa") if name in more}
    fields = {"reason": reason, "rip": rip, "info1": info1, "info2": 0, "intr_info": 0, "error_code": 0}
    return Record("kvm_exit", ns, fields=fields | more, **head)


def entry(ns: int, rip: int = 0x1000, **head: int) -> Record:
    """Return a kvm_entry."""
    return Record("kvm_entry", ns, fields={"rip": rip}, **head)


def msr(ns: int, number: int, value: int, *, write: bool, fault: bool = False, **head: int) -> Record:
    """Return a kvm_msr."""
    fields = {"number": number, "value": value, "write": int(write), "fault": int(fault)}
    return Record("kvm_msr", ns, fields=fields, **head)


def injected(ns: int, vector: int, **head: int) -> Record:
    """Return a kvm_inj_exception."""
    return Record("kvm_inj_exception", ns, fields={"vector": vector}, **head)


def lost(ns: int, events: int) -> Record:
    """Return a note that the recorder lost events; its time is not printed."""
    return Record("lost", ns, fields={"events": events})


def reason_text(reason: int, isa: int, text: str) -> str:
    """Return an exit reason as a kernel or the plug-in prints it."""
    failed = " FAILED_VMENTRY" if isa == VMX and reason >> 31 else ""
    basic = reason & 0xFFFF if isa == VMX else reason
    name = (VMX_EXIT_REASONS if isa == VMX else SVM_EXIT_REASONS).get(basic)
    if text == "plugin":
        if failed or name is None:
            return f"UNKNOWN ({reason})"
        return name if isa == VMX else PLUGIN_SVM.get(basic, f"EXIT_{name.upper()}")
    if basic == 7 and isa == VMX and text == "3.14":
        return "PENDING_INTERRUPT"
    return (name or hex(basic)) + failed


PLUGIN_SVM: Final = {
    **{0x40 + vector: f"EXIT_EXCP_{name}" for vector, name in {1: "DB", 3: "BP", 6: "UD", 14: "PF"}.items()},
    0x60: "EXIT_INTR", 0x66: "EXIT_IDTR_READ", 0x7B: "EXIT_IOIO", 0x81: "EXIT_VMMCALL",
}  # fmt: skip


def payload(record: Record, text: str) -> str:
    """Return what follows the event's name."""
    f, vcpu = record.fields, record.vcpu
    if record.event == "kvm_exit":
        return _exit_payload(record, text)
    if record.event == "kvm_entry":
        if text == "raw":
            return f"vcpu_id={vcpu} rip=0x{f['rip']:x} immediate_exit=0"
        if text in ("3.14", "5.4"):
            return f"vcpu {vcpu}"
        if text == "plugin":
            return f"vcpu {vcpu} rip 0x{f['rip']:x}"
        tail = f" intr_info 0x{0:08x} error_code 0x{0:08x}" if text == "6.14" else ""
        return f"vcpu {vcpu}, rip 0x{f['rip']:x}{tail}" + ("[immediate exit]" if f.get("immediate") else "")
    if record.event == "kvm_msr":
        if text == "raw":
            return f"write={f['write']} ecx={f['number']:x} data=0x{f['value']:x} exception={f['fault']}"
        how = "write" if f["write"] else "read"
        return f"msr_{how} {f['number']:x} = 0x{f['value']:x}" + (" (#GP)" if f["fault"] else "")
    if record.event == "kvm_inj_exception":
        name = {1: "#DB", 13: "#GP", 6: "#UD", 14: "#PF"}[f["vector"]]
        if text in ("raw", "plugin"):
            broken = "[FAILED TO PARSE] " if text == "plugin" else ""
            return f"{broken}exception={f['vector']} has_error=0 error_code=0 reinjected=0"
        return name if text in ("6.12", "6.14") else f"{name} (0x0)"
    if record.event == "kvm_userspace_exit":
        return f"reason={f['number']} errno=0" if text == "raw" else f"reason KVM_EXIT_IO ({f['number']})"
    return "gsi 4 level 1 source 0"


def _exit_payload(record: Record, text: str) -> str:
    f, vcpu = record.fields, record.vcpu
    if text == "raw":
        return (
            f"exit_reason={f['reason']} guest_rip=0x{f['rip']:x} isa={record.isa} info1=0x{f['info1']:016x} "
            f"info2=0x{f['info2']:016x} intr_info=0x{f['intr_info']:08x} error_code=0x{f['error_code']:08x} "
            f"vcpu_id={vcpu}"
        )
    reason = reason_text(f["reason"], record.isa, text)
    if text in ("3.14", "5.4", "plugin"):
        lead = f"vcpu {vcpu} " if text == "5.4" else ""
        return f"{lead}reason {reason} rip 0x{f['rip']:x} info {f['info1']:x} {f['info2']:x}"
    tail = f" requests 0x{0:016x}" if text == "6.14" else ""
    return (
        f"vcpu {vcpu} reason {reason} rip 0x{f['rip']:x} info1 0x{f['info1']:016x} info2 0x{f['info2']:016x} "
        f"intr_info 0x{f['intr_info']:08x} error_code 0x{f['error_code']:08x}{tail}"
    )


def line(record: Record, text: str = "6.12", head: str = "ftrace") -> str:
    """Return a record's line, or that of a note of lost events."""
    if record.event == "lost":
        return f"CPU:{record.cpu} [{record.fields['events']} EVENTS DROPPED]"
    seconds, ns = divmod(record.ns, 10**9)
    time = f"{seconds:5d}.{ns // 1000:06d}"
    said = payload(record, text)
    cpu, thread, comm = record.cpu, record.thread, record.comm
    if head == "latency":
        return f"{comm[:8]:>8}-{thread:<5} {cpu:3d}d....  {seconds}.{ns:09d}: {record.event + ':':<21} {said}"
    if head in ("ftrace", "flags"):
        flags = "d.... " if head == "flags" else ""
        return f"{comm:>16}-{thread:<5} [{cpu:03d}] {flags}{time}: {record.event + ':':<21} {said}"
    who = f"{7000}/{thread:<7d}" if head == "perf-pid" else f"{thread:7d}"
    before = {"perf-vm": f"VM:{7000:5d} VCPU:{record.vcpu:03d} ", "wall": "2022-04-22 17:39:26.535148 "}
    flags = " ...." if head == "wall" else ""
    nanoseconds = f"{seconds:5d}.{ns:09d}" if head == "perf-pid" else time
    name = "kvm:" + record.event
    return f"{before.get(head, '')}{comm:>16} {who}{flags} [{cpu:03d}] {nanoseconds}: {name:>24}: {said}"


def lines(records: Iterable[Record], text: str = "6.12", head: str = "ftrace") -> bytes:
    """Return a whole trace."""
    first = ["cpus=4"] if head in ("ftrace", "flags", "latency") else []
    return "".join(one + "\n" for one in [*first, *(line(record, text, head) for record in records)]).encode()


def read(text: bytes, chunk_bytes: int = CHUNK_BYTES) -> tuple[Table, Scanner]:
    """Return the records of a trace's bytes, and the scanner with its tally."""
    scanner = Scanner()
    tables = [scanner.read(chunk) for chunk in chunks([text], chunk_bytes)]
    return Table.joined([Table.empty(0), *tables]), scanner


def accounted(scanner: Scanner) -> int:
    """Return how many lines the tally accounts for: each exactly once."""
    tally = scanner.tally
    counted = tally.header_lines + tally.call_chain_lines + tally.lost_notes + tally.cut_lines
    return counted + tally.malformed.count + tally.too_long.count + sum(tally.records.values())


def lazy_host(windows: int) -> list[Record]:
    """Return what a lazily tracking host records: of each window the first access, then another exit."""
    found: list[Record] = []
    for number in range(windows):
        ns, rip = number * 100_000, 0x1000 + number
        found += [
            exit_record(ns, 29, rip, 0x16), entry(ns + 2000, rip),
            exit_record(ns + 30_000, 10, rip + 8), entry(ns + 32_000, rip + 10),
        ]  # fmt: skip
    return found


def random_records(
    draw: random.Random, count: int, isa: int = VMX, *, is_lazy: bool = True, losses: float = 0.0
) -> list[Record]:
    """Return what some vCPUs of a host that tracks lazily, or traps all, do; every rip is another.

    ``losses`` is the share of places at which events are lost.
    """
    ns = 2_925_640_000_000
    found: list[Record] = []
    reasons = {VMX: (1, 10, 12, 30, 48, 0x8000_0021, 76), SVM: (0x60, 0x72, 0x78, 0x7B, 0x400, 0x8E)}[isa]
    while len(found) < count:
        vcpu = draw.randrange(3)
        head: dict[str, Any] = {"vcpu": vcpu, "thread": 7289 + vcpu, "cpu": vcpu, "isa": isa}
        rip = draw.getrandbits(draw.choice((8, 33, 64)))
        ns += draw.randrange(1, 40_000) * 1000
        kind = draw.randrange(5)
        if kind == 0:
            number, is_read = draw.choice((0, 3, 6, 7)), draw.random() < 0.5
            reason = 29 if isa == VMX else (0x20 if is_read else 0x30) + number
            info = number | is_read << 4 | draw.randrange(16) << 8 if isa == VMX else draw.randrange(16)
            found.append(exit_record(ns, reason, rip, info, **head))
            refusals = [injected(ns + 1000, draw.choice((1, 6, 13, 14)), **head)] * (draw.random() < 0.3)
            found += refusals
            if not is_lazy and not refusals:
                rip = rip + 3 & (1 << 64) - 1
        elif kind == 1:
            is_write = draw.random() < 0.5
            reason = (32 if is_write else 31) if isa == VMX else 0x7C
            found.append(exit_record(ns, reason, rip, int(is_write) if isa == SVM else 0, **head))
            number = draw.choice((0x6E0, 0x830, 0x1D9, 0x10, 0xC000_0080))
            found.append(
                msr(
                    ns + 1000, number, draw.getrandbits(64), write=is_write, fault=draw.random() < 0.1, **head
                )
            )
        elif kind == 2:
            reason, intr = (0, 0x8000_0301) if isa == VMX else (0x41, 0)
            found.append(exit_record(ns, reason, rip, intr_info=intr, **head))
            if draw.random() < 0.7:
                found.append(injected(ns + 1000, draw.choice((1, 13)), **head))
        else:
            found.append(exit_record(ns, draw.choice(reasons), rip, draw.getrandbits(64), **head))
            if draw.random() < 0.3:
                found.append(Record("kvm_userspace_exit", ns + 1000, fields={"number": 2}, **head))
            if draw.random() < 0.2:
                found.append(Record("kvm_set_irq", ns + 1000, **head))
        ns += 3000
        found += _lossy(draw, entry(ns, rip, **head), losses)
    return found


def _lossy(draw: random.Random, entered: Record, losses: float) -> list[Record]:
    """Return mostly an entry, and around it at times a note of lost events."""
    before, after = ([lost(entered.ns, draw.randrange(1, 900))] * (draw.random() < losses) for _ in range(2))
    return [*before, *([entered] if draw.random() < 0.95 else []), *after]
