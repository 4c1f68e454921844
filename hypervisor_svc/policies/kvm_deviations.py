"""How versions of KVM differ from the processor: quirks of emulation, and deviations that a guest may see.

Each hangs on a fact of its own of the version. Accesses are emulated on 3.14, and on later versions
while a host debugger is attached.

Known and not modelled, each read in the source and untested:

- SVM up to 5.6: a DR6 that the guest writes while a debugger has hardware breakpoints is lost when the
  debugger leaves. ``kvm_set_dr`` puts it into ``arch.dr6`` alone then, and later reads come from the
  VMCB. Here it stays. The actions could do it, but no rule of ``Deviation`` declares what is read then.
- VMX from 5.12 on: a debug exception that exits sets bit 11 of DR6, which a guest that has bus-lock
  detection may have cleared (``kvm_deliver_exception_payload`` ORs DR6_ACTIVE_LOW; on SVM it does so
  while no window is open, inferred). Here bit 11 stays.
- VMX up to 3.16: such an exception does not set DR6's RTM bit (``handle_exception`` ORs the
  qualification alone). Here it does.

Merging a debug exception is the loop's, which does it alike for every policy.

Source: Linux ``arch/x86/kvm`` of the versions named, read; where nobody tested it, the entry says so.
"""

from typing import Final

from hypervisor_svc.engine.vocabulary import Deviation, Quirk
from hypervisor_svc.policies.base import Declared
from hypervisor_svc.policies.kvm_eras import Era

_READ: Final = "read in the source, not tested on it"


def quirks(era: Era, *, is_svm: bool) -> Quirk:
    """Return how an era's emulation differs from the processor on a vendor."""
    if is_svm:
        applies = {
            Quirk.FULL_OPERAND: not era.svm_truncates_operand,
            Quirk.SKIPS_ON_FAULT: not era.svm_heeds_faults,
            Quirk.STOP_UNWRITTEN: not era.svm_tells_db,
        }
    else:
        applies = {
            Quirk.GD_KEEPS_TRAP_BITS: not era.gd_clears_trap_bits,
            Quirk.DB_KEEPS_GD: not era.clears_gd_at_injection,
            Quirk.FULL_OPERAND: not era.vmx_truncates_operand,
            Quirk.STOP_WITHOUT_RTM: era.stop_lacks_rtm,
            Quirk.STOP_SHOWS_SHADOW: not era.vmx_tells_gd,
            Quirk.INT1_NOT_SKIPPED: not era.skips_int1,
            Quirk.NESTED_NEEDS_CONTROLS: not era.heeds_nested_controls,
        }
    found = Quirk(0)
    for quirk, does_apply in applies.items():
        found |= quirk if does_apply else Quirk(0)
    return found


def deviations(era: Era, *, is_svm: bool, has_other_masks: bool) -> tuple[Declared, ...]:
    """Return what an era declares on a vendor, for a guest CPU whose masks it may not know all of."""
    both = (
        (has_other_masks, _MASKS),
        (True, _RAW),
        (not era.refreshes_effective, _STALE),
        (True, _IO),
        (era.opens_window, _OPEN_SURVIVES),
    )
    vmx = (
        (not era.tests_existence_first, _CHECK_ORDER),
        (not era.gd_clears_trap_bits, _GD_TRAP_BITS),
        (not era.clears_gd_at_injection, _DB_KEEPS_GD),
        (not era.vmx_truncates_operand, _VMX_OPERAND),
        (True, _INT1 if era.clears_gd_at_injection else _INT1_KEEPS_GD),
    )
    svm = (
        (not era.svm_truncates_operand, _SVM_OPERAND),
        (not era.svm_heeds_faults, _SKIPS),
        (not era.svm_intercepts_db, _SHADOW_GD),
    )
    return tuple(declared for applies, declared in (*both, *(svm if is_svm else vmx)) if applies)


_MASKS: Final = Declared(
    Deviation.EMULATED_MASKS,
    "an emulated write cannot set what KVM does not know: bit 11 of DR7 and DR6's RTM up to 3.16, DR6's "
    "bus-lock bit up to 5.11",
    "kvm_host.h DR7_VOLATILE, DR6_VOLATILE, DR6_FIXED_1; " + _READ,
)
_RAW: Final = Declared(
    Deviation.RAW_READS,
    "an emulated read of DR6 or DR7 shows what KVM_SET_DEBUGREGS stored, without the fixed bits",
    "kvm_vcpu_ioctl_x86_set_debugregs, kvm_get_dr; measured on the emulator of 6.18",
)
_STALE: Final = Declared(
    Deviation.STALE_EFFECTIVE,
    "addresses set by KVM_SET_DEBUGREGS or a reset reach the hardware only once the guest writes them itself",
    "kvm_vcpu_ioctl_x86_set_debugregs up to 4.0 leaves eff_db; fixed by ae561edeb421",
)
_IO: Final = Declared(
    Deviation.IO_BREAKPOINT,
    "an I/O instruction exits and is emulated, and KVM looks for no I/O breakpoint",
    "handle_io, io_interception, kvm_vcpu_check_code_breakpoint of every version; " + _READ,
)
_OPEN_SURVIVES: Final = Declared(
    Deviation.OPEN_SURVIVES_DEBUGGER,
    "a window that is about to open stays so when a debugger takes over: the guest reads its registers",
    "kvm_arch_vcpu_ioctl_set_guest_debug leaves KVM_DEBUGREG_WONT_EXIT, up to 7.1; " + _READ,
)
_CHECK_ORDER: Final = Declared(
    Deviation.CHECK_ORDER,
    "CPL and general detect are tested before #UD of DR4 and DR5",
    "handle_dr up to 3.16",
)
_GD_TRAP_BITS: Final = Declared(
    Deviation.GD_KEEPS_TRAP_BITS,
    "an emulated general-detect exception leaves B0 to B3 of DR6 set",
    "handle_dr up to 3.16: dr6 |= BD",
)
_DB_KEEPS_GD: Final = Declared(
    Deviation.DB_KEEPS_GD,
    "a debug exception that exits does not clear DR7.GD, so the handler's first MOV DR faults again",
    "handle_exception up to 3.16; " + _READ,
)
_VMX_OPERAND: Final = Declared(
    Deviation.FULL_OPERAND,
    "an emulated write outside 64-bit mode takes the register's high half too",
    "handle_dr up to 3.16 reads the whole register; " + _READ,
)
_SVM_OPERAND: Final = Declared(
    Deviation.FULL_OPERAND,
    "an emulated write outside 64-bit mode takes the register's high half too",
    "dr_interception up to 5.12: kvm_register_read; " + _READ,
)
_INT1: Final = Declared(
    Deviation.INT1_AS_DB,
    "INT1 exits as a #DB without a cause, and its delivery clears B0 to B3 of DR6 and DR7.GD",
    "handle_exception, kvm_deliver_exception_payload, inject_pending_event",
)
_INT1_KEEPS_GD: Final = Declared(
    Deviation.INT1_AS_DB,
    "INT1 exits as a #DB without a cause, and its delivery clears B0 to B3 of DR6; it is not moved over",
    "handle_exception up to 3.15",
)
_SKIPS: Final = Declared(
    Deviation.SKIPS_ON_FAULT,
    "an emulated write whose high bits fault is skipped all the same",
    "dr_interception up to 5.11 ignores kvm_set_dr's result",
)
_SHADOW_GD: Final = Declared(
    Deviation.SHADOW_KEEPS_GD,
    "the processor clears DR7.GD without an exit, and emulated reads still show it",
    "svm.c does not intercept #DB up to 4.3; inferred from the source",
)
