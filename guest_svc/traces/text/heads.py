"""What stands before a record's time: the thread's name and number and the physical CPU.

Every tool has its own: ``perf script`` prints name, thread and CPU apart, ftrace and ``trace-cmd
report`` join name and thread by a dash and may put flags after the CPU, or glued to it (``-l``). A
name may hold blanks, dashes and brackets, so a head is read from its end.
"""

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from guest_svc.traces.text.table import UNKNOWN

#: The time of a record: seconds, a point, micro- or nanoseconds, a colon and a blank.
TIME: Final = re.compile(rb"(?:(?<= )|^)(-?)(\d+)\.(\d{6}|\d{9}): ")

# Of ftrace: interrupts off, rescheduling needed, in an interrupt, preemption and migration depth.
_FLAGS: Final = rb"[a-zA-Z.]{3}[0-9a-f.#+]{1,3}"
_CPU: Final = re.compile(rb"(?:^|(?<= ))(?:" + _FLAGS + rb" +)?\[(\d{1,6})\](?: +" + _FLAGS + rb")?$")
_CPU_AND_FLAGS: Final = re.compile(rb"(?:^|(?<= ))(\d{1,6})" + _FLAGS + rb"$")  # trace-cmd report -l
_GROUP: Final = re.compile(rb" \([ \d-]+\)$")  # the thread group, if it was recorded
_THREAD: Final = re.compile(rb"(?:^|(?<= )|(?<=\d/))(-?\d{1,10})$")  # perf: thread, or process/thread
_JOINED: Final = re.compile(rb"-(\d{1,10})$")  # ftrace: name-thread
_PROCESS: Final = re.compile(rb" *\d+/$")
_VCPU_NAME: Final = re.compile(rb"CPU (\d{1,5})/K(?:VM?)?$")
_VM_PREFIX: Final = re.compile(rb" *VM: *\d+ +VCPU: *(\d+) ")

_THREAD_BITS: Final = 32
_CPU_BITS: Final = 20
_NAMED_BITS: Final = 11


@dataclass(frozen=True, slots=True)
class Head:
    """Who wrote a record and where; ``UNKNOWN`` for what is not printed."""

    thread: int
    cpu: int
    named_vcpu: int  # the vCPU of which the thread's name, or perf's prefix, speaks
    name: bytes


def read_head(text: bytes) -> Head | None:
    """Return what a head says, or nothing if it is none."""
    named = UNKNOWN
    prefix = _VM_PREFIX.match(text)
    if prefix:
        named = int(prefix[1])
        text = text[prefix.end() :]
    text = text.rstrip()
    cpu = _CPU.search(text) or _CPU_AND_FLAGS.search(text)
    if cpu is None:
        return None
    text = text[: cpu.start()].rstrip()
    text = _GROUP.sub(b"", text).rstrip()
    thread = _THREAD.search(text) or _JOINED.search(text)
    if thread is None and text:
        return None
    name = _PROCESS.sub(b"", text[: thread.start()]).strip() if thread else b""
    of_name = _VCPU_NAME.search(name)
    if of_name and named == UNKNOWN:
        named = int(of_name[1])
    number = int(thread[1]) if thread else UNKNOWN
    if number >= 1 << _THREAD_BITS - 1 or named >= 1 << _NAMED_BITS - 1:
        return None
    return Head(max(number, UNKNOWN), int(cpu[1]), named, name)


def pack(head: Head | None) -> int:
    """Return a head as one number, without the name; -1 for none."""
    if head is None:
        return -1
    high = (head.named_vcpu + 1) << _THREAD_BITS + _CPU_BITS
    return high | (head.thread + 1) << _CPU_BITS | head.cpu


def unpack(packed: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the physical CPU, the thread and the named vCPU of packed heads."""
    thread = (packed >> _CPU_BITS & (1 << _THREAD_BITS) - 1) - 1
    return packed & (1 << _CPU_BITS) - 1, thread, (packed >> _THREAD_BITS + _CPU_BITS) - 1
