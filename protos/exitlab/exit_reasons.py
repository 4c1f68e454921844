"""Exit reasons of VMX and SVM: their numbers, and their names as the kernel's tracepoint prints them.

The two vendors number their exits differently, and each of the 16 MOV DR accesses has a number of
its own on SVM. Here every MOV DR exit is called ``DR_ACCESS`` on both, so that lanes can be compared.
Only codes that the kernel names are in the tables; any other prints as the kernel prints it, in hex.

Source: Linux 7.1.5, ``arch/x86/include/uapi/asm/vmx.h`` (``VMX_EXIT_REASONS``) and ``svm.h``
(``SVM_EXIT_REASONS``).
"""

from typing import Final

VENDOR_VMX: Final = 1  # numbers of Vendor in the contract
VENDOR_SVM: Final = 2

DR_ACCESS: Final = "DR_ACCESS"

VMX_DR_ACCESS: Final = 29
VMX_BASIC_REASON: Final = 0xFFFF  # the reason proper; flags are above it
VMX_FLAG_FAILED_VMENTRY: Final = 0x8000_0000  # the only flag that the kernel prints by name

VMX_EXIT_REASONS: Final[dict[int, str]] = {
    0: "EXCEPTION_NMI",
    1: "EXTERNAL_INTERRUPT",
    2: "TRIPLE_FAULT",
    3: "INIT_SIGNAL",
    4: "SIPI_SIGNAL",
    7: "INTERRUPT_WINDOW",
    8: "NMI_WINDOW",
    9: "TASK_SWITCH",
    10: "CPUID",
    12: "HLT",
    13: "INVD",
    14: "INVLPG",
    15: "RDPMC",
    16: "RDTSC",
    18: "VMCALL",
    19: "VMCLEAR",
    20: "VMLAUNCH",
    21: "VMPTRLD",
    22: "VMPTRST",
    23: "VMREAD",
    24: "VMRESUME",
    25: "VMWRITE",
    26: "VMOFF",
    27: "VMON",
    28: "CR_ACCESS",
    VMX_DR_ACCESS: DR_ACCESS,
    30: "IO_INSTRUCTION",
    31: "MSR_READ",
    32: "MSR_WRITE",
    33: "INVALID_STATE",
    34: "MSR_LOAD_FAIL",
    36: "MWAIT_INSTRUCTION",
    37: "MONITOR_TRAP_FLAG",
    39: "MONITOR_INSTRUCTION",
    40: "PAUSE_INSTRUCTION",
    41: "MCE_DURING_VMENTRY",
    43: "TPR_BELOW_THRESHOLD",
    44: "APIC_ACCESS",
    45: "EOI_INDUCED",
    46: "GDTR_IDTR",
    47: "LDTR_TR",
    48: "EPT_VIOLATION",
    49: "EPT_MISCONFIG",
    50: "INVEPT",
    51: "RDTSCP",
    52: "PREEMPTION_TIMER",
    53: "INVVPID",
    54: "WBINVD",
    55: "XSETBV",
    56: "APIC_WRITE",
    57: "RDRAND",
    58: "INVPCID",
    59: "VMFUNC",
    60: "ENCLS",
    61: "RDSEED",
    62: "PML_FULL",
    63: "XSAVES",
    64: "XRSTORS",
    67: "UMWAIT",
    68: "TPAUSE",
    74: "BUS_LOCK",
    75: "NOTIFY",
    77: "TDCALL",
    84: "MSR_READ_IMM",
    85: "MSR_WRITE_IMM",
}

SVM_READ_DR0: Final = 0x20  # to 0x27 for DR7
SVM_WRITE_DR0: Final = 0x30  # to 0x37 for DR7
SVM_EXCEPTION_BASE: Final = 0x40  # plus the vector, to 0x5f
SVM_ERR: Final = 0xFFFF_FFFF  # -1 in the kernel's header; 32 bits here, as in the contract

_SVM_CONTROL_REGISTERS: Final = (0, 2, 3, 4, 8)
_SVM_EXCEPTIONS: Final[dict[int, str]] = {
    0: "DE", 1: "DB", 3: "BP", 4: "OF", 5: "BR", 6: "UD", 7: "NM", 8: "DF", 10: "TS", 11: "NP",
    12: "SS", 13: "GP", 14: "PF", 16: "MF", 17: "AC", 18: "MC", 19: "XF",
}  # fmt: skip

