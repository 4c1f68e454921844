"""Vector files: short sequences of debug-register instructions and what real processors answer.

The format is described in ``docs/vectors.md``.
"""

from guest_svc.vectors.model import (
    SHIPPED,
    Operand,
    Raised,
    Registers,
    Seen,
    Step,
    Symbol,
    Vector,
)
from guest_svc.vectors.reading import read_vectors

__all__ = [
    "SHIPPED",
    "Operand",
    "Raised",
    "Registers",
    "Seen",
    "Step",
    "Symbol",
    "Vector",
    "read_vectors",
]
