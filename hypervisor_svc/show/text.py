"""Policy tables in words, for people."""

from collections.abc import Sequence

from exitlab.v1 import policy_pb2
from hypervisor_svc.show.conditions import cubes
from hypervisor_svc.show.fields import constants
from hypervisor_svc.show.moments import (
    MOMENTS,
    NOTHING,
    MomentAnswers,
    joint_space,
    moment_answers,
    moment_name,
    vendor_name,
)


def policy_text(table: policy_pb2.PolicyTable) -> str:
    """Return a policy's whole table: its constants, and for each moment the conditions and the answers."""
    lines = [f"{heading(table)}\n", *aligned(constants(table))]
    idle = []
    for number in MOMENTS:
        found = moment_answers(table, number)
        if found.does_something:
            lines += [f"\n{moment_name(number)}", *aligned(moment_rows(found), indent="  ")]
        else:
            idle.append(moment_name(number))
    return "\n".join(lines) + (f"\n\nNothing happens at: {', '.join(idle)}\n" if idle else "\n")


def heading(table: policy_pb2.PolicyTable) -> str:
    """Return a line that says which table it is."""
    return f"{table.name} on {vendor_name(table)}: {table.summary}"


def moment_rows(table: MomentAnswers) -> list[tuple[str, str]]:
    """Return the conditions of a moment's answers and these; the states left over come last."""
    space = joint_space([table], table.memories)
    found = table.over(space)
    labels = [None if answer == NOTHING else answer for answer in found]
    rows = [(space.condition(cube), " ".join(answer.words())) for cube, answer in cubes(space.sizes, labels)]
    return [*rows, ("otherwise", "nothing")] if NOTHING in found else rows


def aligned(rows: Sequence[Sequence[str]], indent: str = "") -> list[str]:
    """Return lines of aligned columns; numbers to the right, the last column as long as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if cell.replace(",", "").isdecimal() else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return lines
