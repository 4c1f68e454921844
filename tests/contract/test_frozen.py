"""v1 is frozen: it may grow, and what would break a deployed peer is refused by a message that names it."""

import re
import shutil
from difflib import unified_diff
from pathlib import Path
from typing import Final

import pytest

from .frozen import IMAGE, PROTOS, breaking_changes, built_image, described_files
from .listing import LISTING, listing
from .renew import renew
from .vectors import VECTORS, read_vectors

RENEW: Final = "if it is meant, `make contract` takes it in"
# file, what is changed, into what, what buf says of it
BREAKING: Final = {
    "a field removed": (
        "hypervisor",
        r"  uint64 expected_epoch = 3;\n",
        "",
        'Previously present field "3" with name "expected_epoch" on message "Open" was deleted.',
    ),
    "a field renumbered": (
        "hypervisor",
        r"expected_epoch = 3;",
        "expected_epoch = 4;",
        'Previously present field "3" with name "expected_epoch" on message "Open" was deleted.',
    ),
    "a field renamed": (
        "hypervisor",
        r"uint64 expected_epoch = 3;",
        "uint64 epoch = 3;",
        'Field "3" on message "Open" changed name from "expected_epoch" to "epoch".',
    ),
    "two fields' numbers exchanged": (
        "events",
        r"bytes args = 4;(.*?)bytes modes = 5;",
        r"bytes args = 5;\1bytes modes = 4;",
        'Field "4" on message "EventBlock" changed name from "args" to "modes".',
    ),
    "another type": (
        "events",
        r"repeated fixed64 values = 10;",
        "repeated uint64 values = 10;",
        'Field "10" with name "values" on message "EventBlock" changed type from "fixed64" to "uint64".',
    ),
    "a packed column as bytes": (
        "events",
        r"repeated fixed64 values = 10;",
        "bytes values = 10;",
        'Field "10" with name "values" on message "EventBlock" changed cardinality from "repeated" to',
    ),
    "a list no more": (
        "hypervisor",
        r"repeated fixed32 column_crcs = 4;",
        "fixed32 column_crcs = 4;",
        'Field "4" with name "column_crcs" on message "Opened" changed cardinality from "repeated" to',
    ),
    "moved out of its oneof": (
        "hypervisor",
        r"(    // Confirms outcomes that have arrived.\n    ConfirmOutcomes confirm = 4;\n)  \}",
        r"  }\n\1",
        'Field "4" with name "confirm" on message "StreamEventsRequest" moved from inside to outside',
    ),
    "an enum's value removed": (
        "outcome",
        r"  STORY_BP = 9;\n",
        "",
        'Previously present enum value "9" on enum "Story" was deleted.',
    ),
    "an enum's value renamed": (
        "events",
        r"EVENT_KIND_CLTS = 5;",
        "EVENT_KIND_CLEAR_TS = 5;",
        'Enum value "5" on enum "EventKind" changed name from "EVENT_KIND_CLTS" to "EVENT_KIND_CLEAR_TS".',
    ),
    "a message removed": (
        "guest",
        r"\bParameterValue\b",
        "ParameterSetting",
        'Previously present message "ParameterValue" was deleted from file.',
    ),
    "a call removed": (
        "hypervisor",
        r"  rpc ListPrices\(ListPricesRequest\) returns \(ListPricesResponse\);\n",
        "",
        'Previously present RPC "ListPrices" on service "HypervisorService" was deleted.',
    ),
    "a call that streams no more": (
        "hypervisor",
        r"returns \(stream WatchReportResponse\)",
        "returns (WatchReportResponse)",
        '"WatchReport" on service "HypervisorService" changed from server streaming to server unary.',
    ),
    "another package": (
        "*",
        r"package exitlab\.v1;",
        "package exitlab.v2;",
        'File package changed from "exitlab.v1" to "exitlab.v2".',
    ),
}
GROWN: Final = [
    ("hypervisor", r"(uint64 expected_epoch = 3;)", r"\1\n  // More.\n  uint64 more = 4;"),
    ("outcome", r"(STORY_VMEXIT = 10;)", r"\1\n  // More.\n  STORY_MORE = 11;"),
    ("guest", r"\Z", "\n// More.\nmessage More {}\n"),
]


def changed(into: Path, name: str, pattern: str, replacement: str) -> Path:
    """Return a copy of the proto files in which a pattern that is there is replaced."""
    protos = into / "protos"
    shutil.copytree(PROTOS, protos, ignore=shutil.ignore_patterns("*.py*", "__pycache__"))
    for file in protos.glob(f"exitlab/v1/{name}.proto"):
        text = file.read_text(encoding="utf-8")
        now, count = re.subn(pattern, replacement, text, flags=re.DOTALL)
        assert count
        file.write_text(now, encoding="utf-8")
    return protos


