"""A report that a hypervisor has stored, beside that of a run: what is otherwise now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from exitlab.v1 import hypervisor_pb2, report_pb2
from guest_svc.errors import BadInput, CouldNotFinish
from guest_svc.hypervisor import Hypervisor
from guest_svc.results import Document, check_figures, lane_documents


@dataclass(frozen=True, slots=True)
class Earlier:
    """A stored report and its figures."""

    label: str
    report: report_pb2.Report
    figures: Sequence[report_pb2.LaneFigures]


def find_earlier(hypervisor: Hypervisor, session_id: str, price_names: Sequence[str]) -> Earlier:
    """Return the report of a finished session, priced at these lists.

    Raises:
        BadInput: There is none such.

    """
    found = hypervisor.session(session_id)
    if found.status.state != hypervisor_pb2.SESSION_STATE_FINISHED:
        raise BadInput("--with: the session has no report, as it is not finished")
    choices = [hypervisor_pb2.PriceChoice(name=name) for name in price_names]
    priced = hypervisor.priced(session_id, choices)
    try:
        report = report_pb2.Report.FromString(priced.report)
    except DecodeError:
        raise CouldNotFinish("the hypervisor's stored report cannot be read") from None
    return Earlier(found.config.label, report, check_figures(priced.figures, price_names, len(report.lanes)))


def earlier_document(
    earlier: Earlier, report: report_pb2.Report, clocks_hertz: Mapping[str, int]
) -> Document:
    """Return what the JSON object says of an earlier report beside ``report``."""
    one, other = (
        (each.events, list(each.columns), list(each.column_crcs)) for each in (earlier.report, report)
    )
    return {
        "label": earlier.label,
        "events": earlier.report.events,
        "same_events": one == other,
        "lanes": lane_documents(earlier.report, earlier.figures, clocks_hertz),
    }
