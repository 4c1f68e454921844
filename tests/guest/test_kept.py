"""What a guest keeps until it is committed, and what it sends of it after a cut."""

from itertools import pairwise

import grpc
import pytest

from exitlab.blocks import ColumnCrcs, DecodedBlock, decode_request, encode_block
from exitlab.v1 import outcome_pb2
from guest_svc.errors import BadInput, CouldNotFinish
from guest_svc.kept import Block, KeptBlocks, ToldOutcomes
from guest_svc.stream import EventStream
from tests.guest.keeper import COLUMNS, Limits, Response, create, events
from tests.guest.scripted import Fault, Point, Scripted, connected, crash, cut, digests

ENDS = (4, 8, 9, 12)


def kept_blocks(committed: int = 0) -> KeptBlocks:
    """Return blocks that are sent, those forgotten that are committed."""
    kept, crcs = KeptBlocks(COLUMNS), ColumnCrcs(COLUMNS)
    for start, end in pairwise((0, *ENDS)):
        data = encode_block(events(end - start, start), start, crcs)
        kept.add(Block(end, crcs.values, data))
        kept.sent()
    kept.forget(committed)
    return kept


def decoded(block: Block) -> DecodedBlock:
    """Return a block as a hypervisor reads it."""
    found = decode_request(block.data, COLUMNS)
    assert isinstance(found, DecodedBlock)
    return found


def sent_again(kept: KeptBlocks) -> list[int]:
    """Send all that is not sent, check each block, and return where they end."""
    ends: list[int] = []
    while (block := kept.unsent) is not None:
        sent = decoded(block)
        assert sent.events.values is not None
        assert sent.events.values.tolist() == [*range(sent.first_event, block.end)]
        assert sent.column_crcs == block.crcs == digests(block.end)
        assert not ends or sent.first_event == ends[-1]
        ends.append(block.end)
        kept.sent()
    return ends


@pytest.mark.parametrize("event", range(13))
def test_all_from_any_event_on_is_sent_again(event: int) -> None:
    """Blocks come as they were, but one is cut in two where the event is inside it."""
    kept = kept_blocks()
    assert kept.unsent is None
    assert kept.go_back(event) == digests(event)
    assert sent_again(kept) == [end for end in ENDS if end > event]


@pytest.mark.parametrize(
    ("committed", "oldest"), [(0, 0), (3, 0), (4, 4), (7, 4), (8, 8), (9, 9), (11, 9), (12, 12)]
)
def test_blocks_are_kept_until_they_are_committed(committed: int, oldest: int) -> None:
    """What is whole below is gone, and nothing above; before the oldest there is no going back."""
    for event in range(14):
        found = kept_blocks(committed).go_back(event)
        assert found == (digests(event) if oldest <= event <= 12 else None)


def test_going_back_again_and_again() -> None:
    """One crash after another may each be at another event, and commits come between."""
    kept = kept_blocks()
    for event, ends in ((10, [12]), (6, [8, 9, 10, 12]), (11, [12]), (5, [6, 8, 9, 10, 11, 12])):
        assert kept.go_back(event) == digests(event)
        assert sent_again(kept) == ends
    kept.forget(6)
    assert kept.go_back(6) == digests(6)
    kept.forget(10)  # of what is to be sent, as on another stream it was applied
    assert sent_again(kept) == [11, 12]
    assert kept.go_back(9) is None


@pytest.mark.parametrize(
    ("event", "most", "ends"),
    [
        (0, 4, [4, 8, 9, 12]),
        (0, 3, [3, 4, 7, 8, 9, 12]),
        (4, 2, [6, 8, 9, 11, 12]),
        (5, 1, [6, 7, 8, 9, 10, 11, 12]),
        (12, 1, []),
    ],
)
def test_what_is_not_sent_can_be_cut_anew(event: int, most: int, ends: list[int]) -> None:
    """No block has more events then, and what was sent is as it was."""
    kept = kept_blocks()
    kept.go_back(event)
    kept.cut_unsent(most, 0)
    assert sent_again(kept) == ends
    for each in ENDS:
        assert kept.go_back(each) == digests(each)


