"""The JSON object of a run, its schema, and what people read of it."""

import copy
import csv
import io
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import guest_svc
from exitlab.v1 import policy_pb2, report_pb2
from guest_svc import render, render_csv, render_words
from guest_svc.errors import CouldNotFinish
from guest_svc.progress import bar
from guest_svc.results import (
    SourceFacts,
    check_figures,
    check_report,
    compare_document,
    vendor_name,
    vendor_number,
)

VMX, SVM = policy_pb2.VENDOR_VMX, policy_pb2.VENDOR_SVM
CLOCK_HERTZ = 1_000_000
CLOCKS = {"cheap": CLOCK_HERTZ}
SCHEMA = json.loads(Path(guest_svc.__file__).with_name("schema").joinpath("compare.json").read_text("utf-8"))


def exits(reason: int, count: int, account: int = report_pb2.ACCOUNT_EXIT) -> report_pb2.PatternCount:
    """Return a row of a lane's counts."""
    return report_pb2.PatternCount(reason=reason, count=count, account=report_pb2.Account.ValueType(account))


def lane(policy: str, *rows: report_pb2.PatternCount, **fields: Any) -> report_pb2.LaneReport:
    """Return a lane with two vCPUs that made 30 MOV DR, 12 of them trapped."""
    vcpus = [
        report_pb2.VcpuReport(
            vcpu=number,
            mov_dr_executed=executed,
            mov_dr_trapped=trapped,
            windows=2,
            exits_by_class=(1, 2, 3),
        )
        for number, executed, trapped in ((0, 20, 5), (1, 10, 7))
    ]
    known = {"vendor": VMX, "claims_correct": True, "verdict": report_pb2.VERDICT_SAME, **fields}
    return report_pb2.LaneReport(policy=policy, patterns=rows, vcpus=vcpus, intercept_switches=9, **known)


def bill(number: int, mov_dr: int, other: int = 0, synchronization: int = 0, standing: int = 0) -> Any:
    """Return a lane's figures, with a latency of its MOV DR exits."""
    return report_pb2.LaneFigures(
        prices="cheap",
        lane=number,
        guest_cycles=600_000,
        overhead_cycles=mov_dr + other + synchronization + standing,
        exit_cycles=mov_dr + other,
        mov_dr_exit_cycles=mov_dr,
        synchronization_cycles=synchronization,
        standing_cycles=standing,
        latencies=[
            report_pb2.Latency(
                reason="DR_ACCESS",
                count=4,
                total_cycles=10,
                min_cycles=1,
                p50_cycles=2,
                p90_cycles=3,
                p99_cycles=4,
                p999_cycles=5,
                max_cycles=6,
            )
        ],
        operations=policy_pb2.OperationCounts(dr_reads=1, dr_writes=2, vmreads=3, vmwrites=4, msr_accesses=5),
    )


DIVERGENCE = report_pb2.Finding(event=1234, vcpu=1, what="DR0 reads 0x1 instead of 0x2.")


def report() -> report_pb2.Report:
    """Return a report of three lanes: dear, lazy and wrong."""
    return report_pb2.Report(
        events=100,
        references=[report_pb2.ReferenceReport(vendor=VMX)],
        lanes=[
            lane("dear", exits(29, 12), exits(1, 3), exits(1, 2), exits(0, 1, report_pb2.ACCOUNT_START)),
            lane(
                "ignore",
                exits(1, 5),
                claims_correct=False,
                verdict=report_pb2.VERDICT_DIVERGED,
                first_divergence=DIVERGENCE,
                diverged_events=7,
                leaks=[
                    report_pb2.LeakCount(kind=report_pb2.LEAK_KIND_USED_BY_GUEST, count=2),
                    report_pb2.LeakCount(
                        kind=report_pb2.LEAK_KIND_ARMED_IN_HOST, register=6, owner=256, count=3
                    ),
                ],
            ),
            lane(
                "lazy",
                exits(29, 1),
                exits(0, 4, report_pb2.ACCOUNT_SIGNAL),
                verdict=report_pb2.VERDICT_SAME_BUT_DECLARED,
                declared=[report_pb2.DeclaredCount(rule="RAW_READS", events=2, first_event=8)],
            ),
        ],
    )


FIGURES = [
    bill(0, mov_dr=300_000, other=100_000),
    bill(1, mov_dr=0, other=100_000),
    bill(2, mov_dr=25_000, other=100_000, synchronization=8_000, standing=3_000),
]
FACTS = SourceFacts("context-switch", {"tasks": 2}, seed=7, records=110, skipped={"CTXSW": 10})