SVM_EXIT_REASONS: Final[dict[int, str]] = {
    **{0x00 + n: f"read_cr{n}" for n in _SVM_CONTROL_REGISTERS},
    **{0x10 + n: f"write_cr{n}" for n in _SVM_CONTROL_REGISTERS},
    **{SVM_READ_DR0 + n: f"read_dr{n}" for n in range(8)},
    **{SVM_WRITE_DR0 + n: f"write_dr{n}" for n in range(8)},
    **{SVM_EXCEPTION_BASE + vector: f"{name} excp" for vector, name in _SVM_EXCEPTIONS.items()},
    0x60: "interrupt",
    0x61: "nmi",
    0x62: "smi",
    0x63: "init",
    0x64: "vintr",
    0x65: "cr0_sel_write",
    0x66: "read_idtr",
    0x67: "read_gdtr",
    0x68: "read_ldtr",
    0x69: "read_rt",  # TR, spelled so in the kernel
    0x6A: "write_idtr",
    0x6B: "write_gdtr",
    0x6C: "write_ldtr",
    0x6D: "write_rt",
    0x6E: "rdtsc",
    0x6F: "rdpmc",
    0x70: "pushf",
    0x71: "popf",
    0x72: "cpuid",
    0x73: "rsm",
    0x74: "iret",
    0x75: "swint",
    0x76: "invd",
    0x77: "pause",
    0x78: "hlt",
    0x79: "invlpg",
    0x7A: "invlpga",
    0x7B: "io",
    0x7C: "msr",
    0x7D: "task_switch",
    0x7E: "ferr_freeze",
    0x7F: "shutdown",
    0x80: "vmrun",
    0x81: "hypercall",
    0x82: "vmload",
    0x83: "vmsave",
    0x84: "stgi",
    0x85: "clgi",
    0x86: "skinit",
    0x87: "rdtscp",
    0x88: "icebp",
    0x89: "wbinvd",
    0x8A: "monitor",
    0x8B: "mwait",
    0x8D: "xsetbv",
    0x8F: "write_efer_trap",
    0x90: "write_cr0_trap",
    0x94: "write_cr4_trap",
    0x98: "write_cr8_trap",
    0xA2: "invpcid",
    0xA5: "buslock",
    0xA6: "idle-halt",
    0x400: "npf",
    0x401: "avic_incomplete_ipi",
    0x402: "avic_unaccelerated_access",
    0x403: "vmgexit",
    0x8000_0001: "vmgexit_mmio_read",
    0x8000_0002: "vmgexit_mmio_write",
    0x8000_0003: "vmgexit_nmi_complete",
    0x8000_0004: "vmgexit_ap_hlt_loop",
    0x8000_0005: "vmgexit_ap_jump_table",
    0x8000_0010: "vmgexit_page_state_change",
    0x8000_0011: "vmgexit_guest_request",
    0x8000_0012: "vmgexit_ext_guest_request",
    0x8000_0013: "vmgexit_ap_creation",
    0x8000_FFFD: "vmgexit_hypervisor_feature",
    SVM_ERR: "invalid_guest_state",
}

