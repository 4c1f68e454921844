"""Workloads that are not ours: by entry point, by file, by module.

Installed packages offer workloads by entry points of one group; only the one that is asked for is imported,
and all of them only where they are listed. One that cannot be used stops nobody else's.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from exitlab import plugins
from guest_svc.authored import AuthoredSource, AuthorError, authored_source
from guest_svc.workloads import workload_names

Finder = Callable[[], AuthoredSource]


@dataclass(frozen=True, slots=True)
class Offered:
    """What installed packages offer: the workloads that can be used, and what is wrong with the others."""

    sources: Mapping[str, AuthoredSource]
    warnings: Iterable[str]


def plugin_names() -> tuple[str, ...]:
    """Return the names that installed packages offer; nothing of theirs is imported."""
    return tuple(plugins.entry_points(plugins.WORKLOADS))


def load_installed(name: str) -> Finder | None:
    """Load the workload that an installed package offers as ``name``; None if none does.

    What it declares is checked when the result is called, which raises AuthorError too.

    Raises:
        AuthorError: It cannot be loaded.

    """
    entries = plugins.entry_points(plugins.WORKLOADS).get(name)
    if entries is None:
        return None
    with _told(f"workload {name}: "):
        plugin = plugins.load_entry(entries)
    return lambda: _checked(plugin, name)


def load_named(text: str) -> Finder:
    """Load the workload that ``./file.py:Class`` or ``module:Class`` names; as ``load_installed`` does.

    Raises:
        AuthorError: It cannot be loaded.

    """
    with _told(f"{text}: "):
        plugin = plugins.load(text)
    return lambda: _checked(plugin)


def installed() -> Offered:
    """Return all that installed packages offer; all of it is imported."""
    sources, warnings = {}, []
    for name in plugin_names():
        try:
            find = load_installed(name)
            if find is not None:  # as it was just there
                sources[name] = find()
        except AuthorError as error:
            warnings.append(str(error))
    return Offered(sources, warnings)


def _checked(plugin: plugins.Plugin, name: str | None = None) -> AuthoredSource:
    with _told("" if name is None else f"workload {name}: "):
        found = authored_source(plugin)
        if found.name in workload_names():
            raise plugins.PluginError(
                f"{plugin.origin}: the name {found.name} is taken by a workload of ours"
            )
        if name is not None and found.name != name:
            raise plugins.PluginError(f"the class calls itself {found.name!r}: the two names have to be one")
    return found


@contextmanager
def _told(place: str = "") -> Iterator[None]:
    try:
        yield
    except plugins.PluginError as error:
        raise AuthorError(f"{place}{error}") from error.__cause__