@pytest.fixture
def document() -> dict[str, Any]:
    """Return the object of the three lanes."""
    return compare_document(FACTS, report(), FIGURES, CLOCKS)


def test_document_fits_the_published_schema(document: dict[str, Any]) -> None:
    """What scripts read is what the schema says, and the schema itself is one."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads(json.dumps(document)), SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), "exitlab.compare/2"),
        (("events",), -1),
        (("lanes", 0, "exits"), {}),
        (("lanes", 0, "vendor"), "arm"),
        (("lanes", 0, "story", "verdict"), "perhaps"),
        (("lanes", 1, "story", "first_divergence"), {"event": 1}),
        (("lanes", 0, "latency", "DR_ACCESS", "p99"), "much"),
    ],
)
def test_schema_refuses_what_is_not_an_object_of_ours(
    document: dict[str, Any], path: tuple[Any, ...], value: object
) -> None:
    """The schema says something about every level of the object."""
    inner: Any = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA)


def test_every_field_of_the_schema_is_written(document: dict[str, Any]) -> None:
    """Optional fields apart, the schema's names are the object's, so neither drifts from the other."""
    lane_schema = SCHEMA["$defs"]["lane"]["properties"]
    optional = {"ranges", "earlier", "trace", "evidence", "intervals"}
    assert set(document) == set(SCHEMA["properties"]) - optional
    assert set(document["lanes"][0]) == set(lane_schema)
    assert set(document["lanes"][0]["story"]) == set(lane_schema["story"]["properties"])


def test_source_is_told_as_it_was_given(document: dict[str, Any]) -> None:
    """Workload, parameters, seed and records come from the guest, events from the report."""
    names = ("schema", "workload", "parameters", "seed", "events", "records", "skipped")
    assert {name: document[name] for name in names} == {
        "schema": "exitlab.compare/1",
        "workload": "context-switch",
        "parameters": {"tasks": 2},
        "seed": 7,
        "events": 100,
        "records": 110,
        "skipped": {"CTXSW": 10},
    }


def test_exits_carry_the_kernels_names_and_entries_are_none(document: dict[str, Any]) -> None:
    """Rows of one reason add up, DR_ACCESS is always there, and the first entry is no exit."""
    assert [lane["exits"] for lane in document["lanes"]] == [
        {"DR_ACCESS": 12, "EXTERNAL_INTERRUPT": 5},
        {"DR_ACCESS": 0, "EXTERNAL_INTERRUPT": 5},
        {"DR_ACCESS": 1, "SIGNAL": 4},
    ]


def test_svm_accesses_are_one_reason() -> None:
    """The sixteen codes of SVM count as DR_ACCESS like the one of VMX."""
    svm = lane("lazy", exits(0x20, 1), exits(0x37, 2), exits(0x72, 3), vendor=SVM)
    found = report()
    found.lanes[0].CopyFrom(svm)
    first = compare_document(FACTS, found, FIGURES, CLOCKS)["lanes"][0]
    assert (first["vendor"], first["exits"]) == ("svm", {"DR_ACCESS": 3, "cpuid": 3})


def test_counts_of_the_vcpus_add_up(document: dict[str, Any]) -> None:
    """MOV DR, windows and classes are sums over the vCPUs; what did not trap was free."""
    first = document["lanes"][0]
    assert first["mov_dr"] == {"executed": 30, "trapped": 12, "clustered": 0, "free": 18}
    assert first["windows"] == 4
    assert first["exits_by_class"] == {"fast": 2, "light": 4, "heavy": 6}
    assert first["ops"] == {
        "dr_reads": 1,
        "dr_writes": 2,
        "vmreads": 3,
        "vmwrites": 4,
        "msr_accesses": 5,
        "intercept_switches": 9,
    }


def test_cycles_come_from_the_figures(document: dict[str, Any]) -> None:
    """The parts of the cost, the share of all cycles and the rates follow from the figures alone."""
    first, bound, lazy = document["lanes"]
    assert first["overhead_share"] == pytest.approx(0.4)
    assert first["cost"] == {
        "exits": 400_000,
        "mov_dr_exits": 300_000,
        "synchronization": 0,
        "standing": 0,
    }
    assert first["rates"]["dr_access_per_guest_second"] == pytest.approx(12 / 0.6)
    assert first["rates"]["dr_access_per_wall_second"] == pytest.approx(12 / 1.0)
    assert first["throughput_loss_against_ignore"] == pytest.approx(0.3)
    assert bound["throughput_loss_against_ignore"] == pytest.approx(0.0)
    assert lazy["cost"]["synchronization"] + lazy["cost"]["standing"] == 11_000
    assert first["latency"] == {
        "DR_ACCESS": {
            "count": 4,
            "min": 1,
            "mean": 2.5,
            "p50": 2,
            "p90": 3,
            "p99": 4,
            "p999": 5,
            "max": 6,
        }
    }


def test_stories_say_same_only_for_the_verdict_same(document: dict[str, Any]) -> None:
    """A lane that differs as it declares does not tell the same story."""
    same, diverged, declared = (lane["story"] for lane in document["lanes"])
    assert (same["same_as_reference"], same["verdict"], same["first_divergence"]) == (True, "same", None)
    assert (declared["same_as_reference"], declared["verdict"]) == (False, "same_but_declared")
    assert declared["declared"] == [{"rule": "RAW_READS", "events": 2, "first_event": 8}]
    assert diverged["first_divergence"] == {
        "event": 1234,
        "vcpu": 1,
        "what": "DR0 reads 0x1 instead of 0x2.",
    }
    assert [lane["leaks"] for lane in document["lanes"]] == [0, 5, 0]


def test_figures_of_two_price_lists_are_two_lanes_each() -> None:
    """Every lane appears at the first price list, then at the second, each compared with its own bound."""
    dear = copy.deepcopy(FIGURES)
    for figures in dear:
        figures.prices = "dear"
        figures.overhead_cycles *= 2
    made = compare_document(FACTS, report(), FIGURES + dear, {"cheap": 1, "dear": 2})
    told = [(lane["policy"], lane["prices"]) for lane in made["lanes"]]
    assert told == [(policy, prices) for prices in ("cheap", "dear") for policy in ("dear", "ignore", "lazy")]
    assert made["lanes"][3]["throughput_loss_against_ignore"] == pytest.approx(1 - (6 / 14) / (6 / 8))
    assert "dear (dear)" in render.text(made)


def test_no_throughput_is_no_loss() -> None:
    """A source without guest time leaves nothing to lose, and nothing to divide by."""
    figures = copy.deepcopy(FIGURES)
    for made in figures:
        made.guest_cycles = 0
    lanes = compare_document(FACTS, report(), figures, CLOCKS)["lanes"]
    assert [lane["throughput_loss_against_ignore"] for lane in lanes] == [0.0] * 3


LANES = [policy_pb2.Lane(policy_name=name, vendor=VMX) for name in ("dear", "ignore", "lazy")]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda found: found.Clear(), "not those that were asked for: none"),
        (lambda found: found.lanes.pop(), "not those that were asked for: dear, ignore$"),
        (lambda found: found.lanes.reverse(), "not those that were asked for: lazy, ignore, dear"),
        (lambda found: found.lanes[0].ClearField("vendor"), "not those that were asked for"),
        (lambda found: found.ClearField("references"), "no reference that is known"),
        (lambda found: found.references[0].ClearField("vendor"), "no reference that is known"),
        (lambda found: found.lanes[1].vcpus.pop(), "not 2 vCPUs in every lane"),
        (lambda found: found.lanes[2].ClearField("verdict"), "without a verdict"),
    ],
)
def test_a_report_that_lacks_what_it_must_have_could_not_finish(spoil: Any, said: str) -> None:
    """A hypervisor's broken promise is told as one, before anything is read from its report."""
    found = report()
    check_report(found, LANES, vcpus=2)
    spoil(found)
    with pytest.raises(CouldNotFinish, match=f"the hypervisor's report cannot be used: .*{said}"):
        check_report(found, LANES, vcpus=2)


