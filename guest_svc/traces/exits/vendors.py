"""Whose numbering a trace's exits have: a trace is of one vendor."""

from collections import Counter
from collections.abc import Iterable
from typing import Final

from exitlab.exit_reasons import VENDOR_SVM, VENDOR_VMX
from guest_svc.errors import TraceError
from guest_svc.traces.text.table import Event, Table

VENDOR_NAMES: Final = {VENDOR_VMX: "vmx", VENDOR_SVM: "svm"}


def leading_vendor(tables: Iterable[Table], asked: str | None) -> int:
    """Return the vendor of most exits that name one, else the one that was asked for, ``vmx`` or ``svm``.

    Raises:
        TraceError: They are of the other one, or nothing says whose they are.

    """
    counts: Counter[int] = Counter()
    for table in tables:
        exits = table.vendor[table.event == Event.EXIT]
        counts.update({vendor: int((exits == vendor).sum()) for vendor in VENDOR_NAMES})
    shown = [vendor for vendor, count in counts.most_common() if count]
    numbers = {name: number for number, name in VENDOR_NAMES.items()}
    if not shown:
        if asked is None:
            raise TraceError(
                "its exits are numbers without a name, which say neither vmx nor svm: add --vendor"
            )
        return numbers[asked]
    if asked is not None and numbers[asked] != shown[0]:
        raise TraceError(
            f"--vendor {asked}: its exits are of {VENDOR_NAMES[shown[0]]}; their numbers mean nothing on the "
            "other"
        )
    return shown[0]
