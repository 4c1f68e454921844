"""The README names every variable of the environment that the services look at."""

import re
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_variable_is_in_the_readme() -> None:
    """A variable that is read somewhere is described under Environment, and no other is."""
    files = chain.from_iterable(
        (ROOT / name).rglob("*.py") for name in ("guest_svc", "hypervisor_svc", "protos")
    )
    read = {
        word for file in files for word in re.findall(r"EXITLAB_[A-Z_]+", file.read_text(encoding="utf-8"))
    }
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    told = re.findall(r"^- `(EXITLAB_[A-Z_]+)", text.partition("## Environment")[2], re.MULTILINE)
    assert read == set(told)
    assert "EXITLAB_CACHE_DIR" in read
