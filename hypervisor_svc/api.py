"""What the author of a policy imports, and all that he needs to ([docs/writing-a-policy.md]).

A policy is a class derived from ``Policy``, with a name and ``api_version = 1``. Names that are here keep
their meaning as long as ``API_VERSION`` is the same; the modules that they come from may change.
"""

from typing import Final

from exitlab.debugreg import VECTOR_AC, VECTOR_DB, VECTOR_GP, VECTOR_MC, VECTOR_UD
from hypervisor_svc.engine.profile import FAST, HEAVY, LIGHT, ClassRule
from hypervisor_svc.engine.vocabulary import (
    Action,
    Check,
    Control,
    Debugger,
    Deviation,
    Operations,
    Quirk,
    RegisterClass,
)
from hypervisor_svc.policies.base import SVM, VMX, Declared, Do, NoMemory, Policy, Sees, Vendor, do

API_VERSION: Final = 1

__all__ = [
    "API_VERSION",
    "FAST",
    "HEAVY",
    "LIGHT",
    "SVM",
    "VECTOR_AC",
    "VECTOR_DB",
    "VECTOR_GP",
    "VECTOR_MC",
    "VECTOR_UD",
    "VMX",
    "Action",
    "Check",
    "ClassRule",
    "Control",
    "Debugger",
    "Declared",
    "Deviation",
    "Do",
    "NoMemory",
    "Operations",
    "Policy",
    "Quirk",
    "RegisterClass",
    "Sees",
    "Vendor",
    "do",
]