@pytest.mark.parametrize("spoilt", [[], FIGURES[:2], FIGURES[::-1], [*FIGURES, *FIGURES]])
def test_figures_must_be_those_of_the_lanes(spoilt: list[report_pb2.LaneFigures]) -> None:
    """A lane without figures, or figures in another order, could not finish."""
    assert check_figures(FIGURES, ["cheap"], 3) == FIGURES
    with pytest.raises(CouldNotFinish, match="the hypervisor's figures cannot be used: expected 3 lanes"):
        check_figures(spoilt, ["cheap"], 3)


def test_lanes_are_listed_correct_first_then_by_overhead(document: dict[str, Any]) -> None:
    """A wrong policy comes last however cheap it is."""
    assert [lane["policy"] for lane in render_words.ordered(document["lanes"])] == ["lazy", "dear", "ignore"]
    rows = render.lane_table(document).splitlines()
    assert [row.split()[0] for row in rows[:4]] == ["policy", "lazy", "dear", "ignore"]


def test_text_says_what_ran_and_what_was_found(document: dict[str, Any]) -> None:
    """People read the source, a row a lane, and sentences."""
    text = " ".join(render.text(document).split())
    for said in (
        "context-switch tasks=2",
        "100 events of 110 records, 10 of them no events, seed 7, prices cheap",
        "40.0%",
        "30.0%",
        "dear: 12 of 30 MOV DR exit (12 a wall second of a vCPU); "
        "those exits and the registers' upkeep cost 300,000 cycles; "
        "throughput is 30.0% below that of ignore.",
        "ignore is wrong, as it is known to, first at event 1,234 on vCPU 1: DR0 reads 0x1 instead of 0x2.",
        "ignore leaks: 5 times a foreign register was met.",
        "lazy differs from the architecture only as it declares: RAW_READS (2 events).",
    ):
        assert said in text


