"""Policies that somebody else wrote, as tables.

An author's class is made anew for each vendor that it lists in ``vendors``, with those of the arguments
``vendor`` and ``dr6_writable`` (bits of DR6 that the guest's CPU lets a guest write) that its ``__init__``
takes, and tabulated as ours are. Only the table leaves this process.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import metadata
from types import TracebackType
from typing import Final

from exitlab import plug_ins
from exitlab.debugreg import dr6_writable
from exitlab.plug_ins import PlugInError
from exitlab.v1 import hypervisor_pb2, policy_pb2
from hypervisor_svc import policies as shipped
from hypervisor_svc.api import API_VERSION
from hypervisor_svc.engine.tables import BadTable, make_table
from hypervisor_svc.engine.vocabulary import Moment
from hypervisor_svc.policies.base import SVM, VMX, Policy, PolicyError, Vendor, tabulate

KIND: Final = plug_ins.Kind("policy", Policy, "hypervisor_svc.api", API_VERSION, plug_ins.POLICIES)
GROUPS: Final = frozenset({"all", "correct"})  # words that stand for several policies
MAX_NAME_CHARACTERS: Final = 256  # a session refuses longer ones
_VENDORS: Final = ((VMX,), (SVM,), (VMX, SVM), (SVM, VMX))
_NO_FEATURES: Final = policy_pb2.CpuFeatures()


@dataclass(frozen=True, slots=True)
class PlugIn:
    """An author's policy: its class, checked, and the vendors that it exists on."""

    made_by: type[Policy]
    name: str
    vendors: tuple[Vendor, ...]

    def table(self, vendor: Vendor, features: policy_pb2.CpuFeatures) -> policy_pb2.PolicyTable:
        """Return its table for a vendor of its own and the guest CPU's features, checked as a session would.

        Raises:
            PlugInError: the class has a mistake, told with its place.

        """
        writable = dr6_writable(rtm=features.rtm, bus_lock_detect=features.bus_lock_detect)
        table, again = (_tabulated(self.made_by, vendor, writable) for _ in range(2))
        if table != again:
            raise plug_ins.at(plug_ins.place_of(self.made_by), f"{self.name}: {_unlike(table, again)}")
        if table.name != self.name:
            said = f"{self.name}: calls itself {table.name!r} elsewhere; a policy has one name"
            raise plug_ins.at(plug_ins.place_of(self.made_by), said)
        try:
            make_table(table)
        except BadTable as error:
            raise plug_ins.at(plug_ins.place_of(self.made_by), str(error)) from error
        return table

    def summary(self) -> hypervisor_pb2.PolicySummary:
        """Return what a list of policies shows of it.

        Raises:
            PlugInError: the class has a mistake, on any of its vendors.

        """
        tables = [self.table(vendor, _NO_FEATURES) for vendor in self.vendors]
        return shipped.summary_of(self.name, tables)


def load(reference: str) -> PlugIn:
    """Return the policy that ``./file.py:Class`` or ``module:Class`` stands for.

    Raises:
        PlugInError: there is none such, or it cannot be one.

    """
    return _plug_in(plug_ins.load(KIND, reference))


def load_entry_point(entry: metadata.EntryPoint) -> PlugIn:
    """Return the policy that a package's entry point names; both must call it the same.

    Raises:
        PlugInError: as for ``load``.

    """
    found = _plug_in(plug_ins.load_entry_point(KIND, entry))
    if found.name != entry.name:
        said = f"calls itself {found.name!r}, but its entry point is named {entry.name!r}"
        raise plug_ins.at(plug_ins.place_of(found.made_by), f"{found.made_by.__name__} {said}")
    return found


def entry_points(warn: Callable[[str], object]) -> dict[str, metadata.EntryPoint]:
    """Return the entry points of policies by name; one whose name is another's is warned of and left out."""
    found: dict[str, metadata.EntryPoint] = {}
    entries = plug_ins.entry_points(KIND.group)
    names = [entry.name for entry in entries]
    for entry in entries:
        package = plug_ins.package_of(entry)
        if problem := name_problem(entry.name):
            warn(f"{package}: its policy {entry.name!r} {problem}")
        elif names.count(entry.name) > 1:
            warn(f"{package}: its policy {entry.name!r} has the name of another package's")
        else:
            found[entry.name] = entry
    return found


