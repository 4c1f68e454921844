"""What may go wrong, and what people may do: each a bounded number of times."""

from collections.abc import Iterator

from tests.protocol.guest import name_of, resumed_guest
from tests.protocol.moves import connection_of, let_go, with_connection, with_guest
from tests.protocol.records import (
    Connection,
    FinishSession,
    GuestPhase,
    Report,
    ServerPhase,
    Setup,
    Step,
    World,
)
from tests.protocol.server import gone


def fault_steps(setup: Setup, world: World) -> Iterator[Step]:
    """Go through the faults that may happen now."""
    faults = world.faults
    if faults.cuts:
        after = world._replace(faults=faults._replace(cuts=faults.cuts - 1))
        yield from _cut(setup, after)
    if faults.crashes and world.server.phase is not ServerPhase.DOWN:
        after = world._replace(faults=faults._replace(crashes=faults.crashes - 1))
        yield from _crash(setup, after)
    if faults.kills and world.guests[0].phase is GuestPhase.RUNNING:
        after = world._replace(faults=faults._replace(kills=faults.kills - 1))
        yield _kill(setup, after)
    if faults.drains and world.server.phase is ServerPhase.UP:
        after = world._replace(faults=faults._replace(drains=faults.drains - 1))
        draining = after.server._replace(phase=ServerPhase.DRAINING)
        yield Step("the server is sent SIGTERM", after._replace(server=draining), is_fault=True)
    if faults.second_guests:
        after = world._replace(faults=faults._replace(second_guests=faults.second_guests - 1))
        after = after._replace(guests=(*after.guests, resumed_guest(setup, unanswered=0)))
        yield Step("a second guest is started to resume the same session", after, is_fault=True)


def _cut(setup: Setup, world: World) -> Iterator[Step]:
    """Lose a connection, or a unary call. Either side may notice first; it still gets what is on its way."""
    for number, guest in enumerate(world.guests):
        name = name_of(guest, number)
        if isinstance(guest.finish, FinishSession | Report):
            lost = with_guest(world, number, guest._replace(finish=None))
            yield Step(f"{name}'s call of FinishSession is cut", lost, is_fault=True)
        place = connection_of(world, number)
        if place is None or not world.connections[place].server_holds:
            continue
        yield Step(f"{name}'s connection is cut: it notices first", let_go(setup, world, number), True)
        half = world.connections[place]._replace(to_server=(), server_holds=False)
        unnoticed = with_connection(setup, world, place, half)
        yield Step(f"{name}'s connection is cut: the server notices first", unnoticed, True)


def _crash(setup: Setup, world: World) -> Iterator[Step]:
    """Lose the server's memory, and with it all that was on its way to it; or both ways."""
    down = gone(setup, world)
    yield Step("the server crashes", down, is_fault=True)
    silent: tuple[Connection, ...] = tuple(c._replace(to_guest=()) for c in down.connections)
    if silent != down.connections:
        text = "the server crashes, and what it sent is lost"
        yield Step(text, down._replace(connections=silent), is_fault=True)


def _kill(setup: Setup, world: World) -> Step:
    guest = world.guests[0]
    world = let_go(setup, world, 0)._replace(seen=max(world.seen, guest.received))
    killed = world.guests[0]._replace(phase=GuestPhase.KILLED, finish=None)
    return Step(f"{name_of(guest, 0)} is killed", with_guest(world, 0, killed), is_fault=True)
