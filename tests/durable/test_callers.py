"""The sessions of several callers: how many there may be, and whose they are."""

from pathlib import Path

import pytest

from exitlab.serving.refusals import LimitReached, NotFound
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.registry import Held, Registry
from tests.durable.kept_server import Server, run
from tests.hypervisor.test_server import create_request, make_session


@pytest.mark.parametrize(
    ("limits", "owners", "refused"),
    [
        ({"max_sessions": 2, "max_all_sessions": 9}, "aab", ""),
        ({"max_sessions": 2, "max_all_sessions": 9}, "aaa", "2 sessions are not finished"),
        ({"max_sessions": 2, "max_all_sessions": 9}, "ababa", "2 sessions are not finished"),
        ({"max_sessions": 9, "max_all_sessions": 3}, "abc", ""),
        ({"max_sessions": 9, "max_all_sessions": 3}, "abcd", "3 sessions of all callers"),
        ({"max_sessions": 9, "max_all_sessions": 3}, "aaaa", "3 sessions of all callers"),
        ({"max_sessions": 1, "max_all_sessions": 1}, "aa", "1 sessions are not finished"),
    ],
)
def test_how_many_sessions_there_may_be(limits: dict[str, int], owners: str, refused: str) -> None:
    """Each owner has a limit, and all together; one that ends makes room, and a repeat needs none."""

    async def scenario() -> None:
        registry = Registry(ServerLimits(**limits))
        helds: list[Held] = []

        async def create(number: int, owner: str) -> Held:
            return await registry.create(create_request(str(number)), make_session, owner)

        for number, owner in enumerate(owners[:-1]):
            helds.append(await create(number, owner))
        last = len(owners) - 1
        if refused:
            with pytest.raises(LimitReached, match=refused) as refusal:
                await create(last, owners[last])
            assert refusal.value.reason == "TOO_MANY_SESSIONS"
            helds[0].session.finish(0, (0, 0))
        assert await create(last - 1, owners[last - 1]) is helds[-1]
        assert (await create(last, owners[last])).number == len(owners)

    run(scenario)


def test_sessions_of_others_do_not_exist(tmp_path: Path) -> None:
    """An owner's ids, request ids and list are his own, before the next server and after."""

    async def scenario() -> None:
        server = Server(tmp_path)
        for _ in range(2):
            registry, make = server.servicer.registry, server.servicer._make_session
            ann, bob = [await registry.create(create_request("r"), make, owner) for owner in ("ann", "bob")]
            assert ann is not bob
            assert registry.find(ann.session.session_id, owner="ann") is ann
            for owner in ("bob", ""):
                with pytest.raises(NotFound):
                    registry.find(ann.session.session_id, owner=owner)
            assert [registry.after(0, owner) for owner in ("ann", "bob", "")] == [[ann], [bob], []]
            assert registry.after(0, None) == [ann, bob]
            server.stop()
            server = Server(tmp_path)
        server.stop()

    run(scenario)
