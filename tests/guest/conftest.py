"""What several tests of the guest need."""

from pathlib import Path
from typing import Any

import pytest

from guest_svc.vectors import Vector
from tests.guest.vector_rows import read_back, vector_row


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """Return a function that reads a vector from a file of its own."""

    def read(*steps: dict[str, Any], **fields: Any) -> Vector:
        return read_back(tmp_path, vector_row(*steps, **fields))[0]

    return read
