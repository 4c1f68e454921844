"""The versions of KVM as data: a fact a field, and each version as what it changed.

``Era``'s defaults are the facts of 3.14. A version stands for itself and for those up to the next in
``ERAS``; a comment names the first mainline version of a change where that is another one, and "seen"
where only the version itself was read.

Source: Linux ``arch/x86/kvm`` of the versions named; the commits beside the facts.
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from exitlab.debugreg import DR6_BUS_LOCK, DR6_RTM
from hypervisor_svc.engine import profile
from hypervisor_svc.engine.profile import ClassRule
from hypervisor_svc.policies.base import SVM, VMX, Vendor


class Dr6Load(Enum):
    """When the guest's DR6 comes into the processor (SVM: into the VMCB)."""

    NEVER = "never"
    KEPT = "the VMCB's DR6 is the guest's"
    COMMON_ENTRY = "with DR0 to DR3, at every load before the run loop"
    EACH_ENTRY = "in the run loop, at each entry while the window is open"
    ONCE = "once before the run loop, while the window is open"


@dataclass(frozen=True, slots=True)
class Era:
    """What distinguishes the versions of KVM; the defaults are 3.14's."""

    version: str
    summary: str
    wrong_on: tuple[Vendor, ...] = ()  # vendors on which a guest sees more than deviations

    # The window, and what is loaded and saved.
    opens_window: bool = False  # KVM_DEBUGREG_WONT_EXIT
    dr6_load: Dr6Load = Dr6Load.NEVER  # by x86.c and VMX
    svm_dr6_load: Dr6Load = Dr6Load.KEPT
    recomputes_after_save: bool = False  # kvm_update_dr7 after the registers are saved
    save_overrides_debugger: bool = False  # eff_db := db when they are saved, whoever owns breakpoints
    refreshes_effective: bool = False  # eff_db := db when registers are set from outside
    remembers_reload: bool = False  # KVM_DEBUGREG_RELOAD, set with eff_db and cleared by a load
    masks_host_dr7: bool = False  # DR7 off on entries that load nothing, if the host has breakpoints
    vmx_resets_dr6_after_save: bool = False
    resets_dr6_at_put: bool = False  # kvm_arch_vcpu_put writes DR6
    caches_controls: bool = False  # VMX: else execution controls are read before they are written
    vmx_fast_exits: tuple[ClassRule, ...] = ()  # handled inside the run loop
    svm_fast_exits: tuple[ClassRule, ...] = ()

    # Exit handlers and emulation.
    tests_existence_first: bool = False  # kvm_require_dr opens handle_dr, after the qualification is read
    gd_clears_trap_bits: bool = False  # VMX: general detect clears B0 to B3
    clears_gd_at_injection: bool = False  # of every #DB; else handle_dr clears it
    vmx_truncates_operand: bool = False  # to 32 bits outside 64-bit mode
    svm_truncates_operand: bool = False
    svm_heeds_faults: bool = False  # kvm_complete_insn_gp; else the instruction is skipped all the same
    svm_intercepts_db: bool = False
    emulated_dr6_features: int = 0  # bits of DR6 that kvm_set_dr lets a guest write that has the feature
    emulates_dr7_rtm: bool = False  # DR7_VOLATILE has bit 11
    skips_int1: bool = False  # VMX: an INT1 that exits is moved over

    # What a host debugger is told, and nested guests.
    stop_lacks_rtm: bool = False  # VMX: DR6_FIXED_1 without bit 16 is merged in
    vmx_tells_gd: bool = False  # general detect with its own DR6; else with arch.dr6
    svm_tells_db: bool = False  # DR6 and DR7 are filled in
    heeds_nested_controls: bool = False  # VMX: L1 may leave the debug controls off for a nested guest

    # Not in any kernel: an idea of the mail of 9 March 2014.
    skips_debug_controls: bool = False


_FAST_MSRS: Final = (profile.SUB_TSC_DEADLINE, profile.SUB_X2APIC_ICR)
# vmx_exit_handlers_fastpath from 5.8: MSR_WRITE and PREEMPTION_TIMER. Assumed: they always re-enter.
_VMX_FAST_5_8: Final = (
    *(ClassRule(32, sub, profile.FAST) for sub in _FAST_MSRS),
    ClassRule(52, None, profile.FAST),
)
# svm_exit_handlers_fastpath: from 5.12 vcpu_enter_guest goes round the loop on SVM too. Assumed as above.
_SVM_FAST_5_12: Final = tuple(ClassRule(0x7C, sub, profile.FAST) for sub in _FAST_MSRS)
# 7.1: HLT and INVD too. Assumed: the HLT finds an interrupt pending; one that sleeps leaves the loop,
# which its event can say by its class.
_VMX_FAST_7_1: Final = (*_VMX_FAST_5_8, *(ClassRule(code, None, profile.FAST) for code in (12, 13)))
_SVM_FAST_7_1: Final = (*_SVM_FAST_5_12, *(ClassRule(code, None, profile.FAST) for code in (0x78, 0x76)))


