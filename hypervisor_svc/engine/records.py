"""Layout of the engine's records: rows of ``uint64``, one field a column.

A belief or a fact of the host stands beside the guest's truth (``TRUE_…``), which the loop copies
from the reference and uses for comparison only.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from exitlab.debugreg import DR6_RESET, DR7_RESET

Words = NDArray[np.uint64]

# One vCPU in one lane.
SHADOW: Final = 0  # DR0-3, DR6, DR7 as the hypervisor holds them
SHADOW_DR6: Final = 4
SHADOW_DR7: Final = 5
EFFECTIVE: Final = 6  # DR0-3, DR7 (at +4) that go to the hardware
EFFECTIVE_DR7: Final = 10
FIELD_DR6: Final = 11  # SVM: VMCB
FIELD_DR7: Final = 12  # VMX: GUEST_DR7, SVM: VMCB; FIELD_DEBUGCTL is below
RUNG: Final = 13
ARMED: Final = 14
MEMORY: Final = 15
BELIEF: Final = 16
DEBUGGER: Final = 17
DEBUGGER_DB: Final = 18  # DR0-3, DR7 (at +4)
DEBUGGER_DR7: Final = 22
HOME: Final = 23  # the physical CPU that it is scheduled on
RESIDENT_ON: Final = 24  # plus one; 0 for none
LAST_LOAD: Final = 25  # physical CPU of the last load, plus one
SAVED: Final = 26  # six registers
SAVED_OWNERS: Final = 32  # five owners, 12 bits each
TRUE: Final = 33  # six registers as the architecture has them
TRUE_DR6: Final = 37
TRUE_DR7: Final = 38
TRUE_UNDEFINED: Final = 39
HAS_DE: Final = 40
STAGED: Final = 41
STAGED_DR7: Final = 46
DECLARED: Final = 47  # six masks: bits that may differ by a declared deviation
DECLARED_DR6: Final = 51
DECLARED_DR7: Final = 52
STALE_SLOTS: Final = 53
WINDOW: Final = 54
WINDOW_SIZE: Final = 55
CONTROLS_ARE_OFF: Final = 56
PENDING_KEY: Final = 57  # what the operations until the next entry are charged to; 0 for nothing
PENDING_OPERATIONS: Final = 58
DECLARED_RULE: Final = 59  # the deviation that marked DECLARED last, plus one
EXECUTED: Final = 60  # counts from here
TRAPPED: Final = 61
WINDOWS: Final = 62
EXITS_BY_CLASS: Final = 63  # fast, light, heavy
CLUSTERED: Final = 66  # counts to here
CLUSTER: Final = 67  # accesses emulated since the last exit of a MOV DR; 0 where none may follow
SHADOW_OF_SS: Final = 68  # of MOV SS, as in the reference
HELD: Final = 69
CONTROL: Final = 70  # of the host's debugger
NESTED: Final = 71
NESTED_CONTROL: Final = 72
NESTED_DR7: Final = 73
EXTRA: Final = 74  # not zero while one of SHADOW_OF_SS, CONTROL and NESTED is not
SURVIVED: Final = 75  # a window has survived the coming of the debugger that is there
FIELD_DEBUGCTL: Final = 76  # VMX: GUEST_IA32_DEBUGCTL; SVM: what the hypervisor switches by hand
NESTED_DEBUGCTL: Final = 77  # that the guest hypervisor gave, or finds (VMX)
DECLARED_DEBUGCTL: Final = 78  # bits of it that may differ by a declared deviation
DUE_RULE: Final = 79  # the deviation that may decide what MOV SS has held, plus one
VCPU_FIELDS: Final = 80

KEEP_MEMORY: Final = 255  # next memory of a cell that leaves the memory alone

WINDOW_CLOSED: Final = 0
WINDOW_OPENING: Final = 1
WINDOW_OPEN: Final = 2

# One physical CPU in one lane.
HARDWARE: Final = 0  # DR0-3, DR6, DR7
HARDWARE_DR6: Final = 4
HARDWARE_DR7: Final = 5
OWNER: Final = 6  # of DR0-3 and DR6
OWNER_DR6: Final = 10
HOST: Final = 11  # DR0-3, DR6, DR7 of the host
HOST_DR6: Final = 15
HOST_DR7: Final = 16
RESIDENT: Final = 17  # vCPU plus one
HOST_ACTIVE: Final = 18  # the host uses breakpoints here
HARDWARE_DEBUGCTL: Final = 19  # the host's own is 0
PHYSICAL_FIELDS: Final = 20

OWNER_NOBODY: Final = 0  # reset values
OWNER_HOST: Final = 257  # a vCPU is its number plus one
OWNER_DEBUGGER: Final = 258  # the host's debugger of a vCPU

# Constants of a lane.
IS_SVM: Final = 0
WRITABLE_DR6: Final = 1
EMULATED_DR6_WRITABLE: Final = 2
EMULATED_DR6_FIXED: Final = 3
EMULATED_DR7_WRITABLE: Final = 4
INTERCEPTED: Final = 5  # bit n: exception vector n
TRAP_OPERATIONS: Final = 6
QUIRKS: Final = 7
DECLARES: Final = 8  # bit n: Deviation n
CHECK_ORDER: Final = 9  # two bits for each of eight conditions
IS_COMPUTED: Final = 10
RUNG_OF_SAVING: Final = 11  # on whose way up DR6 is saved; 0 for none
UNINTERCEPTED: Final = 12
RECOMPUTE_OPERATIONS: Final = 13
CLUSTER_GAP: Final = 14
CLUSTER_ACCESSES: Final = 15
REFUSES: Final = 16  # the bits below
LANE_FIELDS: Final = 17

REFUSES_DEBUGREGS: Final = 1
REFUSES_DEBUGGER: Final = 2
REFUSES_NESTING: Final = 4
REFUSES_HOST: Final = 8

# Where a trapped read of DR6 or DR7 is answered from.
READ_LIVE: Final = 0  # what the processor (SVM outside the guest: the field) holds
READ_SHADOW: Final = 1  # the shadow, once it is loaded
READ_SHADOW_AS_IS: Final = 2  # the shadow, by emulation

# Counts of a lane.
LATENT: Final = 0
HOST_BLIND: Final = 1
SWITCHES: Final = 2  # of the intercept
DIVERGED: Final = 3
DIGEST: Final = 4
FIRST_EVENT: Final = 5  # of the first divergence, plus one
FIRST_VCPU: Final = 6
FIRST_KIND: Final = 7
FIRST_REGISTER: Final = 8
FIRST_STORY: Final = 9
FIRST_VALUE: Final = 10
FIRST_TRUE_STORY: Final = 11
FIRST_TRUE_VALUE: Final = 12
BILL_ROWS: Final = 13
DECISION_ROWS: Final = 14
FAILURE: Final = 15  # see below
REFUSED: Final = 16  # changes from outside
DEBUG_EXIT_ROWS: Final = 17
COUNT_FIELDS: Final = 18

# What a host debugger was told, a row a content.
DEBUG_EXIT_EXCEPTION: Final = 0
DEBUG_EXIT_DR6: Final = 1
DEBUG_EXIT_DR7: Final = 2
DEBUG_EXIT_COUNT: Final = 3
DEBUG_EXIT_FIRST: Final = 4  # event
DEBUG_EXIT_FIELDS: Final = 5
MOST_DEBUG_EXITS: Final = 64  # the last row takes what has no row of its own

FAILURE_BILL_FULL: Final = 1
FAILURE_LIVE_LOCK: Final = 2

# A bill's or a decision's key: two words. First word:
KEY_CLASS_SHIFT: Final = 32  # bits 0-31 are the reason
KEY_EMULATED: Final = 1 << 34
KEY_SKIPPED: Final = 1 << 35
KEY_ACCOUNT_SHIFT: Final = 36  # 3 bits, the contract's Account
KEY_REEXECUTED: Final = 1 << 39
KEY_MSR_SHIFT: Final = 40  # 8 bits
KEY_SUB_REASON_SHIFT: Final = 48  # 8 bits
KEY_CLUSTER_SHIFT: Final = 56  # 8 bits, in a bill's key only; the rest in a decision's only
KEY_OPENED: Final = 1 << 56
KEY_CLOSED: Final = 1 << 57
KEY_STORY_SHIFT: Final = 58  # 4 bits
KEY_SECOND: Final = 1 << 62  # a second exit, for the exception of the story
# Second word: DR reads, DR writes, VMREADs, VMWRITEs, 8 bits each: synchronization, then standing.
STANDING_SHIFT: Final = 32

ACCOUNT_EXIT: Final = 1
ACCOUNT_START: Final = 2
ACCOUNT_HOST: Final = 3
ACCOUNT_SIGNAL: Final = 4

WINDOW_EXACT: Final = 64  # sizes below have a bucket each, larger ones a bucket a power of two
WINDOW_BUCKETS: Final = 128

LEAK_USED_BY_GUEST: Final = 0
LEAK_ARMED_IN_GUEST: Final = 1
LEAK_ARMED_IN_HOST: Final = 2
LEAK_OWNERS: Final = 259


def new_vcpus(initial_physical_cpus: tuple[int, ...], *, is_armed: bool) -> Words:
    """Return records of vCPUs after reset, not resident, shape (vcpus, VCPU_FIELDS)."""
    vcpus = np.zeros((len(initial_physical_cpus), VCPU_FIELDS), np.uint64)
    for base in (SHADOW, TRUE, SAVED):
        vcpus[:, base + 4] = DR6_RESET
        vcpus[:, base + 5] = DR7_RESET
    vcpus[:, FIELD_DR6] = DR6_RESET
    vcpus[:, [EFFECTIVE_DR7, FIELD_DR7, DEBUGGER_DR7, NESTED_DR7]] = DR7_RESET
    vcpus[:, RUNG] = 4
    vcpus[:, ARMED] = is_armed
    vcpus[:, HOME] = initial_physical_cpus
    vcpus[:, PENDING_KEY] = ACCOUNT_START << KEY_ACCOUNT_SHIFT
    return vcpus


def new_physical_cpus(count: int) -> Words:
    """Return records of physical CPUs after reset, shape (count, PHYSICAL_FIELDS)."""
    cpus = np.zeros((count, PHYSICAL_FIELDS), np.uint64)
    for base in (HARDWARE, HOST):
        cpus[:, base + 4] = DR6_RESET
        cpus[:, base + 5] = DR7_RESET
    return cpus