def part(first_event: int, lane: int, stories: bytes = b"aa", decisions: int = 0) -> outcome_pb2.OutcomePart:
    """Return outcomes of two events."""
    new = [outcome_pb2.Decision()] * decisions
    return outcome_pb2.OutcomePart(
        first_event=first_event, event_count=len(stories), lane=lane, stories=stories, new_decisions=new
    )


def test_outcomes_are_new_once() -> None:
    """Each lane's part of a block counts for itself, and the decisions that it defines count for nothing."""
    told = ToldOutcomes()
    parts = [part(first_event, lane) for first_event in (0, 2, 4) for lane in (0, 1)]
    assert [told.is_new(each) for each in (*parts, *parts)] == [True] * 6 + [False] * 6
    assert not told.is_new(part(2, 1, decisions=3))
    told.forget(4)
    assert [told.is_new(each) for each in parts] == [True] * 4 + [False] * 2
    told.forget(3)  # as was said before
    assert not told.is_new(parts[0])


@pytest.mark.parametrize("other", [part(2, 1, b"ab"), part(2, 1, b"aaa"), part(2, 1, b"a")])
def test_other_outcomes_of_the_same_events_are_told(other: outcome_pb2.OutcomePart) -> None:
    """Another story, and a part of another length, is no repetition."""
    told = ToldOutcomes()
    assert told.is_new(part(2, 1))
    with pytest.raises(CouldNotFinish, match=r"sent outcomes of events 2 to \d again, and others"):
        told.is_new(other)


@pytest.mark.parametrize(
    ("block", "room", "every", "most"),
    [
        (4, 24, 20, 24),
        (4, 20, 20, 20),
        (4, 1000, 20, 32),  # 20 but one block, and those on the way
        (8, 24, 8, 24),
        (4, 6, 3, 8),  # blocks of three, of which one is committed but for its last event
        (4, 2, 1, 2),
    ],
)
def test_what_is_kept_is_bounded(block: int, room: int, every: int, most: int) -> None:
    """However long the stream, and however often it is cut, the guest keeps what may be uncommitted."""
    limits = Limits(max_block_events=block, max_uncommitted_events=room)
    faults = {(Point.BLOCK, number): crash() for number in (7, 30, 31, 77)}
    scripted = Scripted(faults, limits=limits, commit=lambda applied: applied // every * every)
    kept = []
    with connected(scripted) as hypervisor, EventStream(hypervisor, create(hypervisor), COLUMNS) as stream:
        for start in range(0, 480, 8):
            stream.send(events(8, start))
            blocks = stream._kept._blocks
            kept.append(sum(len(decoded(each).events) for each in blocks))
            assert kept[-1] <= stream.next_event - stream.committed_events + block - 1
        stream.finish()
        left_over = stream._kept._blocks, stream._outcomes._told._digests
        assert left_over == ([], {})
    assert max(kept) == most
    assert scripted.values == [*range(480)]


def run(scripted: Scripted, total: int = 12, first_value: int = 0, *, is_resumed: bool = True) -> None:
    """Send all events of a source and finish; of a session that was left, all once more."""
    with connected(scripted) as hypervisor:
        session = create(hypervisor)
        with EventStream(hypervisor, session, COLUMNS, is_resumed=is_resumed) as stream:
            for start in range(0, total, 3):
                stream.send(events(3, first_value + start))
            assert stream.finish().events == total
            assert stream.epoch == scripted.epoch


def astray(applied_events: int, skew: int = 0) -> Fault:
    """Break off, and then be where the hypervisor cannot be."""

    def fault(hypervisor: Scripted, context: grpc.ServicerContext) -> list[Response]:
        hypervisor.applied_events, hypervisor.skew = applied_events, skew
        return cut()(hypervisor, context)

    return fault


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (astray(3), "the hypervisor goes on at event 3, but had committed 6"),
        (astray(0), "the hypervisor goes on at event 0, but had committed 6"),
        (
            astray(13),
            "the hypervisor goes on at event 13, this stream at 9; another guest has sent to the session",
        ),
        (astray(6, skew=1), "the hypervisor has other events than this stream below event 6"),
        (astray(9, skew=1), "the hypervisor has other events than this stream below event 9"),
    ],
)
def test_a_hypervisor_that_is_elsewhere_ends_the_run(fault: Fault, said: str) -> None:
    """What was committed and is gone, or was never sent, is told in one line, and not tried again."""
    scripted = Scripted({(Point.BLOCK, 3): fault})
    with pytest.raises(CouldNotFinish, match=f"^{said}$"):
        run(scripted, is_resumed=False)
    assert len(scripted.openings) == 2