ERA_3_14: Final = Era("3.14", "every MOV DR exits and is emulated")
ERA_3_15: Final = replace(
    ERA_3_14,
    version="3.15",
    summary="the first MOV DR exits, the rest run free; misses breakpoints (fixed in 4.6)",
    wrong_on=(VMX, SVM),
    # c77fb5fe6f03, 81908bf44340, facb01396989
    opens_window=True,
    dr6_load=Dr6Load.COMMON_ENTRY,
    save_overrides_debugger=True,
)
ERA_4_4: Final = replace(
    ERA_3_15,
    version="4.4",
    summary="like 3.15, and loads at once what is set from outside; misses breakpoints (fixed in 4.6)",
    refreshes_effective=True,  # ae561edeb421, 4.1
    remembers_reload=True,
    skips_int1=True,  # 3.16
    # 3.17, seen in 3.19
    tests_existence_first=True,
    gd_clears_trap_bits=True,
    clears_gd_at_injection=True,
    vmx_truncates_operand=True,
    emulated_dr6_features=DR6_RTM,
    emulates_dr7_rtm=True,
    stop_lacks_rtm=True,
    heeds_nested_controls=True,  # 2996fca0690f
    svm_intercepts_db=True,  # for CVE-2015-8104
)
ERA_4_6: Final = replace(
    ERA_4_4,
    version="4.6",
    summary="the first MOV DR exits, the rest run free; whether a breakpoint is enabled is worked out anew",
    wrong_on=(),
    recomputes_after_save=True,  # 70e4da7a8ff6
    save_overrides_debugger=False,  # kvm_update_dr0123
)
ERA_5_4: Final = replace(
    ERA_4_6,
    version="5.4",
    summary="like 4.6, with execution controls cached and DR6 cleared when the vCPU is put",
    resets_dr6_at_put=True,  # efdab992813f, 4.16
    caches_controls=True,
)
ERA_5_7: Final = replace(
    ERA_5_4,
    version="5.7",
    summary="like 5.4, with the guest's DR6 kept apart from the VMCB's",
    svm_dr6_load=Dr6Load.ONCE,  # d67668e9dd76; in svm_vcpu_run, which is not yet called in a loop
    stop_lacks_rtm=False,
    vmx_tells_gd=True,
    svm_tells_db=True,
)
ERA_5_14: Final = replace(
    ERA_5_7,
    version="5.14",
    summary="like 5.7, with fast exits; on SVM they lose a DR6 written in the window (fixed in 6.14)",
    wrong_on=(SVM,),
    svm_dr6_load=Dr6Load.EACH_ENTRY,  # the loop is common to both vendors from 5.12 on
    vmx_fast_exits=_VMX_FAST_5_8,
    svm_fast_exits=_SVM_FAST_5_12,
    masks_host_dr7=True,
    svm_heeds_faults=True,  # 5.12
    emulated_dr6_features=DR6_RTM | DR6_BUS_LOCK,  # 5.12
    svm_truncates_operand=True,  # 5.13
)
ERA_5_17: Final = replace(
    ERA_5_14,
    version="5.17",
    summary="loads DR6 at each entry, so that fast exits lose one written in the window (fixed in 6.14)",
    wrong_on=(VMX, SVM),
    dr6_load=Dr6Load.EACH_ENTRY,  # 375e28ffc0cf
    remembers_reload=False,  # 34e9f860071f
    vmx_resets_dr6_after_save=True,
    resets_dr6_at_put=False,
)
ERA_6_8: Final = replace(ERA_5_17, version="6.8")
ERA_6_14: Final = replace(
    ERA_6_8,
    version="6.14",
    summary="the first MOV DR exits, the rest run free until the next slow exit",
    wrong_on=(),
    # c2fee09fc167
    dr6_load=Dr6Load.ONCE,
    svm_dr6_load=Dr6Load.ONCE,
)
ERA_6_14_SKIP: Final = replace(
    ERA_6_14,
    version="6.14-skip-debug-controls",
    summary="6.14 that leaves the debug controls alone while DR7 and DEBUGCTL are the host's 0x400 and 0",
    skips_debug_controls=True,
)
ERA_7_1: Final = replace(
    ERA_6_14,
    version="7.1",
    summary="like 6.14, with more fast exits",
    vmx_fast_exits=_VMX_FAST_7_1,
    svm_fast_exits=_SVM_FAST_7_1,
)
ERAS: Final = (
    ERA_3_14,
    ERA_3_15,
    ERA_4_4,
    ERA_4_6,
    ERA_5_4,
    ERA_5_7,
    ERA_5_14,
    ERA_5_17,
    ERA_6_8,
    ERA_6_14,
    ERA_6_14_SKIP,
    ERA_7_1,
)
