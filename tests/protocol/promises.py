"""What must be so in every state, and at the end of every path."""

from collections.abc import Callable
from typing import Final

from tests.protocol.records import (
    Acknowledgement,
    Draining,
    Guest,
    GuestPhase,
    Opened,
    Reason,
    ServerPhase,
    Setup,
    World,
)

# Where another guest took part in the session, these are the errors that tell so.
_TOLD_OF_ANOTHER: Final = (
    Reason.FENCED,
    Reason.OTHER_STREAM,
    Reason.DIGEST_MISMATCH,
    Reason.SESSION_FINISHED,
    Reason.OUTCOMES_MISSING,
)


def _events_once(setup: Setup, world: World) -> bool:
    states = (world.server.now.applied.lower(), world.storage.checkpoint.applied.lower())
    return all(any(s.startswith(state) for s in _streams(setup)) for state in states)


def _committed_is_durable(_: Setup, world: World) -> bool:
    durable = len(world.storage.checkpoint.applied)
    told = (
        message.committed_events
        for connection in world.connections
        for message in connection.to_guest
        if isinstance(message, Opened | Acknowledgement | Draining)
    )
    return all(committed <= durable for committed in told)


def _guest_keeps(_: Setup, world: World) -> bool:
    durable = len(world.storage.checkpoint.applied)
    return world.storage.report is not None or all(
        guest.kept_from <= durable for guest in world.guests if guest.phase is GuestPhase.RUNNING
    )


def _kept_is_bounded(setup: Setup, world: World) -> bool:
    now = world.server.now
    is_bounded = len(now.applied) - now.confirmed_events <= setup.window
    return is_bounded and all(guest.produced - guest.kept_from <= setup.window for guest in world.guests)


def _outcomes_once(_: Setup, world: World) -> bool:
    return all(
        delivered.lower() == guest.source.events[guest.first_had : guest.first_had + len(delivered)]
        and (not guest.had or len(delivered) == guest.had[lane] - guest.first_had)
        for guest in world.guests
        for lane, delivered in enumerate(guest.delivered)
    )


def _none_between_lives(_: Setup, world: World) -> bool:
    return all(
        guest.first_had <= max(world.seen, *(other.received for other in _others(world, guest)), 0)
        for guest in world.guests
        if guest.is_resumed
    )


def _all_outcomes(_: Setup, world: World) -> bool:
    return all(
        max(guest.received, world.seen if guest.is_resumed else 0) == len(guest.source.events)
        or any(other.received == len(other.source.events) for other in _others(world, guest))
        for guest in world.guests
        if guest.phase is GuestPhase.DONE
    )


def _epoch_rises(_: Setup, world: World) -> bool:
    epochs = [connection.epoch for connection in world.connections if connection.epoch]
    is_back = world.server.phase is not ServerPhase.DOWN and world.server.epoch < world.told_epoch
    return not is_back and len(epochs) == len(set(epochs))


def _report_is_whole(setup: Setup, world: World) -> bool:
    return all(
        report is None or report in _streams(setup)
        for report in (world.server.report, world.storage.report, world.answered)
    )


def _report_stays(_: Setup, world: World) -> bool:
    is_asked = world.answered is not None and world.server.phase is not ServerPhase.DOWN
    return not is_asked or world.server.report == world.answered


def _stops_for_a_reason(setup: Setup, world: World) -> bool:
    return all(
        guest.stopped_by is None or _is_justified(setup, world, guest.stopped_by) for guest in world.guests
    )


PROMISES: Final[dict[str, Callable[[Setup, World], bool]]] = {
    "every event is applied once, in its place": _events_once,
    "what is told to be committed is durable": _committed_is_durable,
    "a guest keeps every block that is not durable": _guest_keeps,
    "what either side keeps is bounded by the window": _kept_is_bounded,
    "a guest is given the outcomes of its own events, once each and in order": _outcomes_once,
    "no outcome is lost between two lives of a guest": _none_between_lives,
    "whoever has the report has had every outcome": _all_outcomes,
    "the epoch never goes back, and no two streams have one": _epoch_rises,
    "a report tells of all events that were sent, and of no other": _report_is_whole,
    "a report stays as it was once answered": _report_stays,
    "a guest stops only if another took its session": _stops_for_a_reason,
}
NO_DEAD_END: Final = "once faults end, every path comes to the report"
NO_LOOP: Final = "once faults end, no path goes round for ever"


def broken_promise(setup: Setup, world: World) -> str | None:
    """Return the first promise that a state breaks."""
    return next((text for text, is_kept in PROMISES.items() if not is_kept(setup, world)), None)


def may_end_here(setup: Setup, world: World) -> bool:
    """Return whether nothing more need happen: each guest has the report, or was told why it has not."""
    return all(
        guest.phase in (GuestPhase.DONE, GuestPhase.STOPPED)
        or (guest.phase is GuestPhase.KILLED and setup.is_closed_loop)
        for guest in world.guests
    )


def _is_justified(setup: Setup, world: World, reason: Reason) -> bool:
    is_other_stream = setup.later_source is not None and setup.later_source.events != setup.source.events
    another_may_be_there = len(world.guests) > 1 or is_other_stream
    return another_may_be_there and reason in _TOLD_OF_ANOTHER


def _streams(setup: Setup) -> tuple[str, ...]:
    later = setup.later_source or setup.source
    return (setup.source.events, later.events)


def _others(world: World, guest: Guest) -> list[Guest]:
    return [other for other in world.guests if other is not guest]
