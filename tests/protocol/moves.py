"""Small changes of a world, used by all who take part in it."""

from tests.protocol.records import Connection, Guest, Setup, ToGuest, ToServer, Weakening, World


def with_guest(world: World, number: int, guest: Guest) -> World:
    """Return the world with a guest changed."""
    guests = (*world.guests[:number], guest, *world.guests[number + 1 :])
    return world._replace(guests=guests)


def connection_of(world: World, number: int) -> int | None:
    """Return which connection the guest holds, if any."""
    for place, connection in enumerate(world.connections):
        if connection.guest == number and connection.guest_holds:
            return place
    return None


def with_connection(setup: Setup, world: World, place: int, connection: Connection) -> World:
    """Return the world with a connection changed; without it if nothing can come of it any more."""
    changed: tuple[Connection, ...] = (connection,)
    if not connection.guest_holds:
        end_matters = setup.has(Weakening.END_IS_FINISH)
        if not connection.server_holds or not (connection.to_server or end_matters):
            changed = ()
    connections = (*world.connections[:place], *changed, *world.connections[place + 1 :])
    return world._replace(connections=connections)


def to_server(setup: Setup, world: World, place: int, message: ToServer) -> World:
    """Return the world with a message on its way to the server."""
    connection = world.connections[place]
    sent = connection._replace(to_server=(*connection.to_server, message))
    return with_connection(setup, world, place, sent)


def to_guest(setup: Setup, world: World, place: int, *messages: ToGuest) -> World:
    """Return the world with messages on their way to the guest; lost if it holds its end no more."""
    connection = world.connections[place]
    if not connection.guest_holds:
        return world
    sent = connection._replace(to_guest=(*connection.to_guest, *messages))
    return with_connection(setup, world, place, sent)


def let_go(setup: Setup, world: World, number: int) -> World:
    """Return the world after a guest has left its connection; what it has sent may still arrive."""
    place = connection_of(world, number)
    if place is None:
        return world
    guest = world.guests[number]
    unanswered = guest.unanswered + (not guest.is_open)
    world = with_guest(world, number, guest._replace(is_open=False, unanswered=unanswered))
    left = world.connections[place]._replace(guest_holds=False, to_guest=())
    return with_connection(setup, world, place, left)
