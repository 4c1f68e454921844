"""A policy's table as a file: protobuf's JSON of ``PolicyTable``, which any language can write."""

import json
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import json_format

from exitlab.plugins import PluginError
from exitlab.v1 import policy_pb2
from exitlab.words import as_written
from hypervisor_svc.engine.tables import BadTable, make_table
from hypervisor_svc.policies.base import Vendor
from hypervisor_svc.policies.plugins import name_problem, texts_problem

MOST_BYTES: Final = 16 << 20  # of a file; a table of ours has some ten thousand


@dataclass(frozen=True, slots=True)
class TableFile:
    """A table that was read from a file, and checked as a session would."""

    data: bytes  # a message can be changed by whoever holds it
    name: str
    vendors: tuple[Vendor, ...]

    def table(self, _vendor: Vendor, _features: policy_pb2.CpuFeatures) -> policy_pb2.PolicyTable:
        """Return the table: a file has one, whatever the guest's CPU has."""
        return policy_pb2.PolicyTable.FromString(self.data)


def read(path: str) -> TableFile:
    """Return the table in a file.

    Raises:
        PluginError: it cannot be read, is no table, or one that cannot be run; the message names file and
            line, field, or moment and state.

    """
    table = policy_pb2.PolicyTable()
    try:
        json_format.ParseDict(_parsed(path), table)
    except json_format.ParseError as error:
        raise PluginError(f"{path}: no PolicyTable: {error}") from None
    if problem := name_problem(table.name):
        raise PluginError(f"{path}: the table {problem}")
    if problem := texts_problem(table):
        raise PluginError(f"{path}: {table.name}: {problem}")
    try:
        make_table(table)
    except BadTable as error:
        raise PluginError(f"{path}: {error}") from error
    return TableFile(table.SerializeToString(deterministic=True), table.name, (table.vendor,))


class _Repeated(Exception):
    """A field that is there twice: protobuf would take the last and lose the others."""


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return an object of its fields; each is there once, whichever way of the two it is written."""
    written: set[str] = set()
    for name, _ in pairs:
        plain = name.replace("_", "").lower()
        if plain in written:
            raise _Repeated(f"the field {as_written(name)} is there twice")
        written.add(plain)
    return dict(pairs)


def _parsed(path: str) -> dict[str, Any]:
    """Return a file's JSON."""
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise PluginError(f"{path}: {error.strerror or error}") from None
    if len(data) > MOST_BYTES:
        raise PluginError(f"{path}: more than {MOST_BYTES >> 20} MiB; no policy's table is so large")
    try:
        found: object = json.loads(data, object_pairs_hook=_once)
        json.dumps(found, ensure_ascii=False).encode()  # half a character would be a message's to refuse
    except json.JSONDecodeError as error:
        raise PluginError(f"{path}:{error.lineno}: no JSON: {error.msg}, column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise PluginError(f"{path}: no JSON: {error}") from None
    except _Repeated as error:
        raise PluginError(f"{path}: no PolicyTable: {error}") from None
    if not isinstance(found, dict):
        raise PluginError(f"{path}: expected the JSON object of a PolicyTable, got {type(found).__name__}")
    return found
