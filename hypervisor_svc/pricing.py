"""From counts to cycles: what each lane of a report costs at a price list.

A lane's report counts how often exits of one reason happened with one pattern of operations. Every
exit of such a row costs the same, so that totals and percentiles follow exactly:

    an exit = transition + handler (+ userspace, if heavy) (- the debug controls, if skipped)
            + accesses clustered with it
            + operations x prices

The first line is ``exit_cycles``. Operations are ``synchronization_cycles`` where they open or close
a window and ``standing_cycles`` otherwise; the three are all of the overhead. Rows that are no exit
count in the totals and in no latency: a vCPU's first entry and the host's own control have operations
only, and a signal has a transition and userspace but no handler.

All arithmetic is in integers.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Final

from exitlab.exit_reasons import handler_name, is_dr_access, reason_name
from exitlab.v1 import policy_pb2, report_pb2

from .prices.lists import (
    HANDLER,
    HANDLER_DEFAULT,
    HANDLER_DR_ACCESS,
    HANDLER_DR_ACCESS_EMULATED,
    BadPrices,
    UnknownPrices,
    price_list,
    price_lists,
    validate,
)

__all__ = ["BadPrices", "UnknownPrices", "figures", "price_list", "price_lists", "validate"]

# Price of each counted operation: field of OperationCounts, component of the list.
_OPERATIONS: Final = (
    ("dr_reads", "dr_read"),
    ("dr_writes", "dr_write"),
    ("vmreads", "vmread"),
    ("vmwrites", "vmwrite"),
    ("msr_accesses", "msr_access"),
)
# Percentiles of the latency table in thousandths: field of Latency, share.
_PERCENTILES: Final = (("p50_cycles", 500), ("p90_cycles", 900), ("p99_cycles", 990), ("p999_cycles", 999))


def figures(report: report_pb2.Report, prices: report_pb2.PriceList) -> list[report_pb2.LaneFigures]:
    """Return the bill of every lane at one price list, in the order of the lanes.

    Raises:
        BadPrices: The list is wrong.
        ValueError: A row of the report has no account, or an exit no class.

    """
    validate(prices)
    cycles = {price.name: price.cycles for price in prices.prices}
    return [_lane_figures(index, lane, prices.name, cycles) for index, lane in enumerate(report.lanes)]


def _lane_figures(
    index: int, lane: report_pb2.LaneReport, prices_name: str, cycles: Mapping[str, int]
) -> report_pb2.LaneFigures:
    bill = report_pb2.LaneFigures(
        prices=prices_name, lane=index, guest_cycles=sum(vcpu.guest_cycles for vcpu in lane.vcpus)
    )
    latencies: dict[str, Counter[int]] = {}
    for row in lane.patterns:
        exit_cycles = _exit_cycles(lane.vendor, row, cycles)
        synchronization_cycles = _operation_cycles(row.synchronization, cycles)
        standing_cycles = _operation_cycles(row.standing, cycles)
        bill.exit_cycles += exit_cycles * row.count
        bill.synchronization_cycles += synchronization_cycles * row.count
        bill.standing_cycles += standing_cycles * row.count
        bill.skipped_controls_cycles += _skipped_cycles(row, cycles) * row.count
        _add_operations(bill.operations, row)
        if row.account == report_pb2.ACCOUNT_EXIT:
            if is_dr_access(lane.vendor, row.reason):
                bill.mov_dr_exit_cycles += exit_cycles * row.count
            reason = reason_name(lane.vendor, row.reason, row.sub_reason)
            latency = exit_cycles + synchronization_cycles + standing_cycles
            latencies.setdefault(reason, Counter())[latency] += row.count
    bill.overhead_cycles = bill.exit_cycles + bill.synchronization_cycles + bill.standing_cycles
    bill.latencies.extend(
        _latency(reason, counts) for reason, counts in sorted(latencies.items()) if counts.total()
    )
    return bill


def _exit_cycles(vendor: int, row: report_pb2.PatternCount, cycles: Mapping[str, int]) -> int:
    """Return what one exit of the row costs before its operations; 0 where there was no exit."""
    if row.account in (report_pb2.ACCOUNT_START, report_pb2.ACCOUNT_HOST):
        return 0
    exit_cycles = cycles["exit_transition"] - _skipped_cycles(row, cycles)
    if row.account == report_pb2.ACCOUNT_SIGNAL:
        return exit_cycles + cycles["userspace_exit"]
    if row.account != report_pb2.ACCOUNT_EXIT:
        raise ValueError(f"a row of exit reason {row.reason} has no account")
    if row.exit_class == policy_pb2.EXIT_CLASS_UNSPECIFIED:
        raise ValueError(f"exit reason {reason_name(vendor, row.reason)} has no class")
    if row.exit_class == policy_pb2.EXIT_CLASS_HEAVY:
        exit_cycles += cycles["userspace_exit"]
    clustered_cycles = row.clustered_accesses * cycles["clustered_access"]
    return exit_cycles + _handler_cycles(vendor, row, cycles) + clustered_cycles


def _handler_cycles(vendor: int, row: report_pb2.PatternCount, cycles: Mapping[str, int]) -> int:
    if is_dr_access(vendor, row.reason):
        return cycles[HANDLER_DR_ACCESS_EMULATED if row.emulated else HANDLER_DR_ACCESS]
    return cycles.get(HANDLER + handler_name(vendor, row.reason), cycles[HANDLER_DEFAULT])


def _skipped_cycles(row: report_pb2.PatternCount, cycles: Mapping[str, int]) -> int:
    """Return what one entry of the row saved by not loading the debug controls.

    The saving is a part of the transition: where none is billed, nothing is saved.
    """
    has_transition = row.account in (report_pb2.ACCOUNT_EXIT, report_pb2.ACCOUNT_SIGNAL)
    return cycles["debug_controls_skip"] if has_transition and row.skipped_debug_controls else 0


def _operation_cycles(counts: policy_pb2.OperationCounts, cycles: Mapping[str, int]) -> int:
    return sum(getattr(counts, field) * cycles[component] for field, component in _OPERATIONS)


def _add_operations(total: policy_pb2.OperationCounts, row: report_pb2.PatternCount) -> None:
    for field, _ in _OPERATIONS:
        each = getattr(row.synchronization, field) + getattr(row.standing, field)
        setattr(total, field, getattr(total, field) + each * row.count)


def _latency(reason: str, counts: Counter[int]) -> report_pb2.Latency:
    """Return the distribution of ``counts``: how many exits took how many cycles.

    A percentile is the smallest latency that at least its share of the exits does not exceed
    (nearest rank), so it is always one that happened.
    """
    exits = counts.total()
    ordered = sorted((latency, count) for latency, count in counts.items() if count)
    latency = report_pb2.Latency(
        reason=reason,
        count=exits,
        total_cycles=sum(cycles * count for cycles, count in ordered),
        min_cycles=ordered[0][0],
        max_cycles=ordered[-1][0],
    )
    for field, thousandths in _PERCENTILES:
        setattr(latency, field, _nearest_rank(ordered, -(-exits * thousandths // 1000)))
    return latency


def _nearest_rank(ordered: list[tuple[int, int]], rank: int) -> int:
    """Return the value at ``rank`` (from 1) of (value, count) pairs in ascending order."""
    at_or_below = 0
    for value, count in ordered:
        at_or_below += count
        if at_or_below >= rank:
            return value
    raise ValueError(f"rank {rank} is above the {at_or_below} values")
