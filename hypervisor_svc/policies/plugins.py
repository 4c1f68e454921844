"""Policies that somebody else wrote, as tables.

An author's class is made anew for each vendor that it lists in ``vendors``, with those of the arguments
``vendor`` and ``dr6_writable`` (bits of DR6 that the guest's CPU lets a guest write) that its ``__init__``
takes, and tabulated as ours are. Only the table leaves this process. What is wrong with a class is told with
its file and line. What it prints is no output of ours (``exitlab.command_line``).
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import metadata
from typing import Final

from exitlab import plugins
from exitlab.debugreg import dr6_writable
from exitlab.plugins import PluginError
from exitlab.v1 import hypervisor_pb2, policy_pb2
from exitlab.words import as_written
from hypervisor_svc import policies as shipped
from hypervisor_svc.api import API_VERSION
from hypervisor_svc.engine.tables import BadTable, make_table
from hypervisor_svc.engine.vocabulary import Moment
from hypervisor_svc.policies.base import SVM, VMX, Policy, PolicyError, Vendor, tabulate

SEVERAL: Final = frozenset({"all", "correct"})  # words that stand for several policies
MAX_NAME_CHARACTERS: Final = 256  # a session refuses longer ones
MAX_TEXT_CHARACTERS: Final = 1_000  # of each of its other texts
_VENDORS: Final = ((VMX,), (SVM,), (VMX, SVM), (SVM, VMX))
_PLACE: Final = re.compile(r"\(.*, line \d+\)$")  # as exitlab.plugins tells it
_NO_FEATURES: Final = policy_pb2.CpuFeatures()


@dataclass(frozen=True, slots=True)
class PolicyPlugin:
    """An author's policy: its class, checked, and the vendors that it exists on."""

    plugin: plugins.Plugin
    made_by: type[Policy]
    name: str
    vendors: tuple[Vendor, ...]

    def table(self, vendor: Vendor, features: policy_pb2.CpuFeatures) -> policy_pb2.PolicyTable:
        """Return its table for a vendor of its own and the guest CPU's features, checked as a session would.

        Raises:
            PluginError: the class has a mistake.

        """
        writable = dr6_writable(rtm=features.rtm, bus_lock_detect=features.bus_lock_detect)
        table, again = (self._tabulated(vendor, writable) for _ in range(2))
        if table != again:
            raise _wrong(f"{self.name}: {_unlike(table, again)}", self.made_by)
        if table.name != self.name:
            said = f"{self.name}: calls itself {table.name!r} elsewhere; a policy has one name"
            raise _wrong(said, self.made_by)
        if problem := texts_problem(table):
            raise _wrong(f"{self.name}: {problem}", self.made_by)
        try:
            make_table(table)
        except BadTable as error:
            raise _wrong(str(error), self.made_by) from error
        return table

    def summary(self) -> hypervisor_pb2.PolicySummary:
        """Return what a list of policies shows of it.

        Raises:
            PluginError: the class has a mistake, on any of its vendors.

        """
        tables = [self.table(vendor, _NO_FEATURES) for vendor in self.vendors]
        return shipped.summary_of(self.name, tables)

    def _tabulated(self, vendor: Vendor, writable: int) -> policy_pb2.PolicyTable:
        made, _ = _made(self.plugin, writable=writable, vendor=vendor)
        try:
            return tabulate(made)
        except PolicyError as error:
            raise self._told(error) from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # what it says of itself is of another type
            said = f"{self.name}: cannot be tabulated: {plugins.told(error, self.plugin.home)}"
            raise _wrong(said, self.made_by) from error

    def _told(self, error: PolicyError) -> PluginError:
        """Return what a method raised or answered; where no line of it is to blame, where it begins."""
        method = (
            getattr(self.made_by, error.moment.name.lower()) if error.moment is not None else self.made_by
        )
        if error.__cause__ is not None:
            said = f"{error.where} fails: {plugins.told(error.__cause__, self.plugin.home)}"
        else:
            said = plugins.told(error, self.plugin.home).removeprefix(f"{PolicyError.__name__}: ")
        return _wrong(said, method)


def load(text: str) -> PolicyPlugin:
    """Return the policy that ``./file.py:Class`` or ``module:Class`` stands for.

    Raises:
        PluginError: there is none such, or it cannot be one.

    """
    return _policy(plugins.load(text))


def load_entry(name: str, entries: list[metadata.EntryPoint]) -> PolicyPlugin:
    """Return the policy that a package's entry point names; both must call it the same.

    Raises:
        PluginError: as for ``load``.

    """
    found = _policy(plugins.load_entry(entries))
    if found.name != name:
        said = f"the class calls itself {found.name!r}, but its entry point is named {name!r}"
        raise _wrong(said, found.made_by)
    return found


def installed(warn: Callable[[str], object]) -> list[tuple[hypervisor_pb2.PolicySummary, str]]:
    """Return the policies of packages, each with its package; one that cannot be used is warned of."""
    found = []
    for name, unsorted in plugins.entry_points(plugins.POLICIES).items():
        entries = sorted(unsorted, key=plugins.package_of)
        package = " and ".join(map(plugins.package_of, entries))
        try:
            if problem := name_problem(name):
                raise PluginError(problem)
            found.append((load_entry(name, entries).summary(), package))
        except PluginError as error:
            warn(f"policy {name!r} of {package}: {error}")
    return found