def test_nothing_breaks_a_peer_of_v1() -> None:
    """The contract of today differs from the frozen one by additions at most."""
    assert breaking_changes() == []


@pytest.mark.parametrize(("name", "pattern", "replacement", "said"), BREAKING.values(), ids=BREAKING)
def test_what_breaks_a_peer_is_named(
    tmp_path: Path, name: str, pattern: str, replacement: str, said: str
) -> None:
    """A change that a deployed peer would not survive is told with its place, its name and what it was."""
    found = breaking_changes(changed(tmp_path, name, pattern, replacement))
    assert [line for line in found if said in line]
    assert all(re.match(r"(exitlab/v1/\w+\.proto:\d+:\d+|<input>):", line) for line in found)


@pytest.mark.parametrize(("name", "pattern", "replacement"), GROWN, ids=["field", "value", "message"])
def test_v1_may_grow(tmp_path: Path, name: str, pattern: str, replacement: str) -> None:
    """An addition breaks nobody; it is in neither the image nor the listing until it is taken in."""
    protos = changed(tmp_path, name, pattern, replacement)
    assert breaking_changes(protos) == []
    assert built_image(protos) != IMAGE.read_bytes()
    assert listing(described_files(protos)) != LISTING.read_text(encoding="utf-8")


@pytest.fixture
def frozen(tmp_path: Path) -> Path:
    """Return a copy of what is frozen."""
    folder = tmp_path / "frozen"
    folder.mkdir()
    for path in (IMAGE, LISTING, VECTORS):
        shutil.copyfile(path, folder / path.name)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of each file."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_addition_is_taken_in(tmp_path: Path, frozen: Path) -> None:
    """Image and listing are the contract's again, and what is new has a vector beside those that were."""
    protos = changed(tmp_path, *GROWN[0])
    assert renew(protos, frozen) == []
    assert built_image(protos) == frozen.joinpath(IMAGE.name).read_bytes()
    assert listing(described_files(protos)) == frozen.joinpath(LISTING.name).read_text(encoding="utf-8")
    *was, new = read_vectors(frozen / VECTORS.name)
    assert was == read_vectors()
    assert (new["message"], new["what"]) == ("exitlab.v1.Open", "Open: more")
    once = contents(frozen)
    assert renew(protos, frozen) == []
    assert contents(frozen) == once


def test_what_breaks_a_peer_is_not_taken_in(tmp_path: Path, frozen: Path) -> None:
    """Nothing is written, and what was added before cannot be taken away."""
    before = contents(frozen)
    name, pattern, replacement, said = BREAKING["a field removed"]
    found = renew(changed(tmp_path, name, pattern, replacement), frozen)
    assert [line for line in found if said in line]
    assert contents(frozen) == before == {path.name: path.read_bytes() for path in (IMAGE, LISTING, VECTORS)}


def test_nothing_is_lost_by_renewing(frozen: Path) -> None:
    """What is frozen of the contract as it is stays as it is."""
    assert renew(PROTOS, frozen) == []
    assert contents(frozen) == {path.name: path.read_bytes() for path in (IMAGE, LISTING, VECTORS)}


def test_the_image_is_the_contract() -> None:
    """What was added is frozen too, as the next change may take it away."""
    assert built_image() == IMAGE.read_bytes(), f"the contract has grown; {RENEW}"


def test_the_listing_is_the_contract() -> None:
    """Every message, field, number, type and comment is as v1.txt lists it."""
    now = listing(described_files()).splitlines(keepends=True)
    was = LISTING.read_text(encoding="utf-8").splitlines(keepends=True)
    differing = "".join(unified_diff(was, now, "tests/contract/v1.txt", "the contract", n=1))
    assert not differing, f"the contract has changed; {RENEW}\n{differing}"


def test_a_comment_is_part_of_the_listing(tmp_path: Path) -> None:
    """What a field means is said in its comment: a change of that shows too."""
    protos = changed(tmp_path, "events", r"Guest cycles on this vCPU since", "Nanoseconds since")
    now = set(listing(described_files(protos)).splitlines())
    was = set(LISTING.read_text(encoding="utf-8").splitlines())
    assert now - was == {"    # Nanoseconds since its previous event."}


def test_the_listing_is_whole() -> None:
    """No message, field, value and call is left out: there are as many lines with numbers as in the files."""
    files, lines = described_files(), LISTING.read_text(encoding="utf-8").splitlines()
    fields = sum(len(message.field) for file in files for message in file.message_type)
    values = sum(len(enum.value) for file in files for enum in file.enum_type)
    calls = sum(len(service.method) for file in files for service in file.service)
    assert len([line for line in lines if re.match(r"  \d+ \w+: ", line)]) == fields > 300
    assert len([line for line in lines if re.match(r"  \d+ \w+$", line)]) == values > 100
    assert len([line for line in lines if re.match(r"  \w+\(", line)]) == calls == 15
