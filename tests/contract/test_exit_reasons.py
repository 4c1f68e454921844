"""Names and numbers of exit reasons."""

from collections.abc import Callable

import pytest

from exitlab import exit_reasons
from exitlab.exit_reasons import VENDOR_SVM, VENDOR_VMX, handler_name, is_dr_access, reason_name
from exitlab.v1 import policy_pb2

# Source: VMX_EXIT_REASONS and SVM_EXIT_REASONS of Linux 7.1.5.
NAMES = [
    (VENDOR_VMX, 0, "EXCEPTION_NMI"),
    (VENDOR_VMX, 1, "EXTERNAL_INTERRUPT"),
    (VENDOR_VMX, 6, "0x6"),  # OTHER_SMI is defined and not named
    (VENDOR_VMX, 7, "INTERRUPT_WINDOW"),
    (VENDOR_VMX, 10, "CPUID"),
    (VENDOR_VMX, 12, "HLT"),
    (VENDOR_VMX, 28, "CR_ACCESS"),
    (VENDOR_VMX, 29, "DR_ACCESS"),
    (VENDOR_VMX, 30, "IO_INSTRUCTION"),
    (VENDOR_VMX, 32, "MSR_WRITE"),
    (VENDOR_VMX, 48, "EPT_VIOLATION"),
    (VENDOR_VMX, 49, "EPT_MISCONFIG"),
    (VENDOR_VMX, 0x4C, "0x4c"),  # SEAMCALL is defined and not named
    (VENDOR_VMX, 85, "MSR_WRITE_IMM"),
    (VENDOR_VMX, 5, "0x5"),
    (VENDOR_VMX, 0xFFFF, "0xffff"),
    (VENDOR_VMX, 0x8000_0021, "INVALID_STATE FAILED_VMENTRY"),
    (VENDOR_VMX, 0x0800_0001, "EXTERNAL_INTERRUPT 0x8000000"),
    (VENDOR_VMX, 0x8800_00FE, "0xfe FAILED_VMENTRY 0x8000000"),
    (VENDOR_SVM, 0x00, "read_cr0"),
    (VENDOR_SVM, 0x01, "0x1"),
    (VENDOR_SVM, 0x18, "write_cr8"),
    (VENDOR_SVM, 0x20, "DR_ACCESS"),
    (VENDOR_SVM, 0x27, "DR_ACCESS"),
    (VENDOR_SVM, 0x28, "0x28"),
    (VENDOR_SVM, 0x30, "DR_ACCESS"),
    (VENDOR_SVM, 0x37, "DR_ACCESS"),
    (VENDOR_SVM, 0x41, "DB excp"),
    (VENDOR_SVM, 0x42, "0x42"),
    (VENDOR_SVM, 0x4C, "SS excp"),
    (VENDOR_SVM, 0x60, "interrupt"),
    (VENDOR_SVM, 0x69, "read_rt"),
    (VENDOR_SVM, 0x78, "hlt"),
    (VENDOR_SVM, 0x7B, "io"),
    (VENDOR_SVM, 0x81, "hypercall"),
    (VENDOR_SVM, 0x8C, "0x8c"),
    (VENDOR_SVM, 0xA6, "idle-halt"),
    (VENDOR_SVM, 0x400, "npf"),
    (VENDOR_SVM, 0xF000_0000, "0xf0000000"),
    (VENDOR_SVM, 0xFFFF_FFFF, "invalid_guest_state"),
    (VENDOR_SVM, -1, "invalid_guest_state"),
    (VENDOR_SVM, 2**64 - 1, "invalid_guest_state"),
]


@pytest.mark.parametrize(("vendor", "code", "name"), NAMES)
def test_a_reason_is_called_as_the_kernel_prints_it(vendor: int, code: int, name: str) -> None:
    """A reason has the kernel's name, and hex where the kernel has none; flags follow it."""
    assert reason_name(vendor, code) == name


@pytest.mark.parametrize("sub_reason", policy_pb2.SubReason.values())
def test_a_sub_reason_changes_no_name(sub_reason: int) -> None:
    """The kernel prints one name for all of a reason."""
    assert reason_name(VENDOR_VMX, 32, sub_reason) == "MSR_WRITE"


