"""The engine: one stream of events under many policies, compared with the architecture.

``truth`` runs the architecture alone. ``oracle`` holds the loop, ``records`` the layout of its state,
``vocabulary`` the words it shares with policies, ``tables`` and ``table_checks`` the policies as arrays,
``profile`` what exits. ``symbols``, ``stretch``, ``states``, ``questions``, ``probe``, ``knowledge``,
``machine`` and ``gang`` say the same as the loop in less time; ``fleet``, ``lane`` and ``engine`` run both,
``report`` is what comes out, and ``snapshot`` what a checkpoint keeps. Policies and prices are handed in:
nothing here knows one.

The names below are found when they are first asked for: a policy needs the vocabulary, and should
not have to wait for the compiler.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from hypervisor_svc.engine.engine import (
        ENGINE_FINGERPRINT,
        Engine,
        EngineConfig,
        LaneSpec,
    )
    from hypervisor_svc.engine.lane import EngineError, PolicyFailed
    from hypervisor_svc.engine.snapshot import BadSnapshot
    from hypervisor_svc.engine.tables import BadTable
    from hypervisor_svc.engine.truth import ReferenceKey
    from hypervisor_svc.engine.validation import BadEvents

__all__ = [
    "ENGINE_FINGERPRINT",
    "BadEvents",
    "BadSnapshot",
    "BadTable",
    "Engine",
    "EngineConfig",
    "EngineError",
    "LaneSpec",
    "PolicyFailed",
    "ReferenceKey",
]

_HOMES: Final = {
    "BadEvents": "validation",
    "BadSnapshot": "snapshot",
    "BadTable": "tables",
    "EngineError": "lane",
    "PolicyFailed": "lane",
    "ReferenceKey": "truth",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'engine')}"), name)
