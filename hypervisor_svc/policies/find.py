"""What a word for a policy stands for: one of ours, a package's, an author's class, or a table in a file."""

from dataclasses import dataclass
from typing import Final, Protocol

from exitlab.plugins import POLICIES, TABLE_ENDING, entry_points, is_brought
from exitlab.v1 import policy_pb2
from hypervisor_svc import policies as shipped
from hypervisor_svc.policies import plugins, table_files
from hypervisor_svc.policies.base import Vendor

# Of the guest's CPU, all that a table can depend on.
FEATURES: Final = tuple(
    policy_pb2.CpuFeatures(rtm=rtm, bus_lock_detect=bus_lock)
    for rtm in (False, True)
    for bus_lock in (False, True)
)


class Found(Protocol):
    """A policy, wherever it comes from."""

    @property
    def name(self) -> str:
        """Its own name, for reports."""

    @property
    def vendors(self) -> tuple[Vendor, ...]:
        """The vendors that it exists on."""

    def table(self, vendor: Vendor, features: policy_pb2.CpuFeatures) -> policy_pb2.PolicyTable:
        """Return its table for one of its vendors and what the guest's CPU has."""


@dataclass(frozen=True, slots=True)
class Shipped:
    """One of ours."""

    name: str

    @property
    def vendors(self) -> tuple[Vendor, ...]:
        """The vendors that it exists on."""
        return shipped.policy_vendors(self.name)

    def table(self, vendor: Vendor, features: policy_pb2.CpuFeatures) -> policy_pb2.PolicyTable:
        """Return its table."""
        return shipped.policy_table(self.name, vendor, features)


def find(word: str) -> Found:
    """Return the policy that a word stands for: a name of ours is that, whatever packages there are.

    Raises:
        UnknownPolicy: nobody has a policy of that name.
        PluginError: an author's class or table cannot be used.

    """
    if word.endswith(TABLE_ENDING):
        return table_files.read(word)
    if word in shipped.policy_names():
        return Shipped(word)
    packaged = entry_points(POLICIES)
    if word in packaged:
        return plugins.load_entry(word, packaged[word])
    if is_brought(word):
        return plugins.load(word)
    raise shipped.unknown_policy(word)


def lanes(found: Found, vendors: tuple[Vendor, ...]) -> list[policy_pb2.Lane]:
    """Return the policy as every lane that it can be: on each vendor, for each CPU that makes a difference.

    Raises:
        PluginError, PolicyError: its class has a mistake.

    """
    return [
        policy_pb2.Lane(policy_table=found.table(vendor, features), vendor=vendor, features=features)
        for vendor in vendors
        for features in FEATURES
    ]
