"""The demonstration: the seed workload, a recorded Linux guest, two owners of one CPU, what they show."""

from collections.abc import Callable
from typing import Final

from exitlab.v1 import policy_pb2
from guest_svc import render, run, sources
from guest_svc.hypervisor import Hypervisor
from guest_svc.render_words import wrapped
from guest_svc.results import Document

RECORDED: Final = "capture:ctxsw-dr4"
_PRICES: Final = ("seed-2014",)
_COMPARED: Final = ("kvm-3.14", "kvm-6.14", "swap-each-entry", "ignore")
_SHARING: Final = ("kvm-6.14", "swap-each-entry", "ignore")


def demonstrate(hypervisor: Hypervisor, write: Callable[[str], None]) -> None:
    """Run the three comparisons, write each one's table, then what was found in plain sentences."""
    write("1. The workload of the 2014 mail: a guest that switches its debug registers with every task\n\n")
    seed = _compare(hypervisor, "context-switch", {}, _COMPARED)
    write(render.lane_table(seed) + "\n\n")
    write("2. A recorded Linux guest: two processes, four breakpoints each, 40,000 switches\n\n")
    recorded = _compare(hypervisor, RECORDED, {}, _COMPARED)
    write(render.lane_table(recorded) + "\n\n")
    write("3. Two vCPUs with breakpoints on one physical CPU\n\n")
    sharing = {"vcpus": "2", "physical_cpus": "1", "fetches": "1"}
    shared = _compare(hypervisor, "context-switch", sharing, _SHARING)
    write(render.lane_table(shared) + "\n\n" + render.key(shared) + "\n\n")
    idle = _compare(hypervisor, "idle", {}, _SHARING)
    found = (*_seed_found(seed), *_idle_found(idle), *_recorded_found(recorded), *_shared_found(shared))
    write("What was found\n")
    for sentence in found:
        write(wrapped(sentence, "- ") + "\n")


def _compare(
    hypervisor: Hypervisor, source: str, parameters: dict[str, str], policies: tuple[str, ...]
) -> Document:
    workload = sources.open_source(sources.SourceChoice(source=source, parameters=parameters))
    return run.compare(hypervisor, workload, run.Plan(policies, policy_pb2.VENDOR_VMX, _PRICES))


def _lanes(document: Document) -> dict[str, Document]:
    return {lane["policy"]: lane for lane in document["lanes"]}


def _seed_found(document: Document) -> list[str]:
    lanes = _lanes(document)
    trapped, lazy, swapped = (lanes[name] for name in _COMPARED[:3])
    key = "throughput_loss_against_ignore"
    return [
        "The prices are chosen so that the mail's arithmetic holds (hypervisor-svc prices says how); what "
        "follows from them is:",
        f"Against ignoring MOV DR, intercepting every access (kvm-3.14) costs the guest {trapped[key]:.1%} "
        f"of its throughput: {trapped['exits']['DR_ACCESS']:,} exits for as many MOV DR.",
        f"Letting it run with its own registers until the next exit (kvm-6.14) gives all but {lazy[key]:.1%} "
        f"back: {lazy['exits']['DR_ACCESS']:,} exits, {lazy['rates']['dr_access_per_wall_second']:,.0f} a "
        "wall second.",
        f"Switching all six at every entry and exit (swap-each-entry) costs {swapped[key]:.1%} here.",
    ]


def _idle_found(document: Document) -> list[str]:
    lanes = _lanes(document)
    swapped, lazy = lanes["swap-each-entry"], lanes["kvm-6.14"]
    entries = sum(swapped["exits_by_class"].values())
    kept = lazy["cost"]["synchronization"] + lazy["cost"]["standing"]
    share = swapped["cost"]["standing"] / max(1, swapped["overhead_cycles"])
    return [
        f"On an idle guest that never touches a debug register, {share:.0%} of swap-each-entry's overhead "
        f"is register upkeep ({swapped['cost']['standing']:,} cycles on {entries:,} exits); kvm-6.14 spends "
        f"{kept:,} cycles on it."
    ]


def _recorded_found(document: Document) -> list[str]:
    lanes = _lanes(document)
    lazy = lanes["kvm-6.14"]
    return [
        f"On the recorded Linux guest, {lazy['mov_dr']['executed']:,} MOV DR cost kvm-3.14 "
        f"{lanes['kvm-3.14']['exits']['DR_ACCESS']:,} exits and kvm-6.14 {lazy['exits']['DR_ACCESS']:,}: "
        "it has hardly any other exits, so a window stays open for thousands of accesses. (One cycle an "
        "instruction is assumed, so the shares of time above are upper bounds; --cpi changes it.)"
    ]


def _shared_found(document: Document) -> list[str]:
    found = [sentence for sentence in render.findings(document) if " is wrong" in sentence]
    right = [lane["policy"] for lane in document["lanes"] if lane["story"]["same_as_reference"]]
    return [f"With two vCPUs on one CPU, {' and '.join(right)} still tell the architecture's story.", *found]
