"""What the service hands out, and hands to its sessions: engine, policies and prices.

The layers above know them by this shape alone, so that a test can hand in others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from exitlab.v1 import hypervisor_pb2, report_pb2
from hypervisor_svc import policies, pricing
from hypervisor_svc.config import CheckTable, ResolvePolicy
from hypervisor_svc.engine import ENGINE_FINGERPRINT, Engine, EngineConfig
from hypervisor_svc.engine.tables import make_table
from hypervisor_svc.engine_like import EngineLike


@dataclass(frozen=True)
class Parts:
    """The engine, the policies and the prices of a server."""

    make_engine: Callable[[hypervisor_pb2.SessionConfig], EngineLike]
    engine_fingerprint: str
    policy_table: ResolvePolicy
    check_table: CheckTable
    policy_summaries: Callable[[], list[hypervisor_pb2.PolicySummary]]
    price_lists: Callable[[], dict[str, report_pb2.PriceList]]
    price_list: Callable[[str], report_pb2.PriceList]
    check_prices: Callable[[report_pb2.PriceList], None]
    figures: Callable[[report_pb2.Report, report_pb2.PriceList], list[report_pb2.LaneFigures]]

    @classmethod
    def installed(cls) -> Self:
        """Return the engine, the policies and the prices of this package."""

        def make_engine(config: hypervisor_pb2.SessionConfig) -> Engine:
            return Engine(EngineConfig.from_proto(config, policies.policy_table))

        return cls(
            make_engine=make_engine,
            engine_fingerprint=ENGINE_FINGERPRINT,
            policy_table=policies.policy_table,
            check_table=make_table,
            policy_summaries=policies.policy_summaries,
            price_lists=pricing.price_lists,
            price_list=pricing.price_list,
            check_prices=pricing.validate,
            figures=pricing.figures,
        )
