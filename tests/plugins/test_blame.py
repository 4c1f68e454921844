"""Whose an exception is that passes through an author's code."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from exitlab.plugins import PluginError, blamed

STOP = "def stop(*_): raise SystemExit(143)"


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ({"__name__": "guest_svc.service.child"}, SystemExit),
        # As ``python -m`` has it.
        ({"__name__": "__main__", "__spec__": ModuleSpec("guest_svc.service.child", None)}, SystemExit),
        ({"__name__": "__main__", "__spec__": ModuleSpec("theirs", None)}, PluginError),
        ({"__name__": "__main__", "__spec__": None}, PluginError),
    ],
)
def test_a_signal_of_ours_is_no_error_of_an_author(
    names: dict[str, object], kind: type[BaseException], tmp_path: Path
) -> None:
    """A handler of ours may interrupt him anywhere; one of his own is his."""
    handler = dict(names)
    exec(compile(STOP, sys.executable, "exec"), handler)
    theirs: dict[str, object] = {"__name__": "mine", "stop": handler["stop"]}
    exec(compile("def work(): stop()", str(tmp_path / "mine.py"), "exec"), theirs)
    work = theirs["work"]
    assert callable(work)
    with pytest.raises(kind), blamed(tmp_path, "generate"):
        work()
