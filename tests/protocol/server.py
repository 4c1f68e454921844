"""What the server does."""

from collections.abc import Iterator
from typing import Final

from tests.protocol.guest import in_words, name_of
from tests.protocol.moves import to_guest, with_connection, with_guest
from tests.protocol.records import (
    Acknowledgement,
    Checkpoint,
    ConfirmOutcomes,
    Connection,
    Draining,
    EventBlock,
    FinishSession,
    Kept,
    Open,
    Opened,
    OutcomePart,
    Reason,
    Refused,
    Report,
    Server,
    ServerPhase,
    Setup,
    Step,
    Storage,
    Weakening,
    World,
)

_MOST_ON_THE_WAY: Final = 3  # messages to the guest, beyond which the server waits with applying


def server_steps(setup: Setup, world: World) -> Iterator[Step]:
    """Go through what the server can do now."""
    if world.server.phase is ServerPhase.DOWN:
        yield Step("the server starts from what is durable", restarted(setup, world))
        return
    if world.server.phase is ServerPhase.UP:
        for place, connection in enumerate(world.connections):
            yield from _serve(setup, world, place, connection)
    yield from _checkpoint(setup, world)
    yield from _finish(setup, world)
    if world.server.phase is ServerPhase.DRAINING:
        yield from _leave(setup, world)


def restarted(setup: Setup, world: World) -> World:
    """Return the world with the server back at what is durable."""
    storage = world.storage
    has_other_rules = setup.has(Weakening.RULES_CHANGE_UNNOTICED)
    server = Server(
        now=storage.checkpoint, epoch=storage.epoch, report=storage.report, has_other_rules=has_other_rules
    )
    return world._replace(server=server)


def _serve(setup: Setup, world: World, place: int, connection: Connection) -> Iterator[Step]:
    """Take the next message of a connection."""
    if not connection.server_holds:
        return
    if not connection.guest_holds:
        yield Step("what was left of an abandoned connection is lost", _ended(setup, world, place))
    if not connection.to_server or len(connection.to_guest) > _MOST_ON_THE_WAY:
        return
    message = connection.to_server[0]
    rest = connection._replace(to_server=connection.to_server[1:])
    match message:
        case Open():
            yield _open(setup, world, place, rest, message)
        case EventBlock():
            yield _apply(setup, world, place, rest, message)
        case ConfirmOutcomes(received_events=received):
            confirmed = _confirmed(setup, world, received)
            yield Step(
                f"the server takes {in_words(message)}", with_connection(setup, confirmed, place, rest)
            )


def _open(setup: Setup, world: World, place: int, rest: Connection, message: Open) -> Step:
    """Give the session to a new stream; the epoch is durable before Opened is on its way."""
    if world.server.report is not None:
        return _refuse(setup, world, place, rest, Reason.SESSION_FINISHED)
    is_ahead = message.received_events > len(world.server.now.applied)
    if is_ahead and setup.has(Weakening.RECEIVED_ABOVE_APPLIED_REFUSED):
        return _refuse(setup, world, place, rest, Reason.RECEIVED_TOO_MANY)
    epoch = world.server.epoch + 1
    if not setup.has(Weakening.CONFIRMED_FOR_ANYBODY):
        # Above what is applied it was another life's: this one may need the outcomes that come there.
        now = world.server.now
        now = now._replace(confirmed_events=min(now.confirmed_events, len(now.applied)))
        world = world._replace(server=world.server._replace(now=now))
    if setup.has(Weakening.OPEN_CONFIRMS):
        world = _confirmed(setup, world, message.received_events)
    world = world._replace(server=world.server._replace(epoch=epoch), told_epoch=max(world.told_epoch, epoch))
    if not setup.has(Weakening.EPOCH_NOT_DURABLE):
        world = world._replace(storage=world.storage._replace(epoch=epoch))
    if not setup.has(Weakening.OLDER_STREAM_NOT_FENCED):
        world = _fence(world, place)
    applied, committed = len(world.server.now.applied), _committed(setup, world)
    parts = [
        OutcomePart(kept.first_event, kept.outcomes, lane)
        for kept in world.server.now.kept
        if kept.end > message.received_events
        for lane in range(setup.lanes)
    ]
    opened = Opened(applied, committed, world.server.now.applied.lower())
    taken = (*world.connections[:place], rest._replace(epoch=epoch), *world.connections[place + 1 :])
    world = world._replace(connections=taken)
    world = to_guest(setup, world, place, opened, *parts)
    if not setup.has(Weakening.NO_ACKNOWLEDGEMENT_AFTER_REPEATED):
        world = to_guest(setup, world, place, Acknowledgement(applied, committed))
    world = _swept(setup, world)
    return Step(f"the server takes {in_words(message)} and answers {in_words(opened)}, epoch {epoch}", world)