def test_a_lane_without_exits_of_mov_dr_names_none(document: dict[str, Any]) -> None:
    """Upkeep is told with the exits that it comes with; where there are none, by itself."""
    (lane,) = (lane for lane in document["lanes"] if lane["policy"] == "dear")
    lane["exits"]["DR_ACCESS"] = 0
    said = " ".join(render.text(document).split())
    assert "dear: 0 of 30 MOV DR exit; the registers' upkeep costs 300,000 cycles; " in said
    lane["mov_dr"]["executed"] = 0
    said = " ".join(render.text(document).split())
    assert "dear: no MOV DR happens; the registers' upkeep costs 300,000 cycles; " in said


def without(document: dict[str, Any], *policies: str) -> dict[str, Any]:
    """Return a document as it is when some lanes were not asked for."""
    lanes = [lane for lane in copy.deepcopy(document["lanes"]) if lane["policy"] not in policies]
    if "ignore" in policies:
        for lane in lanes:
            lane["throughput_loss_against_ignore"] = None
    return document | {"lanes": lanes}


def test_without_ignore_losses_are_against_the_cheapest(document: dict[str, Any]) -> None:
    """Two policies are compared with each other; nothing is said of one that did not run."""
    text = " ".join(render.text(without(document, "ignore")).split())
    assert "ignore" not in text
    assert "loss: of throughput against the cheapest shown; " in text
    assert "overhead takes 18.5% of all cycles." in text  # 136 of 736
    assert "throughput is 26.4% below that of lazy." in text  # 600 of 1,000 against 600 of 736
    rows = [row.split() for row in render.lane_table(without(document, "ignore")).splitlines()]
    assert [row[:4] for row in rows] == [
        ["policy", "story", "loss", "DR"],
        ["lazy", "as", "declared", "0.0%"],
        ["dear", "same", "26.4%", "12"],
    ]


def test_a_policy_alone_loses_against_nobody(document: dict[str, Any]) -> None:
    """One lane has its share of all cycles, also at two price lists, and no loss."""
    alone = without(document, "ignore", "dear")
    for shown in (alone, alone | {"lanes": [*alone["lanes"], alone["lanes"][0] | {"prices": "other"}]}):
        text = render.text(shown)
        assert "loss" not in text
        assert "overhead takes 18.5% of all cycles." in " ".join(text.split())


def test_the_bound_is_named_for_each_price_list() -> None:
    """Which policy is the cheapest may differ between price lists."""
    figures = [bill(0, mov_dr=1_000), bill(2, mov_dr=2_000), bill(0, mov_dr=9_000), bill(2, mov_dr=8_000)]
    for made in figures[2:]:
        made.prices = "dear"
    made = compare_document(FACTS, report(), figures, {"cheap": 1, "dear": 1})
    text = " ".join(render.text(made).split())
    assert "below that of dear." in text
    assert "below that of lazy." in text


