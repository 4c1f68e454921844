"""The architecture alone over a block of events: what every lane is held to."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exitlab.debugreg import dr6_writable
from exitlab.v1 import policy_pb2
from hypervisor_svc.arch import reference
from hypervisor_svc.engine.records import Words
from hypervisor_svc.engine.validation import Block


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What the reference says of a block's events; arrays of one length."""

    stories: NDArray[np.uint8]
    values: Words
    undefined: NDArray[np.uint32]

    def slice(self, start: int, stop: int) -> "Truth":
        """Return what it says of events ``start`` to ``stop``."""
        return Truth(self.stories[start:stop], self.values[start:stop], self.undefined[start:stop])

    @classmethod
    def empty(cls, count: int) -> "Truth":
        """Return arrays for ``count`` events, to be filled."""
        return cls(np.empty(count, np.uint8), np.empty(count, np.uint64), np.empty(count, np.uint32))


@dataclass(frozen=True, slots=True)
class ReferenceKey:
    """What makes one reference differ from another."""

    vendor: policy_pb2.Vendor.ValueType
    rtm: bool
    bus_lock_detect: bool

    @classmethod
    def of(cls, vendor: policy_pb2.Vendor.ValueType, features: policy_pb2.CpuFeatures) -> "ReferenceKey":
        """Return the key for a vendor and the CPU's features."""
        return cls(vendor, features.rtm, features.bus_lock_detect)

    @property
    def features(self) -> policy_pb2.CpuFeatures:
        """The CPU's features as the contract's message."""
        return policy_pb2.CpuFeatures(rtm=self.rtm, bus_lock_detect=self.bus_lock_detect)

    @property
    def dr6_writable(self) -> int:
        """The bits of DR6 that a guest can write there."""
        return dr6_writable(rtm=self.rtm, bus_lock_detect=self.bus_lock_detect)


@dataclass(slots=True, eq=False)
class Past:
    """A block that was run, and the records before one of its events."""

    state: Words
    event: int
    block: Block
    leading: Truth | None


class Reference:
    """The architecture alone for one vendor and CPU."""

    def __init__(self, key: ReferenceKey, vcpus: int, *, is_computed: bool) -> None:
        """Make the state after reset."""
        self.key = key
        self._is_computed = is_computed
        self.state: Words = reference.new_reference_state(vcpus, is_computed=is_computed)
        self.counts: Words = np.zeros(reference.REFERENCE_COUNTS, np.uint64)
        self.added_digest = np.uint64(0)  # by the last block
        self._past: Past

    def run(self, block: Block, first_event: int, *, leading: Truth | None) -> Truth:
        """Run a checked block and return what the guest sees."""
        truth = Truth.empty(len(block.kinds))
        self._past = Past(self.state.copy(), 0, block, leading)
        before = self.counts[reference.DIGEST]
        self._call(block, first_event, truth, leading)
        with np.errstate(over="ignore"):
            self.added_digest = self.counts[reference.DIGEST] - before
        return truth

    def state_before(self, event: int) -> Words:
        """Return the vCPUs' records before an event of the last block; not before one asked for earlier."""
        past = self._past
        if event > past.event:
            part = past.block.slice(past.event, event)
            leading = None if past.leading is None else past.leading.slice(past.event, event)
            state, counts = self.state, self.counts
            self.state, self.counts = past.state, counts.copy()
            try:
                self._call(part, 0, Truth.empty(len(part.kinds)), leading)
            finally:
                self.state, self.counts = state, counts
            past.event = event
        return past.state

    def _call(self, block: Block, first_event: int, truth: Truth, leading: Truth | None) -> None:
        lead = truth if leading is None else leading
        with np.errstate(over="ignore"):
            reference.run_reference(
                *(block.kinds, block.args, block.modes, block.marks, block.vcpus),
                *(block.gap_cycles, block.selectors, block.values, np.uint64(first_event)),
                *(self._is_computed, leading is None, self.key.vendor == policy_pb2.VENDOR_SVM),
                *(np.uint64(self.key.dr6_writable), lead.stories),
                *(self.state, self.counts, truth.stories, truth.values, truth.undefined),
            )