def _fence(world: World, newest: int) -> World:
    """Take nothing more from older streams, and tell whoever holds them."""
    connections = list(world.connections)
    for place, connection in enumerate(connections):
        if place != newest and connection.epoch and connection.server_holds:
            told = (*connection.to_guest, Refused(Reason.FENCED)) if connection.guest_holds else ()
            connections[place] = connection._replace(to_server=(), to_guest=told, server_holds=False)
    return world._replace(connections=tuple(connections))


def _swept(setup: Setup, world: World) -> World:
    """Forget connections that nothing can come of."""
    for place in reversed(range(len(world.connections))):
        world = with_connection(setup, world, place, world.connections[place])
    return world


def _apply(setup: Setup, world: World, place: int, rest: Connection, block: EventBlock) -> Step:
    """Apply a block whole, or refuse it with nothing of it counted."""
    server, now = world.server, world.server.now
    if server.report is not None:
        return _refuse(setup, world, place, rest, Reason.SESSION_FINISHED)
    if not setup.has(Weakening.OVERLAP_ACCEPTED):
        if block.first_event > len(now.applied):
            return _refuse(setup, world, place, rest, Reason.GAP)
        if block.first_event < len(now.applied):
            return _refuse(setup, world, place, rest, Reason.ALREADY_APPLIED)
        if now.applied.lower() + block.events != block.digest:
            return _refuse(setup, world, place, rest, Reason.DIGEST_MISMATCH)
    outcomes = block.events.upper() if server.has_other_rules else block.events
    kept = Kept(len(now.applied), outcomes)
    later = now._replace(applied=now.applied + outcomes)
    if kept.end > now.confirmed_events:
        later = later._replace(kept=(*now.kept, kept))
    world = world._replace(server=server._replace(now=later))
    parts = [OutcomePart(kept.first_event, outcomes, lane) for lane in range(setup.lanes)]
    acknowledgement = Acknowledgement(len(later.applied), _committed(setup, world))
    world = with_connection(setup, world, place, rest)
    if rest.guest_holds:
        world = to_guest(setup, world, place, *parts, acknowledgement)
    return Step(f"the server applies {block.events!r} at event {block.first_event}", world)


def _confirmed(setup: Setup, world: World, received: int) -> World:
    """Forget outcomes that the guest has; after a crash it may have more than are applied."""
    now = world.server.now
    if setup.has(Weakening.CONFIRMATION_CUT):
        received = min(received, len(now.applied))
    confirmed = max(now.confirmed_events, received)
    kept = tuple(kept for kept in now.kept if kept.end > confirmed)
    later = now._replace(kept=kept, confirmed_events=confirmed)
    return world._replace(server=world.server._replace(now=later))


def _refuse(setup: Setup, world: World, place: int, rest: Connection, reason: Reason) -> Step:
    world = to_guest(setup, world, place, Refused(reason))
    told = world.connections[place].to_guest
    over = rest._replace(to_server=(), to_guest=told, server_holds=False)
    return Step(f"the server refuses: {reason}", with_connection(setup, world, place, over))


def _ended(setup: Setup, world: World, place: int) -> World:
    """Return the world after the server has seen the end of a stream, which proves nothing."""
    if setup.has(Weakening.END_IS_FINISH) and world.server.report is None:
        report = world.server.now.applied
        storage = world.storage._replace(report=report)
        world = world._replace(server=world.server._replace(report=report), storage=storage)
    over = world.connections[place]._replace(server_holds=False)
    return with_connection(setup, world, place, over)