def test_detail_adds_exits_and_latency_by_reason(document: dict[str, Any]) -> None:
    """With detail every reason has a row; a reason without a latency has none to show."""
    assert "p99.9" not in render.text(document)
    detailed = render.text(document, has_detail=True)
    rows = [line.split() for line in detailed.splitlines()]
    assert ["DR_ACCESS", "12", "1", "2", "2", "3", "4", "5", "6"] in rows
    assert ["EXTERNAL_INTERRUPT", "5", *["-"] * 7] in rows
    assert "exits by class: 2 fast, 4 light, 6 heavy" in detailed


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"recorded_reads": 19_500, "recorded_dr6_reads": 19_500},
            "DR6 reads equal to the recorded: 19,500 of 19,500, with each #DB's DR6 taken from the read that "
            "follows; 0 of 19,500 without.",
        ),
        (
            {
                "recorded_reads": 10,
                "recorded_dr6_reads": 4,
                "disagreements": 3,
                "agreements_without_payloads": 2,
            },
            "MOV DR reads equal to the recorded: 7 of 10, with each #DB's DR6 taken from the read that "
            "follows; 2 of 10 without.",
        ),
        (
            {"recorded_reads": 1, "disagreements": 1, "first_disagreement": DIVERGENCE},
            "The first that differs is event 1,234: DR0 reads 0x1 instead of 0x2.",
        ),
        ({"recorded_reads": 1, "contradictions": 6}, "6 recorded MOV DR retired but fault here."),
    ],
)
def test_recorded_reads_are_compared_in_a_sentence(fields: dict[str, Any], said: str) -> None:
    """What a trace recorded checks the reference, and the text says how far."""
    found = report()
    found.references[0].MergeFrom(report_pb2.ReferenceReport(**fields))
    assert said in render.findings(compare_document(FACTS, found, FIGURES, CLOCKS))


def test_generated_sources_have_no_sentence_on_recorded_reads(document: dict[str, Any]) -> None:
    """Nothing recorded, nothing to compare."""
    assert not [sentence for sentence in render.findings(document) if "recorded" in sentence]


def test_csv_has_every_figure_in_a_row_of_its_own(document: dict[str, Any]) -> None:
    """The table is long: lane, metric, value, and the source's own facts with no lane."""
    rows = list(csv.DictReader(io.StringIO(render_csv.csv_text(document))))
    values = {(row["policy"], row["metric"]): row["value"] for row in rows}
    assert values["dear", "exits.DR_ACCESS"] == "12"
    assert values["dear", "story.first_divergence"] == ""
    assert values["dear", "claims_correct"] == "true"
    assert values["ignore", "story.first_divergence.event"] == "1234"
    assert values["lazy", "story.declared.0.rule"] == "RAW_READS"
    assert values["", "parameters.tasks"] == "2"


def test_ranges_mark_what_is_outside_the_claim(document: dict[str, Any]) -> None:
    """Points inside the stated ranges stand in brackets, losses outside the claim bear a mark."""
    point = {"policy": "dear", "vendor": "vmx", "prices": "cheap"}
    document["ranges"] = [
        {
            **point,
            "dr_write": write,
            "dr_read": 40,
            "throughput_loss_against_ignore": loss,
            "is_inside_stated_ranges": is_inside,
            "holds": holds,
        }
        for write, loss, is_inside, holds in ((60, 0.4, True, True), (150, 0.5, False, False))
    ]
    jsonschema.validate(document, SCHEMA)
    rows = [line.split() for line in render.text(document).splitlines()]
    assert ["60", "[40.0%]"] in rows
    assert ["150", "50.0%!"] in rows
    assert "ranges.dr_write=150.dr_read=40,0.5" in render_csv.csv_text(document)


@pytest.mark.parametrize("name", ["vmx", "svm"])
def test_vendors_have_one_name_each(name: str) -> None:
    """Names and numbers are each other's inverse."""
    assert vendor_name(vendor_number(name)) == name


@pytest.mark.parametrize(
    ("events", "total", "fraction", "line"),
    [
        (5_000, None, None, "idle 5,000 events"),
        (5_000, None, 0.5, f"idle [{'#' * 15}{'.' * 15}]  50% read, 5,000 events"),
        (500, 1_000, None, f"idle [{'#' * 15}{'.' * 15}]  50% of 1,000 events"),
        (2_000, 1_000, None, f"idle [{'#' * 30}] 100% of 1,000 events"),
    ],
)
def test_progress_is_one_line(events: int, total: int | None, fraction: float | None, line: str) -> None:
    """A bar where the total or what is read is known, else a count, and never overfull."""
    assert bar("idle", events, total, fraction) == line