def left(applied: int, committed: int, faults: dict[tuple[Point, int], Fault] | None = None) -> Scripted:
    """Return a hypervisor with a session whose guest was killed."""
    return Scripted(
        faults or {},
        applied_events=applied,
        committed_events=committed,
        values=[*range(applied)],
        epoch=3,
        commit=lambda _: 0,
    )


@pytest.mark.parametrize("applied", [0, 1, 3, 5, 11, 12])
def test_a_resumed_guest_sends_what_is_lacking(applied: int) -> None:
    """What the hypervisor has is made again and compared, and not sent."""
    scripted = left(applied, applied)
    run(scripted)
    assert scripted.epoch == 4
    (opening,) = scripted.openings
    assert (opening.received_events, opening.next_event) == (0, applied)
    assert [end for _, end in opening.blocks] == [end for end in (3, 6, 9, 12) if end > applied]
    assert scripted.values == [*range(12)]


@pytest.mark.parametrize("committed", range(8))
@pytest.mark.parametrize("point", [Point.OPENED, Point.BLOCK, Point.FINISH])
def test_a_crash_may_take_a_resumed_guest_back_to_any_event(point: Point, committed: int) -> None:
    """Nothing that is not committed is lost: not even what an earlier guest has sent, cut elsewhere."""
    scripted = left(8, committed, {(point, 1): crash()})
    run(scripted)
    places = sorted({committed, *(each for each in (3, 6, 8, 9, 12) if each > committed)})
    again = scripted.openings[-1]
    assert (again.next_event, again.blocks) == (committed, [*pairwise(places)])
    assert scripted.values == [*range(12)]


def test_a_resumed_guest_keeps_no_more_than_another() -> None:
    """What it makes again, and is committed, is gone at once."""
    scripted = left(400, 390)
    with (
        connected(scripted) as hypervisor,
        EventStream(hypervisor, create(hypervisor), COLUMNS, is_resumed=True) as stream,
    ):
        for start in range(0, 400, 4):
            stream.send(events(4, start))
            kept = [end for end in (392, 396, 400) if end <= start + 4]
            assert [block.end for block in stream._kept._blocks] == kept
        assert stream.finish().events == 400


@pytest.mark.parametrize(
    ("total", "first_value", "said"),
    [
        (12, 1, "its first 8 events differ"),
        (6, 0, "it ends after 6 events, and the session has 8"),
        (0, 0, "it ends after 0 events, and the session has 8"),
    ],
)
def test_another_source_is_not_resumed(total: int, first_value: int, said: str) -> None:
    """A source that does not prove to be the session's is refused, and nothing of it is sent."""
    scripted = left(8, 8)
    with pytest.raises(BadInput, match=f"^--resume: this source is not the session's: {said}$"):
        run(scripted, total, first_value)
    assert (scripted.openings[0].blocks, scripted.finishes) == ([], 0)


def test_a_resumed_guest_that_has_caught_up_is_one_like_any_other() -> None:
    """From then on, a hypervisor that has lost what it had committed could not finish."""
    scripted = left(8, 8, {(Point.BLOCK, 1): astray(2)})
    with pytest.raises(CouldNotFinish, match="goes on at event 2, but had committed 8"):
        run(scripted)