def installed(warn: Callable[[str], object]) -> list[tuple[hypervisor_pb2.PolicySummary, str]]:
    """Return the policies of packages, each with its package; one that cannot be used is warned of."""
    found = []
    for name, entry in entry_points(warn).items():
        package = plug_ins.package_of(entry)
        try:
            found.append((load_entry_point(entry).summary(), package))
        except PlugInError as error:
            warn(f"{package}: its policy {name!r}: {error}")
    return found


def name_problem(name: object) -> str:
    """Return why a policy cannot have a name; empty if it can."""
    if not isinstance(name, str):
        return f"is named {name!r}, expected a text"
    if not 1 <= len(name) <= MAX_NAME_CHARACTERS or not name.isprintable() or name.strip() != name:
        return f"is named {name!r}, expected 1 to {MAX_NAME_CHARACTERS} printable characters"
    if name in shipped.policy_names():
        return "has the name of a policy that ExitLab comes with; give it another"
    if name in GROUPS:
        return "has a name that stands for several policies; give it another"
    return ""


def _plug_in(made_by: type[Policy]) -> PlugIn:
    """Check what a class says of itself."""
    vendors = made_by.vendors or (made_by.vendor,)
    if not isinstance(vendors, tuple) or vendors not in _VENDORS:
        said = f"{made_by.__name__}: vendors are {vendors!r}, expected (VMX,), (SVM,) or (VMX, SVM)"
        raise plug_ins.at(plug_ins.place_of(made_by), said)
    _check_methods(made_by)
    name = _made(made_by, vendors[0], dr6_writable(rtm=False, bus_lock_detect=False))[1]
    if problem := name_problem(name):
        raise plug_ins.at(plug_ins.place_of(made_by), f"{made_by.__name__} {problem}")
    return PlugIn(made_by, str(name), vendors)


def _check_methods(made_by: type[Policy]) -> None:
    """Refuse a method that is all but named as a moment: it would never be asked."""
    moments = [moment.name.lower() for moment in Moment]
    for name, method in vars(made_by).items():
        near = get_close_matches(name, moments, n=1, cutoff=0.85)
        if near and name not in moments and inspect.isfunction(method):
            said = f"{made_by.__name__}.{name} is asked at no moment; did you mean {near[0]}?"
            raise plug_ins.at(plug_ins.place_of(method), said)


def _made(made_by: type[Policy], vendor: Vendor, writable: int) -> tuple[Policy, object]:
    """Return a new policy for a vendor, and its name."""
    try:
        with plug_ins.author_speaks():
            takes = inspect.signature(made_by).parameters
            offered = {"vendor": vendor, "dr6_writable": writable}
            made = made_by(**{name: value for name, value in offered.items() if name in takes})
            if "vendor" not in takes:
                made.vendor = vendor
            name, is_for = made.name, made.vendor
    except (Exception, SystemExit) as error:
        said = f"{made_by.__name__} cannot be made"
        raise plug_ins.mistake(error, plug_ins.place_of(made_by), said) from error
    if is_for != vendor:
        said = f"{made_by.__name__}: made for {shipped.vendor_words([vendor])}, it is of another vendor"
        raise plug_ins.at(plug_ins.place_of(made_by), said)
    return made, name


def _tabulated(made_by: type[Policy], vendor: Vendor, writable: int) -> policy_pb2.PolicyTable:
    made, name = _made(made_by, vendor, writable)
    try:
        with plug_ins.author_speaks():
            return tabulate(made)
    except PolicyError as error:
        place = plug_ins.place_in(_innermost(error))
        if not place and error.moment is not None:
            place = plug_ins.place_of(getattr(made_by, error.moment.name.lower()))
        raise plug_ins.at(place or plug_ins.place_of(made_by), str(error)) from error
    except (Exception, SystemExit) as error:  # what it says of itself is of another type
        raise plug_ins.mistake(error, plug_ins.place_of(made_by), f"{name}: cannot be tabulated") from error


def _innermost(error: PolicyError) -> TracebackType | None:
    """Return the traceback of what the author's code raised, if it did."""
    return (error.__cause__ or error).__traceback__


def _unlike(table: policy_pb2.PolicyTable, again: policy_pb2.PolicyTable) -> str:
    """Return in what two tables of one class differ."""
    first, second = ({rows.moment: rows for rows in one.moments} for one in (table, again))
    for number in sorted({*first, *second}):
        if first.get(number) != second.get(number):
            moment = Moment(number - 1)
            said = "asked twice, the policy answers in two ways: by nothing but what it sees may it decide"
            return f"at {moment.name} {said}"
    return "made twice, the policy says two things of itself"
