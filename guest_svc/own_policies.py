"""Policies that the guest brings along beside those that the hypervisor has.

Each travels as a table in the lane, and the hypervisor checks it. ``tabulation`` says which words of
``--policy`` they are, and makes their tables.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from google.protobuf import json_format

from exitlab.command_line import tell
from exitlab.plugins import is_brought
from exitlab.v1 import hypervisor_pb2, policy_pb2
from exitlab.words import shortened
from guest_svc.errors import BadInput
from guest_svc.hypervisor import Hypervisor, wire_text
from guest_svc.results import vendor_name
from guest_svc.tabulation import Tabulation

_Vendor: TypeAlias = policy_pb2.Vendor.ValueType
_Tables: TypeAlias = dict[tuple[_Vendor, bool, bool], policy_pb2.PolicyTable]  # by vendor, RTM, bus lock
_MOST_CHARACTERS: Final = 120  # of what is told of a line
_PLAIN: Final = policy_pb2.CpuFeatures()


@dataclass(frozen=True, slots=True)
class OwnPolicies:
    """The tables of the policies that are brought along, by name."""

    tables: Mapping[str, _Tables] = field(default_factory=dict)

    def lane(self, name: str, vendor: _Vendor, features: policy_pb2.CpuFeatures = _PLAIN) -> policy_pb2.Lane:
        """Return a lane of a policy, brought along or the hypervisor's, for what the guest's CPU has.

        Raises:
            BadInput: it is brought along, and not for this vendor.

        """
        if name not in self.tables:
            return policy_pb2.Lane(policy_name=wire_text(name), vendor=vendor, features=features)
        table = self.tables[name].get((vendor, features.rtm, features.bus_lock_detect))
        if table is None:
            exists = ", ".join(map(vendor_name, self._vendors(name)))
            raise BadInput(f"policy {name!r} exists on {exists} only")
        return policy_pb2.Lane(policy_table=table, vendor=vendor, features=features)

    def table(self, name: str, vendor: _Vendor) -> policy_pb2.PolicyTable | None:
        """Return the table of a policy that is brought along; None for one that is not."""
        return self.lane(name, vendor).policy_table if name in self.tables else None

    def summaries(self) -> list[hypervisor_pb2.PolicySummary]:
        """Return what a list of policies shows of those that are brought along."""
        found = []
        for name in self.tables:
            vendors = self._vendors(name)
            correct = [one for one in vendors if self.lane(name, one).policy_table.claims_correct]
            found.append(
                hypervisor_pb2.PolicySummary(
                    name=name,
                    vendors=vendors,
                    correct_vendors=correct,
                    claims_correct=correct == vendors,
                )
            )
        return found

    def _vendors(self, name: str) -> list[_Vendor]:
        return list(dict.fromkeys(vendor for vendor, *_ in self.tables[name]))


NO_OWN: Final = OwnPolicies()


def collect(words: Sequence[str], tabulations: Iterable[Tabulation]) -> tuple[list[str], OwnPolicies]:
    """Wait for the tables; return the name of each word's policy, and those that are brought along.

    Raises:
        BadInput: one cannot be tabulated, or two have the same name.

    """
    tables: dict[str, _Tables] = {}
    names: dict[str, str] = {}  # by word
    for tabulation in tabulations:
        for line in tabulation.lines():
            lane = _lane_of(line, tabulation.word)
            name = names[tabulation.word] = lane.policy_table.name
            place = lane.vendor, lane.features.rtm, lane.features.bus_lock_detect
            known = tables.setdefault(name, {}).setdefault(place, lane.policy_table)
            if known != lane.policy_table:
                others = (word for word, its in names.items() if its == name and word != tabulation.word)
                both = f"{next(others)} and {tabulation.word}"
                raise BadInput(f"--policy: {both} are both called {name!r}; give one another name")
    return [names.get(word, word) for word in words], OwnPolicies(tables)


def _lane_of(line: str, word: str) -> policy_pb2.Lane:
    try:
        return json_format.Parse(line, policy_pb2.Lane())
    except json_format.ParseError as error:
        said = f"its process printed what is no lane: {shortened(str(error), _MOST_CHARACTERS)}"
        raise BadInput(f"--policy {word}: {said}") from None


def without_clashes(
    own: OwnPolicies, words: Iterable[str], names: Iterable[str], hypervisor: Hypervisor
) -> OwnPolicies:
    """Return the policies without those that the hypervisor has itself; ``names`` are those of ``words``.

    Raises:
        BadInput: one that is written as a class or a table has the name of one of the hypervisor's.

    """
    if not own.tables:
        return own
    there = {summary.name for summary in hypervisor.policies()} & own.tables.keys()
    for word, name in zip(words, names, strict=True):
        if name in there and is_brought(word):
            said = f"the hypervisor has a policy called {name!r}; give yours another name"
            raise BadInput(f"--policy {word}: {said}")
    for name in sorted(there):
        tell("guest-svc", f"the hypervisor has a policy {name!r}, which is run; a package's is left out")
    return OwnPolicies({name: tables for name, tables in own.tables.items() if name not in there})
