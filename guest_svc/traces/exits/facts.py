"""What scripts read of a text trace itself, beside what came of its replay."""

from collections import Counter
from typing import Any

from exitlab.exit_reasons import reason_name
from guest_svc.traces.exits.trace import TextTrace
from guest_svc.traces.exits.vendors import VENDOR_NAMES


def trace_facts(trace: TextTrace) -> dict[str, Any]:
    """Return what is known of a trace once its last block has been taken; ``trace`` in the schema."""
    found, tally = trace.findings, trace.tally
    names = reasons_by_name(trace)
    return {
        "vendor": VENDOR_NAMES[trace.vendor],
        "lines": tally.lines,
        "header_lines": tally.header_lines,
        "call_chain_lines": tally.call_chain_lines,
        "malformed": tally.malformed.document(),
        "negative_times": tally.negative_times,
        "too_long": tally.too_long.document(),
        "cut_lines": tally.cut_lines,
        "lost_events": tally.lost_events,
        "lost_notes": tally.lost_notes,
        "damage": tally.damage or None,
        "exits": names,
        "unknown_reasons": {name: count for name, count in names.items() if name.startswith("0x")},
        "unnamed_reasons": dict(tally.unnamed_reasons),
        "vcpus": [
            member.document(number, trace.thread_names) for number, member in enumerate(trace.roster.members)
        ],
        "physical_cpus": trace.physical_cpus,
        "inferred_moves": found.moves,
        "has_entries": trace.has_entries,
        "time_backwards": found.backwards,
        "exits_without_entry": found.without_entry if trace.has_entries else 0,
        "exits_after_loss": found.after_loss,
        "dr_access": found.hidden.document(),
    }


def reasons_by_name(trace: TextTrace) -> dict[str, int]:
    """Return the exits that became events, by the kernel's names or numbers, the most frequent first."""
    named: Counter[str] = Counter()
    for reason, count in trace.findings.reasons.items():
        named[reason_name(trace.vendor, reason)] += count
    return dict(named.most_common())
