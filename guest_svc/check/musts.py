"""What a MUST is, and how a table of them is run: each passes, fails, or says why it was not run."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar

from guest_svc.errors import GuestError

SCHEMA: Final = "exitlab.check/1"
Subject = TypeVar("Subject")
_EVENT: Final = re.compile(r"\bevent ([\d,]*\d)")  # as every error says it that is about one


class Result(StrEnum):
    """What came of a MUST."""

    PASS = "pass"
    FAIL = "fail"
    NOT_RUN = "not run"  # another has failed that it builds on
    NONE = "n/a"  # there is nothing to ask of this subject
    TOLD = "told"  # no MUST, but good to know


class Broken(Exception):
    """A MUST is not kept."""

    def __init__(self, reason: str, event: int | None = None) -> None:
        """Say why, and at which event of the run if at one."""
        super().__init__(reason)
        self.event = event


class DoesNotApply(Exception):
    """A MUST asks for nothing here."""


@dataclass(frozen=True, slots=True)
class Must(Generic[Subject]):
    """One promise: its name, what is promised, and what tries it.

    ``check`` returns what it has seen, for people; it raises Broken or another GuestError if the promise is
    not kept.
    """

    name: str
    sentence: str
    check: Callable[[Subject], str]
    #: Those that have to pass before: without them this one would only fail for their reason.
    needs: tuple[str, ...] = ()
    #: Whether it is no MUST: what is seen is only told.
    is_told_only: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """A MUST and what came of it."""

    name: str
    sentence: str
    result: Result
    note: str  # what was seen, or the reason
    event: int | None = None

    def document(self) -> dict[str, Any]:
        """Return it as the JSON object has it."""
        return {
            "name": self.name,
            "must": self.sentence,
            "result": str(self.result),
            "note": self.note,
            "event": self.event,
        }


def run_musts(musts: Sequence[Must[Subject]], subject: Subject) -> list[Finding]:
    """Try all MUSTs in order; one that fails stops only those that build on it."""
    results: dict[str, Result] = {}
    findings = []
    for must in musts:
        missing = [name for name in must.needs if results[name] in {Result.FAIL, Result.NOT_RUN}]
        event = None
        if missing:
            result, note = Result.NOT_RUN, f"it builds on {' and '.join(missing)}"
        else:
            try:
                note = must.check(subject)
                result = Result.TOLD if must.is_told_only else Result.PASS
            except DoesNotApply as why:
                result, note = Result.NONE, str(why)
            except Broken as broken:
                result, note, event = Result.FAIL, str(broken), broken.event
            except GuestError as error:
                result, note = Result.FAIL, " ".join(str(error).split())
                named = _EVENT.search(note)
                event = None if named is None else int(named[1].replace(",", ""))
        results[must.name] = result
        findings.append(Finding(must.name, must.sentence, result, note, event))
    return findings


def check_document(subject: str, facts: dict[str, Any], findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the JSON object of ``check-workload``."""
    return {
        "schema": SCHEMA,
        "subject": subject,
        **facts,
        "failed": sum(finding.result is Result.FAIL for finding in findings),
        "musts": [finding.document() for finding in findings],
    }


def formatted(document: dict[str, Any], output: str) -> str:
    """Return the document as JSON, or as text: a line a MUST, and below what was seen or is wrong."""
    if output == "json":
        return json.dumps(document, indent=2) + "\n"
    musts = document["musts"]
    width = max(len(must["name"]) for must in musts)
    workload = f", workload {document['workload']}" if "workload" in document else ""
    lines = [f"{document['subject']}{workload}", ""]
    for must in musts:
        result = "FAIL" if must["result"] == Result.FAIL else must["result"]
        lines.append(f"{result:7}  {must['name']:{width}}  {must['must']}")
        if must["note"]:
            lines.append(f"{'':7}  {'':{width}}  -> {must['note']}")
    counts = [f"{sum(must['result'] == each for must in musts)} {each}" for each in Result]
    return "\n".join([*lines, "", ", ".join(count for count in counts if count[0] != "0")]) + "\n"