def name_problem(name: object) -> str:
    """Return why a policy cannot have a name; empty if it can."""
    if not isinstance(name, str):
        return f"is named {as_written(name)}, expected a text"
    if not 1 <= len(name) <= MAX_NAME_CHARACTERS or not name.isprintable() or name.strip() != name:
        return f"is named {as_written(name)}, expected 1 to {MAX_NAME_CHARACTERS} printable characters"
    if name in shipped.policy_names():
        return "has the name of a policy that ExitLab comes with; give it another"
    if name in SEVERAL:
        return "has a name that stands for several policies; give it another"
    return ""


def texts_problem(table: policy_pb2.PolicyTable) -> str:
    """Return why a table's texts are not for people to read in a line; empty if they are."""
    texts = [("its summary", table.summary), ("its source", table.source)]
    texts += [("the name of a memory", name) for name in table.memories]
    for declared in table.deviations:
        what = f"its deviation {as_written(declared.rule)}"
        texts += [(what, declared.text), (f"the source of {what}", declared.source)]
    for what, text in texts:
        if len(text) > MAX_TEXT_CHARACTERS or not text.isprintable():
            expected = f"expected at most {MAX_TEXT_CHARACTERS:,} printable characters"
            return f"{what} is {as_written(text)}, {expected}"
    return ""


def _policy(plugin: plugins.Plugin) -> PolicyPlugin:
    """Check what a class says of itself."""
    made_by, name = plugin.made, plugin.made.__name__
    if not issubclass(made_by, Policy) or made_by is Policy:
        raise _wrong(f"{name} is no policy: derive it from Policy of hypervisor_svc.api", made_by)
    if made_by.api_version != API_VERSION:
        has = f"has api_version {made_by.api_version!r}" if made_by.api_version else "states no api_version"
        raise _wrong(f"{name} {has}; expected {API_VERSION}: write api_version = {API_VERSION}", made_by)
    vendors = made_by.vendors or (made_by.vendor,)
    if vendors not in _VENDORS:
        raise _wrong(f"{name}: vendors are {vendors!r}, expected (VMX,), (SVM,) or (VMX, SVM)", made_by)
    _check_methods(made_by)
    _, own_name = _made(plugin, vendor=vendors[0], writable=dr6_writable(rtm=False, bus_lock_detect=False))
    if problem := name_problem(own_name):
        raise _wrong(f"{name} {problem}", made_by)
    return PolicyPlugin(plugin, made_by, str(own_name), vendors)


def _check_methods(made_by: type[Policy]) -> None:
    """Refuse a method that is all but named as a moment: it would never be asked."""
    moments = [moment.name.lower() for moment in Moment]
    for name, method in vars(made_by).items():
        near = get_close_matches(name, moments, n=1, cutoff=0.85)
        if near and name not in moments and inspect.isfunction(method):
            said = f"{made_by.__name__}.{name} is asked at no moment; did you mean {near[0]}?"
            raise _wrong(said, method)


def _made(plugin: plugins.Plugin, *, vendor: Vendor, writable: int) -> tuple[Policy, object]:
    """Return a new policy for a vendor, and its name."""
    made_by = plugin.made
    try:
        takes = inspect.signature(made_by).parameters
        offered = {"vendor": vendor, "dr6_writable": writable}
        made: Policy = made_by(**{name: value for name, value in offered.items() if name in takes})
        if "vendor" not in takes:
            made.vendor = vendor
        name, is_for = made.name, made.vendor
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever an author may raise
        said = f"{made_by.__name__} cannot be made: {plugins.told(error, plugin.home)}"
        raise _wrong(said, made_by) from error
    if is_for != vendor:
        said = f"{made_by.__name__}: made for {shipped.vendor_words([vendor])}, it is of another vendor"
        raise _wrong(said, made_by)
    return made, name


def _wrong(said: str, thing: type | Callable[..., object]) -> PluginError:
    """Return the error of a mistake; if no place is told in it, it is where a class or a function begins."""
    if _PLACE.search(said):
        return PluginError(said)
    try:
        file, line = inspect.getsourcefile(thing), inspect.getsourcelines(thing)[1]
    except (OSError, TypeError):
        file = None
    return PluginError(f"{said} ({plugins.shown(file)}, line {line})" if file else said)


def _unlike(table: policy_pb2.PolicyTable, again: policy_pb2.PolicyTable) -> str:
    """Return in what two tables of one class differ."""
    first, second = ({rows.moment: rows for rows in one.moments} for one in (table, again))
    for number in sorted({*first, *second}):
        if first.get(number) != second.get(number):
            said = "asked twice, the policy answers in two ways: by nothing but what it sees may it decide"
            return f"at {Moment(number - 1).name} {said}"
    return "made twice, the policy says two things of itself"
