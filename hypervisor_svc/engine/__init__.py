"""The engine: one stream of events under many policies, compared with the architecture.

``oracle`` holds the loop, ``records`` the layout of its state, ``vocabulary`` the words it shares
with policies, ``tables`` the policies as arrays, ``profile`` what exits, ``lane`` and ``engine`` what
runs it, ``report`` what comes out. Policies and prices are handed in: nothing here knows one.
"""

from hypervisor_svc.engine.engine import ENGINE_FINGERPRINT, Engine, EngineConfig, LaneSpec, ReferenceKey
from hypervisor_svc.engine.lane import EngineError
from hypervisor_svc.engine.tables import BadTable
from hypervisor_svc.engine.validation import BadEvents

__all__ = [
    "ENGINE_FINGERPRINT",
    "BadEvents",
    "BadTable",
    "Engine",
    "EngineConfig",
    "EngineError",
    "LaneSpec",
    "ReferenceKey",
]
