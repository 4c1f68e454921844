"""Xen PV: every access enters Xen, which keeps a shadow and writes through to the hardware.

A paravirtualized kernel runs deprivileged, so its MOV DR is a #GP (or a hypercall takes its place), and
every exception enters Xen. A write of DR0 to DR3, DR6 or DR7 goes to the hardware at once; the one that
makes DR7 active loads all. Scheduled out, only DR7 is cleared; in, all six are written if DR7 is active.

Source: Xen ``set_debugreg``, ``activate_debugregs``, ``x86emul_read_dr``, ``paravirt_ctxt_switch_from``,
``paravirt_ctxt_switch_to``, ``do_debug``. PV needs no virtualization extension: it is modelled on Intel
(on AMD activation writes four address-mask MSRs more).
Priced so: LOAD_DR0_3 stands for the one register that was written, EFFECTIVE_RAW for the other three.
Not modelled: the refusal of a DR7 with GD, or with an I/O breakpoint while CR4.DE is clear (#GP; here
GD is dropped), and of addresses in Xen's range; registers set from outside are canonical in Xen. DR7
stays loaded while Xen runs. Not verified: exit classes, those of kvm-default; nothing depends on them.
"""

from enum import IntEnum
from types import MappingProxyType

from exitlab import debugreg
from hypervisor_svc.engine.vocabulary import (
    NO_OPERATIONS,
    Action,
    Check,
    Control,
    Deviation,
    Operations,
    Quirk,
    RegisterClass,
)
from hypervisor_svc.policies.base import Declared, Do, Policy, Sees, Vendor, do
from hypervisor_svc.policies.common import EVERY_EXCEPTION, INT1_EXITS, LOAD, RAW_READS

_ACTIVATE = (*LOAD, Action.EFFECTIVE_RAW)
_WRITE_DR7 = (Action.LOAD_DR7, Action.DR7_ON)


class Place(IntEnum):
    """Whether the hardware holds all six of the guest's registers."""

    SHADOW = 0
    HARDWARE = 1


class XenPv(Policy):
    """Xen PV."""

    name = "xen-pv"
    summary = "a paravirtualized kernel: every access enters Xen, which writes through"
    source = "Xen set_debugreg, activate_debugregs, paravirt_ctxt_switch_from"
    memories = Place
    check_order = (Check.GP, Check.UD)  # GD cannot be set
    intercepted_exceptions = EVERY_EXCEPTION
    quirks = Quirk.MATCHES_IO
    refuses_host_breakpoints = True  # Xen uses no debug registers itself
    costs = MappingProxyType(
        {
            Action.LOAD_DR0_3: Operations(dr_writes=1),
            Action.EFFECTIVE_RAW: Operations(dr_writes=3),
            Action.LOAD_DR7: NO_OPERATIONS,
        }
    )
    deviations = (
        INT1_EXITS,
        RAW_READS,
        Declared(
            Deviation.CHECK_ORDER,
            "the privilege level is tested before #UD of DR4 and DR5, and general detect never",
            "x86_emulate, set_debugreg; read in the source, not tested",
        ),
        Declared(
            Deviation.EMULATED_MASKS,
            "DR7.GD cannot be set, nor bit 11 where the guest has no RTM",
            "set_debugreg, x86_adj_dr7_rsvd; read in the source, not tested",
        ),
    )

    def __init__(self, vendor: Vendor, *, dr6_writable: int) -> None:
        """Make the policy; ``dr6_writable`` is what the guest CPU's features allow."""
        self.vendor = vendor
        self.emulated_dr6_writable = dr6_writable
        self.emulated_dr6_fixed = debugreg.DR6_RESET & ~dr6_writable
        refused = debugreg.DR7_GD | (0 if dr6_writable & debugreg.DR6_RTM else debugreg.DR7_RTM)
        self.emulated_dr7_writable = debugreg.DR7_WRITABLE & ~refused

    def enter_session(self, sees: Sees) -> Do | None:
        """Write all six for a vCPU that comes in with a breakpoint enabled."""
        if sees.memory == Place.SHADOW and sees.shadow_enables:
            return do(_ACTIVATE, _WRITE_DR7, memory=Place.HARDWARE)
        return None

    def lose_residence(self, sees: Sees) -> Do | None:
        """Clear DR7; the shadow has the rest."""
        return do(Action.DR7_OFF, memory=Place.SHADOW) if sees.memory == Place.HARDWARE else None

    def dr_trapped(self, sees: Sees) -> Do | None:
        """Fault, or do it on the shadow and write through."""
        if sees.check is not Check.NONE:
            return do(Action.INJECT)
        if not sees.is_write:
            return do(Action.EMULATE)
        if sees.register_class is RegisterClass.ADDRESS:
            return do(Action.EMULATE, Action.LOAD_DR0_3)
        if sees.register_class is RegisterClass.STATUS:
            return do(Action.EMULATE, Action.LOAD_DR6)
        if not sees.would_enable:
            return do(Action.EMULATE, _WRITE_DR7, memory=Place.SHADOW)
        activate = () if sees.memory == Place.HARDWARE else _ACTIVATE
        return do(Action.EMULATE, activate, _WRITE_DR7, memory=Place.HARDWARE)

    def db_exit(self, sees: Sees) -> Do | None:  # noqa: ARG002  # answers alike in every state
        """Read the cause, and merge it into the shadow for the exception that is delivered."""
        return do(Action.READ_DR6, Action.MERGE_DB_SHADOW)

    def control_changed(self, sees: Sees) -> Do | None:
        """Take over what was set from outside, for the next time that the vCPU comes in."""
        if sees.control is Control.HOST_BREAKPOINTS:
            return None
        return do(Action.EFFECTIVE, Action.LOAD_DR7, memory=Place.SHADOW)
