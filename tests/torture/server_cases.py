"""What may happen to the server: it is killed, drained, its disk is full, its clock jumps."""

import signal
from collections import Counter
from collections.abc import Iterable, Sequence
from random import Random
from typing import Final

from guest_svc.errors import NotConnected
from tests.faults.guest import LONG, LOOPS, Loop, run_session
from tests.torture.served import Plan
from tests.torture.sites import (
    COMMITTED,
    CREATED,
    DRAIN,
    FILL,
    IN_CREATE,
    KILL,
    LOADED,
    RESTORED,
    SITES,
    SITES_OF_A_RESTART,
)
from tests.torture.yard import Yard, stored_reports

ALL_SITES: Final = (*SITES, *SITES_OF_A_RESTART)
_LONGEST_SECONDS: Final = 0.2  # a session takes about as long
# Once a session is there; before, a guest that gets no answer has nothing that could go on.
_FILLED_SITES: Final = tuple(site for site in SITES if site not in {IN_CREATE, CREATED})


def _turn(number: int, sites: Sequence[str]) -> tuple[Random, Loop, str]:
    """Return what a case draws from, and whose turn it is: one site after the other, the loops in turn."""
    turn, place = divmod(number, len(sites))
    return Random(number), LOOPS[(turn + place) % 2], sites[place]


def _drawn(yard: Yard, loop: Loop, site: str, chance: Random, action: str, **more: int) -> Plan:
    """Return a plan for some arrival at a site, of those that a session makes."""
    arrivals = yard.arrivals[loop][site]
    return Plan(action=action, site=site, arrival=chance.randint(1, max(1, arrivals)), **more)


def _run(yard: Yard, loop: Loop, plans: Iterable[Plan]) -> Counter[str]:
    """Run a session on a server to which all this happens, and return what has happened."""
    with yard.keeper(plans) as keeper:
        again = Counter[str]()
        while True:
            try:
                ran = run_session(keeper.address, loop, LONG, greets=True)
                break
            except NotConnected:  # its very first call was cut, which the guest says and leaves to its caller
                again["attempts cut in the very first call"] += 1
        yard.check(ran, loop)
    stored = stored_reports(keeper)
    assert len(stored) == 1, f"{len(stored)} sessions came of one"
    assert stored == [ran.report], "the report is not stored as it was told"
    return keeper.struck + again


def killed(yard: Yard, number: int) -> Counter[str]:
    """Kill the server at one site after the other, and some more of what follows it."""
    chance, loop, site = _turn(number, ALL_SITES)
    plans = [_drawn(yard, loop, site, chance, KILL)]
    if site in SITES_OF_A_RESTART:  # there has to be something to restore
        before = yard.arrivals[loop][COMMITTED] // 2
        plans.insert(0, Plan(action=KILL, site=COMMITTED, arrival=chance.randint(1, before)))
    for _ in range(chance.randint(0, 2)):
        plans.append(Plan(action=KILL, site=chance.choice(ALL_SITES), arrival=chance.randint(1, 3)))
    return _run(yard, loop, plans)


def killed_at_random_moments(yard: Yard, number: int) -> Counter[str]:
    """Kill the server at times that nothing is known of."""
    chance = Random(number)
    plans = [Plan(after_seconds=chance.uniform(0, _LONGEST_SECONDS)) for _ in range(chance.randint(1, 3))]
    return _run(yard, LOOPS[number % 2], plans)


def drained(yard: Yard, number: int) -> Counter[str]:
    """Have the server stop in order in mid-stream, once or twice, and perhaps killed afterwards."""
    chance, loop, site = _turn(number, SITES)
    plans = [_drawn(yard, loop, site, chance, DRAIN)]
    if chance.randint(0, 1):
        plans.append(Plan(action=DRAIN, site=chance.choice(SITES), arrival=chance.randint(1, 3)))
    if chance.randint(0, 1):
        plans.append(Plan(action=KILL, site=chance.choice(ALL_SITES), arrival=chance.randint(1, 3)))
    return _run(yard, loop, plans)


def filled(yard: Yard, number: int) -> Counter[str]:
    """Have the disk full in mid-stream; the server is killed or stopped, and the next one has room."""
    chance, loop, site = _turn(number, _FILLED_SITES)
    ending = chance.choice((signal.SIGKILL, signal.SIGTERM))
    return _run(yard, loop, [_drawn(yard, loop, site, chance, FILL, full_signal=int(ending))])


def clocked(yard: Yard, number: int) -> Counter[str]:
    """Have the clock of the wall jump by years all the time, over a kill and a restart."""
    chance, loop = Random(number), LOOPS[number % 2]
    kill = _drawn(yard, loop, chance.choice(SITES), chance, KILL, clock_seed=number)
    restored = Plan(action=KILL, site=chance.choice((LOADED, RESTORED)), clock_seed=number + 1)
    return _run(yard, loop, [kill, restored, Plan(clock_seed=number + 2)]) + Counter({"clocks": 1})
