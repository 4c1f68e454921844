"""The protocol of a session as a small model. ``explore`` visits every state of it.

What is to be shown: the report tells of every event once, and the guest is given every outcome once,
whatever is cut, killed or stopped.

*The server* has applied events up to A, in its memory. A checkpoint holds A, the digests, the engine's
state, the outcomes that the guest has not confirmed, and F, below which it has. The checkpoint is frozen
beside the engine and becomes durable later: only then is C, what is committed, its A. An epoch is
durable before Opened is on its way, a report before FinishSession is answered. After a crash the server
is back at A = C.

*The guest* keeps the blocks above C and never makes an event twice. It sends a block only if no more
than ``max_uncommitted_events`` are then above C, and none above what it has confirmed: both sides'
memory is bounded by that. It has the outcomes of all lanes up to R.

1. Open{R} raises the epoch, fences the older stream, and says which outcomes need not be sent again. It
   lets the server forget nothing: it may be one of an earlier life of the guest that comes late. R may be
   above A after a crash.
2. Opened{A, C} comes first, then kept outcomes that end above R, then an Acknowledgement{A, C}, which
   tells where they end. A guest that was restarted and knows no R takes the first outcome that comes, or
   A at this acknowledgement, for where it begins. One that knows its R and lacks an outcome below an
   acknowledgement stops: another guest has confirmed it.
3. The guest compares its digests at A with the server's, stops if they differ, and sends from A. A
   restarted guest keeps its blocks from C on, as the server may go back there; and both may cut at other
   events than before.
4. A block that starts at A and whose digests agree is applied whole. Its outcomes go out at once, lane
   by lane, and an Acknowledgement{A, C} after them; another whenever C moves.
5. Outcomes that come again are compared event by event with those that the guest has, and not given to
   its caller again. What it has is told lane by lane: a cut may fall between two lanes of a block.
6. ConfirmOutcomes{R}, on the newest stream, lets the server forget. The guest sends it on every new stream.
   R may be above A: what the guest has need not be kept when it is applied again. But the next Open sets F
   back to A, as that may be another life of the guest, which needs those outcomes.
7. An older stream is told FENCED, and its guest stops. But an Open that the guest gave up before an
   answer came may arrive after a later one of its own, and fence that. So for each such Open it takes
   one FENCED for its own doing, and opens again. A restarted guest cannot know how many its earlier life
   has left.
8. FinishSession names the count and the digests. With A below the count it is refused, and the guest
   opens again. Later calls with the same digests return what is stored. Open on a finished session is
   refused, and a guest that can make its whole stream asks for the report instead.
9. A draining server takes no more messages, commits what it has applied, tells its streams, and exits.

*The network* is a queue each way for each connection. When it is cut, either side may notice first, and
the other may still get what is on its way; or all of that is lost.

A block, an Open or a call is taken in one step of the server, after the block in hand. Not in the model:
CreateSession, which is one durable row by its request id; a server without durable storage; failures of
the engine; time: what is due at some time is a step that may come at any time.

``records`` says what a state consists of, ``guest``, ``server`` and ``faults`` which steps there are,
``promises`` what must be so. The names are those of protos/exitlab/v1/hypervisor.proto.
"""

from collections.abc import Iterator

from tests.protocol.faults import fault_steps
from tests.protocol.guest import fresh_guest, guest_steps
from tests.protocol.records import Setup, Step, World
from tests.protocol.server import server_steps


def start(setup: Setup) -> World:
    """Return the first state: a session was created, and nothing sent yet."""
    return World(guests=(fresh_guest(setup),), faults=setup.faults)


def all_steps(setup: Setup, world: World) -> Iterator[Step]:
    """Go through what can happen in a state."""
    for number in range(len(world.guests)):
        yield from guest_steps(setup, world, number)
    yield from server_steps(setup, world)
    yield from fault_steps(setup, world)