# The handler that does the same work on VMX. SVM reasons with no such handler are not here.
_SVM_HANDLERS: Final[dict[int, str]] = {
    **dict.fromkeys(range(0x20), "CR_ACCESS"),
    **dict.fromkeys(range(SVM_READ_DR0, SVM_READ_DR0 + 8), DR_ACCESS),
    **dict.fromkeys(range(SVM_WRITE_DR0, SVM_WRITE_DR0 + 8), DR_ACCESS),
    **dict.fromkeys(range(SVM_EXCEPTION_BASE, 0x60), "EXCEPTION_NMI"),
    **dict.fromkeys(range(0x90, 0xA0), "CR_ACCESS"),  # traps after a write of a control register
    0x60: "EXTERNAL_INTERRUPT",
    0x61: "EXCEPTION_NMI",
    0x63: "INIT_SIGNAL",
    0x64: "INTERRUPT_WINDOW",
    0x65: "CR_ACCESS",
    0x66: "GDTR_IDTR",
    0x67: "GDTR_IDTR",
    0x68: "LDTR_TR",
    0x69: "LDTR_TR",
    0x6A: "GDTR_IDTR",
    0x6B: "GDTR_IDTR",
    0x6C: "LDTR_TR",
    0x6D: "LDTR_TR",
    0x6E: "RDTSC",
    0x6F: "RDPMC",
    0x72: "CPUID",
    0x74: "NMI_WINDOW",  # KVM intercepts IRET to learn when the next NMI may be delivered
    0x76: "INVD",
    0x77: "PAUSE_INSTRUCTION",
    0x78: "HLT",
    0x79: "INVLPG",
    0x7B: "IO_INSTRUCTION",
    0x7C: "MSR_WRITE",  # one code for reads and writes; writes are what exits most
    0x7D: "TASK_SWITCH",
    0x7F: "TRIPLE_FAULT",
    0x80: "VMRESUME",
    0x81: "VMCALL",
    0x87: "RDTSCP",
    0x88: "EXCEPTION_NMI",  # INT1 exits on VMX as the #DB that it raises
    0x89: "WBINVD",
    0x8A: "MONITOR_INSTRUCTION",
    0x8B: "MWAIT_INSTRUCTION",
    0x8C: "MWAIT_INSTRUCTION",
    0x8D: "XSETBV",
    0x8F: "MSR_WRITE",
    0xA2: "INVPCID",
    0xA5: "BUS_LOCK",
    0xA6: "HLT",
    0x400: "EPT_VIOLATION",
    0x401: "APIC_WRITE",
    0x402: "APIC_ACCESS",
    SVM_ERR: "INVALID_STATE",
}

HANDLER_NAMES: Final = frozenset(VMX_EXIT_REASONS.values()) | frozenset(
    name for code, name in SVM_EXIT_REASONS.items() if code not in _SVM_HANDLERS
)


def reason_name(vendor: int, code: int, sub_reason: int = 0) -> str:
    """Return the kernel's name of an exit reason, ``DR_ACCESS`` for every MOV DR exit.

    A sub-reason chooses a class and never a name: the kernel prints one name for all of a reason.

    Raises:
        ValueError: The vendor is neither VMX nor SVM.

    """
    del sub_reason
    if is_dr_access(vendor, code):
        return DR_ACCESS
    if vendor == VENDOR_VMX:
        return _vmx_name(code)
    code = _svm_code(code)
    return SVM_EXIT_REASONS.get(code, _hex(code))


def is_dr_access(vendor: int, code: int) -> bool:
    """Return whether an exit reason is a MOV DR exit.

    Raises:
        ValueError: The vendor is neither VMX nor SVM.

    """
    if vendor == VENDOR_VMX:
        return code & (VMX_BASIC_REASON | VMX_FLAG_FAILED_VMENTRY) == VMX_DR_ACCESS
    if vendor == VENDOR_SVM:
        return SVM_READ_DR0 <= code < SVM_READ_DR0 + 8 or SVM_WRITE_DR0 <= code < SVM_WRITE_DR0 + 8
    raise ValueError(f"vendor is 1 (VMX) or 2 (SVM), got {vendor}")


def handler_name(vendor: int, code: int) -> str:
    """Return the VMX-style name under which the handler of an exit is priced, on either vendor.

    An SVM reason whose work no VMX exit does keeps the kernel's name.

    Raises:
        ValueError: The vendor is neither VMX nor SVM.

    """
    if is_dr_access(vendor, code):
        return DR_ACCESS
    if vendor == VENDOR_VMX:
        return _vmx_name(code & VMX_BASIC_REASON)
    return _SVM_HANDLERS.get(_svm_code(code)) or reason_name(vendor, code)


def _vmx_name(code: int) -> str:
    """Return the name of the reason proper, then its flags, as the tracepoint prints them."""
    reason = code & VMX_BASIC_REASON
    names = [VMX_EXIT_REASONS.get(reason, _hex(reason))]
    if code & VMX_FLAG_FAILED_VMENTRY:
        names.append("FAILED_VMENTRY")
    if other_flags := code & ~(VMX_BASIC_REASON | VMX_FLAG_FAILED_VMENTRY):
        names.append(_hex(other_flags))
    return " ".join(names)


def _svm_code(code: int) -> int:
    """Return the code in the 32 bits of the contract: -1 may come signed or in 64 bits."""
    return SVM_ERR if code in (-1, 2**64 - 1) else code


def _hex(code: int) -> str:
    """Return a code as the kernel's ``0x%lx`` prints it."""
    return hex(code & (2**64 - 1))
