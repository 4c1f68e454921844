"""Workloads that are not ours: by entry point, by file, by module.

Installed packages offer workloads by entry points of one group; only the one that is asked for is imported,
and all of them only where they are listed. One that cannot be used stops nobody else's.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from exitlab import plugins
from guest_svc.authored import AuthoredSource, AuthorError, authored_source
from guest_svc.workloads import workload_names

GROUP: Final = "exitlab.workloads"


@dataclass(frozen=True, slots=True)
class Offered:
    """What installed packages offer: the workloads that can be used, and what is wrong with the others."""

    sources: Mapping[str, AuthoredSource]
    warnings: Iterable[str]


def plugin_names() -> tuple[str, ...]:
    """Return the names that installed packages offer; nothing of theirs is imported."""
    return tuple(plugins.entry_points(GROUP))


def find_installed(name: str) -> AuthoredSource | None:
    """Return the workload that an installed package offers as ``name``; None if none does.

    Raises:
        AuthorError: It cannot be used.

    """
    entries = plugins.entry_points(GROUP).get(name)
    if entries is None:
        return None
    try:
        found = _checked(plugins.load_entry(entries))
        if found.name != name:
            raise plugins.PluginError(f"the class calls itself {found.name!r}; the two names have to be one")
    except plugins.PluginError as error:
        raise AuthorError(f"workload {name}: {error}") from error.__cause__
    return found


def find_named(text: str) -> AuthoredSource:
    """Return the workload that ``./file.py:Class`` or ``module:Class`` names.

    Raises:
        AuthorError: It cannot be used.

    """
    try:
        return _checked(plugins.load(text))
    except plugins.PluginError as error:
        raise AuthorError(str(error)) from error.__cause__


def installed() -> Offered:
    """Return all that installed packages offer; all of it is imported."""
    sources, warnings = {}, []
    for name in plugin_names():
        try:
            found = find_installed(name)
        except AuthorError as error:
            warnings.append(str(error))
        else:
            assert found is not None  # as it was just there
            sources[name] = found
    return Offered(sources, warnings)


def _checked(plugin: plugins.Plugin) -> AuthoredSource:
    found = authored_source(plugin)
    if found.name in workload_names():
        raise plugins.PluginError(f"{plugin.origin}: the name {found.name} is taken by a workload of ours")
    return found
