"""How kernels and tools print the events that are read, format by format.

``{name:d}`` is a decimal number, ``{name:x}`` a hexadecimal one, ``{name:s}`` any text; what is read under a
name that begins with an underscore has no column. Where a format has no field for something that it says all
the same (a write), it stands in ``flags``. Formats of which one would take the lines of another stand after
it. A line that fits none is read by itself, in ``payloads``.

Source: TP_printk of Linux 3.14 to 7.1.5 (arch/x86/kvm/trace.h, include/trace/events/kvm.h); output of
``trace-cmd report`` 3.1.6 with libtraceevent's kvm plug-in, without plug-ins (``-N``) and raw (``-R``).
"""

from dataclasses import dataclass
from typing import Final

from guest_svc.traces.text.table import Event, Flag

_NO_FLAG: Final = Flag(0)


@dataclass(frozen=True, slots=True)
class Format:
    """One way to print an event, and what each line of it says besides."""

    text: str
    flags: Flag = _NO_FLAG


_EXIT_TAIL: Final = (
    "rip 0x{rip:x} info1 0x{info1:x} info2 0x{_info2:x} intr_info 0x{intr_info:x} "
    "error_code 0x{_error_code:x}"
)
_RAW_EXIT: Final = "exit_reason={code:d} guest_rip=0x{rip:x} isa={isa:d} info1=0x{info1:x} info2=0x{_info2:x}"
_RAW_INTERRUPTION: Final = " intr_info=0x{intr_info:x} error_code=0x{_error_code:x}"

_EXITS: Final = (
    Format(f"vcpu {{vcpu:d}} reason {{reason:s}} {_EXIT_TAIL}"),  # 5.11 to 6.13
    Format(f"vcpu {{vcpu:d}} reason {{reason:s}} {_EXIT_TAIL} requests 0x{{_requests:x}}"),  # from 6.14 on
    Format("vcpu {vcpu:d} reason {reason:s} rip 0x{rip:x} info {info1:x} {_info2:x}"),  # 5.4 to 5.9
    Format("reason {reason:s} rip 0x{rip:x} info {info1:x} {_info2:x}"),  # to 4.19, and the plug-in
    Format(f"{_RAW_EXIT}{_RAW_INTERRUPTION} vcpu_id={{vcpu:d}}"),
    Format(f"{_RAW_EXIT}{_RAW_INTERRUPTION} vcpu_id={{vcpu:d}} requests=0x{{_requests:x}}"),
    Format(f"{_RAW_EXIT} vcpu_id={{vcpu:d}}"),
    Format(_RAW_EXIT),
)
_IMMEDIATE: Final = "[immediate exit]"
_ENTRY: Final = "vcpu {vcpu:d}, rip 0x{rip:x}"
_ENTRY_AND_INTERRUPTION: Final = f"{_ENTRY} intr_info 0x{{intr_info:x}} error_code 0x{{_error_code:x}}"
_ENTRIES: Final = (
    Format(_ENTRY),  # 5.11 to 6.13
    Format(_ENTRY_AND_INTERRUPTION),  # from 6.14 on
    Format("vcpu {vcpu:d} rip 0x{rip:x}"),  # the plug-in
    Format("vcpu {vcpu:d}"),  # to 5.9
    Format(f"{_ENTRY}{_IMMEDIATE}"),
    Format(f"{_ENTRY_AND_INTERRUPTION}{_IMMEDIATE}"),
    Format("vcpu_id={vcpu:d} rip=0x{rip:x} immediate_exit={_immediate:d}"),
    Format(
        "vcpu_id={vcpu:d} rip=0x{rip:x} immediate_exit={_immediate:d} intr_info=0x{intr_info:x} "
        "error_code=0x{_error_code:x}"
    ),
    Format("vcpu_id={vcpu:d} rip=0x{rip:x}"),
    Format("vcpu_id={vcpu:d}"),
)
_MSRS: Final = (
    Format("msr_write {number:x} = 0x{value:x}", Flag.WRITE),
    Format("msr_read {number:x} = 0x{value:x}"),
    Format("msr_write {number:x} = 0x{value:x} (#GP)", Flag.WRITE | Flag.FAULT),
    Format("msr_read {number:x} = 0x{value:x} (#GP)", Flag.FAULT),
    Format("write={is_write:d} ecx={number:x} data=0x{value:x} exception={is_fault:d}"),
)
_CRS: Final = (
    Format("cr_write {number:x} = 0x{value:x}", Flag.WRITE),
    Format("cr_read {number:x} = 0x{value:x}"),
    Format("rw={is_write:d} cr={number:d} val=0x{value:x}"),
)
_PORT: Final = "at 0x{number:x} size {_size:d} count {_count:d}"
_PORTS: Final = (
    Format(f"pio_write {_PORT} val 0x{{value:x}}", Flag.WRITE),
    Format(f"pio_read {_PORT} val 0x{{value:x}}"),
    Format(f"pio_write {_PORT} val 0x{{value:x}} (...)", Flag.WRITE),
    Format(f"pio_read {_PORT} val 0x{{value:x}} (...)"),
    Format(f"pio_write {_PORT}", Flag.WRITE),  # to 3.15
    Format(f"pio_read {_PORT}"),
    Format("rw={is_write:d} port=0x{number:x} size={_size:d} count={_count:d} val=0x{value:x}"),
)
_OLD_NESTED_TAIL: Final = (
    "reason: {reason:s} ext_inf1: 0x{info1:x} ext_inf2: 0x{_info2:x} ext_int: 0x{intr_info:x} "
    "ext_int_err: 0x{_error_code:x}"
)
_NESTED: Final = (*_EXITS, Format(f"rip: 0x{{rip:x}} {_OLD_NESTED_TAIL}"), Format(_OLD_NESTED_TAIL))
_TEXT: Final = (Format("{text:s}"),)  # read by ``payloads``: a few distinct ones

FORMATS: Final = {
    Event.EXIT: _EXITS,
    Event.ENTRY: _ENTRIES,
    Event.MSR: _MSRS,
    Event.CR: _CRS,
    Event.PIO: _PORTS,
    Event.NESTED_VMEXIT: _NESTED,
    Event.NESTED_VMEXIT_INJECT: _NESTED,
    Event.INJ_EXCEPTION: _TEXT,
    Event.INJ_VIRQ: _TEXT,
    Event.USERSPACE_EXIT: _TEXT,
}
