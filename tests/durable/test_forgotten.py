"""What a server with a state directory forgets, and when."""

import dataclasses
from pathlib import Path

import pytest

from exitlab.serving.refusals import Unavailable
from tests.durable.kept_server import Reader, Server, run
from tests.durable.stored import loaded
from tests.hypervisor.test_server import LIMITS, SECONDS

DAY = 86_400
WEEK = 7 * DAY


@pytest.mark.parametrize(
    ("seconds", "limits", "left"),
    [
        (3600, {}, "new cut done"),
        (3601, {}, "done"),
        (WEEK + 1, {}, "done"),
        (WEEK + 1, {"idle_seconds": 2 * WEEK}, "done"),
        (WEEK, {"idle_seconds": 2 * WEEK}, "new cut done"),
        (52 * WEEK, {"idle_seconds": 1}, "done"),
    ],
)
def test_what_is_dropped_is_forgotten(
    tmp_path: Path, seconds: float, limits: dict[str, int], left: str
) -> None:
    """Idle and too old sessions go from the store as well; reports that are stored may be idle for ever."""

    async def scenario() -> None:
        server = Server(tmp_path, dataclasses.replace(LIMITS, **limits))
        for name in ("new", "cut", "done"):
            session_id = await server.create(name)
            if name == "cut":
                await server.send(session_id, 1)
        await server.finish(session_id)
        server.passed_seconds = seconds
        assert " ".join((await server.page())[0]) == left
        server.stop()
        server = Server(tmp_path)
        assert " ".join((await server.page())[0]) == left
        server.stop()

    run(scenario)


def test_what_cannot_be_forgotten_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the store fails, the session is dropped and a line says so; the next server has it again."""

    def fails(session_ids: list[str]) -> None:
        raise Unavailable("NOT_STORED", f"no room to forget {len(session_ids)}")

    async def scenario() -> None:
        server = Server(tmp_path)
        for name in "ab":
            await server.create(name)
        monkeypatch.setattr(server.store, "delete", fails)
        server.passed_seconds = 3601
        assert await server.page() == ([], "")
        server.stop()
        server = Server(tmp_path)
        assert await server.page() == (["a", "b"], "")
        server.stop()

    told = [line for line in run(scenario) if line["log_level"] == "error"]
    why = "no room to forget 2"
    assert told == [{"event": "not forgotten", "log_level": "error", "sessions": 2, "why": why}]


def test_ages_go_on(tmp_path: Path) -> None:
    """A session is too old after so many seconds in which servers ran; its idle time begins anew."""

    async def scenario() -> None:
        limits = dataclasses.replace(LIMITS, idle_seconds=100, max_session_seconds=250)
        server, reader = Server(tmp_path, limits), Reader()
        session_id = await server.create("a")
        for age_seconds in (90, 180):
            server.passed_seconds += 90
            await server.send(session_id, 1, reader=reader)
            (stored,) = loaded(server.store)
            # The start of a server takes some time too.
            assert stored.age_seconds == pytest.approx(age_seconds, abs=SECONDS)
            server.stop()
            server = Server(tmp_path, limits)
        assert await server.create("a") == session_id
        server.passed_seconds += 90
        assert await server.page() == ([], "")
        server.stop()

    run(scenario)


def test_the_newest_reports_are_kept(tmp_path: Path) -> None:
    """When there are too many, the oldest go from the store too; with a lower limit more of them go."""

    async def scenario() -> None:
        for most, expected in ((3, "cdex"), (2, "dexy"), (1, "exyz")):
            server = Server(tmp_path, dataclasses.replace(LIMITS, max_reports=most))
            if most == 3:
                for name in "abcde":
                    await server.finish(await server.create(name))
            await server.create("xyz"[3 - most])
            assert "".join((await server.page())[0]) == expected
            server.stop()
        server = Server(tmp_path)
        assert "".join((await server.page())[0]) == expected
        server.stop()

    run(scenario)
