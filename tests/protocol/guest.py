"""What a guest does."""

import dataclasses
from collections.abc import Iterator
from typing import Final

from tests.protocol.moves import connection_of, let_go, to_server, with_connection, with_guest
from tests.protocol.records import (
    Acknowledgement,
    ConfirmOutcomes,
    Connection,
    Draining,
    EventBlock,
    FinishSession,
    Guest,
    GuestPhase,
    Open,
    Opened,
    OutcomePart,
    Reason,
    Refused,
    Report,
    ServerPhase,
    Setup,
    Step,
    ToGuest,
    ToServer,
    Weakening,
    World,
)

_MOST_ON_THE_WAY: Final = 2  # messages to the server, so that worlds are finite


def fresh_guest(setup: Setup) -> Guest:
    """Return a guest at the start of its stream."""
    return Guest(setup.source, had=(0,) * setup.lanes, delivered=("",) * setup.lanes)


def resumed_guest(setup: Setup, unanswered: int) -> Guest:
    """Return a guest that knows nothing but the session and how to make a stream again.

    Its earlier life may have left some Opens ``unanswered``.
    """
    source = setup.later_source or setup.source
    return Guest(source, is_resumed=True, delivered=("",) * setup.lanes, unanswered=unanswered)


def guest_steps(setup: Setup, world: World, number: int) -> Iterator[Step]:
    """Go through what a guest can do now."""
    guest = world.guests[number]
    name = name_of(guest, number)
    if guest.phase is GuestPhase.KILLED and not setup.is_closed_loop:
        again = resumed_guest(setup, unanswered=1 + setup.faults.cuts)
        yield Step(f"{name} is started again to resume", with_guest(world, number, again))
    if guest.phase is not GuestPhase.RUNNING:
        return
    if guest.finish is not None:
        yield from _hear_of_finish(setup, world, number, name)
    elif _may_finish(setup, guest):
        asked = let_go(setup, world, number)
        asking = asked.guests[number]._replace(finish=FinishSession(guest.source.events))
        yield Step(f"{name} ends its stream and calls FinishSession", with_guest(asked, number, asking))
    else:
        place = connection_of(world, number)
        if place is None:
            yield from _connect(world, number, name)
        else:
            yield from _use(setup, world, number, place)


def _may_finish(setup: Setup, guest: Guest) -> bool:
    has_all = bool(guest.had) and guest.received == len(guest.source.events)
    return guest.all_are_applied and (has_all or setup.has(Weakening.FINISHES_AT_APPLIED))


def name_of(guest: Guest, number: int) -> str:
    """Return what a guest is called in a path."""
    return f"{'the' if number == 0 else 'a second'} {'resumed ' if guest.is_resumed else ''}guest"


def in_words(message: ToServer | ToGuest | Report) -> str:
    """Return a message as a path tells it."""
    fields = ", ".join(f"{f.name} {_plain(getattr(message, f.name))}" for f in dataclasses.fields(message))
    return f"{type(message).__name__} ({fields})"


def _plain(value: object) -> str:
    return str(value) if isinstance(value, Reason | int) else repr(value)


def _connect(world: World, number: int, name: str) -> Iterator[Step]:
    if world.server.phase is not ServerPhase.UP:
        return  # refused, and tried again later
    received = world.guests[number].received
    connection = Connection(number, to_server=(Open(received),))
    connections = (*world.connections, connection)
    yield Step(f"{name} sends {in_words(Open(received))}", world._replace(connections=connections))