def test_every_mov_dr_exit_and_no_other_is_dr_access() -> None:
    """One reason of VMX and 16 of SVM are MOV DR exits, and exactly those are called DR_ACCESS."""
    dr_exits = {
        vendor: {code for code in range(0x500) if is_dr_access(vendor, code)}
        for vendor in (VENDOR_VMX, VENDOR_SVM)
    }
    called = {
        vendor: {code for code in range(0x500) if reason_name(vendor, code) == "DR_ACCESS"}
        for vendor in (VENDOR_VMX, VENDOR_SVM)
    }
    assert dr_exits == called == {VENDOR_VMX: {29}, VENDOR_SVM: {*range(0x20, 0x28), *range(0x30, 0x38)}}


def test_a_failed_entry_is_no_mov_dr_exit() -> None:
    """A failed VM entry never ran the guest; an enclave's flag changes nothing."""
    assert not is_dr_access(VENDOR_VMX, 0x8000_001D)
    assert reason_name(VENDOR_VMX, 0x8000_001D) == "DR_ACCESS FAILED_VMENTRY"
    assert is_dr_access(VENDOR_VMX, 0x0800_001D)


@pytest.mark.parametrize("vendor", [VENDOR_VMX, VENDOR_SVM])
def test_no_two_codes_share_a_name(vendor: int) -> None:
    """MOV DR apart, names tell reasons apart, unnamed ones too."""
    codes = [*range(0x500), *exit_reasons.SVM_EXIT_REASONS]
    names = [reason_name(vendor, code) for code in sorted(set(codes)) if not is_dr_access(vendor, code)]
    assert len(set(names)) == len(names)


# What the exit of each SVM code does, by the reason under which VMX does it.
HANDLERS = [
    (0x00, "CR_ACCESS"),
    (0x33, "DR_ACCESS"),
    (0x41, "EXCEPTION_NMI"),
    (0x46, "EXCEPTION_NMI"),
    (0x5F, "EXCEPTION_NMI"),  # an exception that the kernel does not name
    (0x60, "EXTERNAL_INTERRUPT"),
    (0x61, "EXCEPTION_NMI"),
    (0x64, "INTERRUPT_WINDOW"),
    (0x72, "CPUID"),
    (0x78, "HLT"),
    (0x7B, "IO_INSTRUCTION"),
    (0x7C, "MSR_WRITE"),
    (0x81, "VMCALL"),
    (0x88, "EXCEPTION_NMI"),
    (0x89, "WBINVD"),
    (0x8A, "MONITOR_INSTRUCTION"),
    (0x8D, "XSETBV"),
    (0x400, "EPT_VIOLATION"),
    (-1, "INVALID_STATE"),
    (0x403, "vmgexit"),  # nothing like it on VMX
    (0x60000, "0x60000"),
]


@pytest.mark.parametrize(("code", "name"), HANDLERS)
def test_an_svm_exit_has_the_handler_of_its_vmx_twin(code: int, name: str) -> None:
    """One handler price serves both vendors."""
    assert handler_name(VENDOR_SVM, code) == name


def test_a_vmx_handler_is_called_as_its_reason_without_flags() -> None:
    """Flags belong to the exit, not to the work that follows."""
    for code, name in exit_reasons.VMX_EXIT_REASONS.items():
        assert handler_name(VENDOR_VMX, code) == name
    assert handler_name(VENDOR_VMX, 0x8000_0021) == "INVALID_STATE"
    assert handler_name(VENDOR_VMX, 0x4C) == "0x4c"


def test_every_named_handler_can_be_priced() -> None:
    """Whatever named reason exits, its handler is among the names that a price list may use."""
    tables = ((VENDOR_VMX, exit_reasons.VMX_EXIT_REASONS), (VENDOR_SVM, exit_reasons.SVM_EXIT_REASONS))
    handlers = {handler_name(vendor, code) for vendor, table in tables for code in table}
    assert handlers == exit_reasons.HANDLER_NAMES


def test_vendors_are_numbered_as_in_the_contract() -> None:
    """The plain numbers here are those of the contract's Vendor."""
    assert (VENDOR_VMX, VENDOR_SVM) == (policy_pb2.VENDOR_VMX, policy_pb2.VENDOR_SVM)


@pytest.mark.parametrize("function", [reason_name, is_dr_access, handler_name])
def test_an_unknown_vendor_is_refused(function: Callable[[int, int], object]) -> None:
    """Numbers mean nothing without a vendor."""
    with pytest.raises(ValueError, match=r"vendor is 1 .* or 2"):
        function(0, 29)