def _checkpoint(setup: Setup, world: World) -> Iterator[Step]:
    """Freeze a checkpoint beside the engine; it is committed once it is durable, in one transaction."""
    server, storage = world.server, world.storage
    if server.report is not None:
        if storage.report is None:
            late = storage._replace(report=server.report)
            yield Step("the report becomes durable", world._replace(storage=late))
        return
    if server.freezing is None:
        if len(server.now.applied) > len(storage.checkpoint.applied):
            kept = () if setup.has(Weakening.KEPT_NOT_IN_CHECKPOINT) else server.now.kept
            freezing = server.now._replace(kept=kept)
            text = f"the server begins a checkpoint at event {len(freezing.applied)}"
            yield Step(text, world._replace(server=server._replace(freezing=freezing)))
        return
    durable = Storage(server.freezing, max(storage.epoch, server.epoch), storage.report)
    written = world._replace(server=server._replace(freezing=None), storage=durable)
    acknowledgement = Acknowledgement(len(server.now.applied), len(server.freezing.applied))
    for place, connection in enumerate(written.connections):
        if connection.epoch == server.epoch and connection.server_holds:
            written = to_guest(setup, written, place, acknowledgement)
    yield Step(f"the checkpoint at event {len(server.freezing.applied)} is durable", written)


def _finish(setup: Setup, world: World) -> Iterator[Step]:
    """Answer FinishSession: the report is stored first, and later calls return what is stored."""
    for number, guest in enumerate(world.guests):
        if not isinstance(guest.finish, FinishSession):
            continue
        asked, server = guest.finish, world.server
        report = server.now.applied if server.report is None else server.report
        is_behind = len(report) < len(asked.digest) and not setup.has(Weakening.FINISHED_WHILE_BEHIND)
        answer: Report | Refused
        if is_behind and server.report is None:
            answered, answer = world, Refused(Reason.EVENT_COUNT_MISMATCH)
        elif not asked.digest.startswith(report.lower()) or is_behind:
            answered, answer = world, Refused(Reason.DIGEST_MISMATCH)
        else:
            answered, answer = _stored(setup, world, report), Report(report)
        answered = with_guest(answered, number, guest._replace(finish=answer))
        yield Step(
            f"the server answers {name_of(guest, number)}'s FinishSession with {in_words(answer)}", answered
        )


def _stored(setup: Setup, world: World, report: str) -> World:
    storage = world.storage
    if not setup.has(Weakening.ANSWERED_BEFORE_STORED):
        storage = storage._replace(report=report)
    server = world.server._replace(report=report, freezing=None)
    return world._replace(server=server, storage=storage, answered=world.answered or report)


def _leave(setup: Setup, world: World) -> Iterator[Step]:
    """End a draining server once all that it applied is committed, and tell open streams so."""
    applied = len(world.server.now.applied)
    is_committed = world.server.freezing is None and applied == len(world.storage.checkpoint.applied)
    if not is_committed and world.server.report is None:
        return
    told = Draining(applied, len(world.storage.checkpoint.applied))
    for place, connection in enumerate(world.connections):
        if connection.epoch == world.server.epoch and connection.server_holds:
            world = to_guest(setup, world, place, told)
    yield Step("the server tells its streams that it drains, and exits", gone(setup, world))


def gone(setup: Setup, world: World) -> World:
    """Return the world without the server's process; what it has sent may still arrive."""
    over = tuple(c._replace(to_server=(), server_holds=False) for c in world.connections)
    guests = tuple(
        guest._replace(finish=None) if isinstance(guest.finish, FinishSession) else guest
        for guest in world.guests
    )
    server = Server(phase=ServerPhase.DOWN, now=Checkpoint())
    return _swept(setup, world._replace(connections=over, guests=guests, server=server))


def _committed(setup: Setup, world: World) -> int:
    if setup.has(Weakening.COMMITTED_AT_APPLY):
        return len(world.server.now.applied)
    return len(world.storage.checkpoint.applied)