def _use(setup: Setup, world: World, number: int, place: int) -> Iterator[Step]:
    connection = world.connections[place]
    guest = world.guests[number]
    name = name_of(guest, number)
    if connection.to_guest:
        message = connection.to_guest[0]
        rest = connection._replace(to_guest=connection.to_guest[1:])
        taken = with_connection(setup, world, place, rest)
        yield Step(f"{name} receives {in_words(message)}", _take(setup, taken, number, message))
    elif not connection.server_holds:
        yield Step(f"{name} notices the end of its connection", let_go(setup, world, number))
    if not (guest.is_open and connection.server_holds and len(connection.to_server) < _MOST_ON_THE_WAY):
        return
    if guest.received > guest.confirmed:
        confirming = with_guest(world, number, guest._replace(confirmed=guest.received))
        message_back = ConfirmOutcomes(guest.received)
        yield Step(
            f"{name} sends {in_words(message_back)}", to_server(setup, confirming, place, message_back)
        )
    if _may_send(setup, guest):
        end = guest.source.end_of_block(guest.sent)
        block = EventBlock(guest.sent, guest.source.events[guest.sent : end], guest.source.events[:end])
        sending = guest._replace(sent=end, produced=max(guest.produced, end))
        sent = to_server(setup, with_guest(world, number, sending), place, block)
        yield Step(f"{name} sends {block.events!r} at event {block.first_event}", sent)


def _may_send(setup: Setup, guest: Guest) -> bool:
    """Return whether the next block may be sent: made before, or to be made and kept within the window."""
    if not guest.had or guest.sent == len(guest.source.events):
        return False
    end = guest.source.end_of_block(guest.sent)
    if end > guest.produced and setup.is_closed_loop and guest.received < guest.produced:
        return False
    if not setup.has(Weakening.SENDS_UNCONFIRMED) and end - guest.confirmed > setup.window:
        return False
    return end - guest.kept_from <= setup.window


def _take(setup: Setup, world: World, number: int, message: ToGuest) -> World:
    guest = world.guests[number]
    match message:
        case Opened():
            return _take_opened(setup, world, number, message)
        case OutcomePart():
            return _take_outcomes(setup, world, number, message)
        case Acknowledgement():
            return _take_acknowledgement(setup, world, number, message)
        case Draining():
            return let_go(setup, world, number)
        case Refused(reason=Reason.SESSION_FINISHED):
            # Its own call may have done that, or that of its earlier life: the digest will tell.
            left = let_go(setup, world, number)
            if guest.is_resumed or guest.produced == len(guest.source.events):
                asking = left.guests[number]._replace(finish=FinishSession(guest.source.events))
                return with_guest(left, number, asking)
            return _stop(left, number, Reason.SESSION_FINISHED)
        case Refused(reason=Reason.FENCED) if guest.unanswered and not setup.has(
            Weakening.EVERY_FENCE_IS_ANOTHERS
        ):
            # An Open that it gave up may have come after the one that was answered: it opens once more.
            left = let_go(setup, world, number)
            return with_guest(left, number, left.guests[number]._replace(unanswered=guest.unanswered - 1))
        case Refused(reason=reason):
            return _stop(let_go(setup, world, number), number, reason)


def _take_opened(setup: Setup, world: World, number: int, opened: Opened) -> World:
    guest = world.guests[number]
    next_event, committed = opened.next_event, opened.committed_events
    may_make = len(guest.source.events) if guest.is_resumed else guest.produced
    is_same = next_event <= may_make and opened.digest == guest.source.events[:next_event]
    if not is_same and not setup.has(Weakening.OPENED_UNCHECKED):
        return _stop(let_go(setup, world, number), number, Reason.OTHER_STREAM)
    if next_event < guest.kept_from:
        return _stop(let_go(setup, world, number), number, Reason.CANNOT_SEND_AGAIN)
    if guest.is_resumed and guest.produced == 0 and setup.has(Weakening.RESUMED_KEEPS_FROM_NEXT_EVENT):
        committed = next_event
    if setup.has(Weakening.NO_ACKNOWLEDGEMENT_AFTER_REPEATED):
        had = guest.had or (next_event,) * setup.lanes
        guest = guest._replace(had=had, all_are_applied=next_event == len(guest.source.events))
        guest = guest._replace(first_had=guest.first_had if world.guests[number].had else next_event)
    if setup.has(Weakening.FORGETS_BELOW_COMMITTED) and guest.had and committed > guest.received:
        guest = guest._replace(had=(guest.received,) * setup.lanes)
    guest = guest._replace(
        is_open=True,
        produced=max(guest.produced, next_event),
        kept_from=max(guest.kept_from, committed),
        sent=next_event,
        confirmed=0,  # what it confirmed before may be lost
    )
    return with_guest(world, number, guest)


def _take_acknowledgement(setup: Setup, world: World, number: int, told: Acknowledgement) -> World:
    guest = world.guests[number]
    if not guest.had:  # whatever is below was confirmed by an earlier life
        guest = guest._replace(had=(told.applied_events,) * setup.lanes, first_had=told.applied_events)
    if guest.received < told.applied_events and not setup.has(Weakening.MISSING_UNNOTICED):
        # Outcomes go before the acknowledgement: another guest has confirmed these.
        return _stop(let_go(setup, world, number), number, Reason.OUTCOMES_MISSING)
    drops_at_applied = setup.has(Weakening.DROPS_AT_APPLIED)
    dropped = told.applied_events if drops_at_applied else told.committed_events
    is_all = told.applied_events == len(guest.source.events)
    guest = guest._replace(kept_from=max(guest.kept_from, dropped), all_are_applied=is_all)
    return with_guest(world, number, guest)


def _take_outcomes(setup: Setup, world: World, number: int, part: OutcomePart) -> World:
    guest = world.guests[number]
    if not guest.had:
        guest = guest._replace(had=(part.first_event,) * setup.lanes, first_had=part.first_event)
    have, delivered = guest.had[part.lane], guest.delivered[part.lane]
    if part.first_event > have:
        return _stop(let_go(setup, world, number), number, Reason.OUTCOMES_MISSING)
    repeated = part.outcomes[: have - part.first_event]
    new = part.outcomes[len(repeated) :]
    for event, outcome in enumerate(repeated, part.first_event):
        is_known = event >= max(guest.first_had, guest.kept_from)
        if is_known and delivered[event - guest.first_had] != outcome:
            return _stop(let_go(setup, world, number), number, Reason.OUTCOMES_DIFFER)
    if repeated and new and setup.has(Weakening.COMPARES_WHOLE_PARTS):
        return _stop(let_go(setup, world, number), number, Reason.OUTCOMES_DIFFER)
    if setup.has(Weakening.DELIVERS_REPEATED):
        new = part.outcomes
    end = max(have, part.first_event + len(part.outcomes))
    had = tuple(end if lane == part.lane else n for lane, n in enumerate(guest.had))
    given = tuple(d + new if lane == part.lane else d for lane, d in enumerate(guest.delivered))
    return with_guest(world, number, guest._replace(had=had, delivered=given))


def _hear_of_finish(setup: Setup, world: World, number: int, name: str) -> Iterator[Step]:
    guest = world.guests[number]
    heard = guest._replace(finish=None)
    asks_again = setup.has(Weakening.ASKS_AGAIN)
    match guest.finish:
        case Report(stored=stored):
            done = heard._replace(phase=GuestPhase.DONE)
            yield Step(f"{name} receives the report {stored!r}", with_guest(world, number, done))
        case Refused(reason=Reason.EVENT_COUNT_MISMATCH):
            behind = with_guest(world, number, heard._replace(all_are_applied=asks_again))
            yield Step(f"{name} hears that the server is behind", behind)
        case Refused(reason=reason):
            yield Step(f"{name} is refused the report", _stop(world, number, reason))
        case _:
            return


def _stop(world: World, number: int, reason: Reason) -> World:
    stopped = world.guests[number]._replace(phase=GuestPhase.STOPPED, stopped_by=reason, finish=None)
    return with_guest(world, number, stopped)
