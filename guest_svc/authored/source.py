"""An author's class as a source of events: what it declares, checked before anything of it runs."""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from exitlab.plugins import Plugin, PluginError, blamed
from exitlab.words import as_written
from guest_svc import api
from guest_svc.authored.author import Author
from guest_svc.authored.workload import Authored
from guest_svc.workloads.base import API_VERSION, BadParameter, Parameter, check_run, parse_parameters

_BASE: Final = f"{api.Workload.__module__}.{api.Workload.__name__}"
_NAME: Final = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_PARAMETER: Final = re.compile(r"[^\W\d][\w-]*", re.ASCII)
_MOST_NAME: Final = 100  # characters, as a service takes
_MOST_TEXT: Final = 1_000


@dataclass(frozen=True, slots=True)
class AuthoredSource:
    """An author's class, whose declarations are legal."""

    author: Author
    summary: str
    documentation: str
    parameters: tuple[Parameter, ...]
    reads_outcomes: bool
    api_version: int = API_VERSION
    is_recorded: bool = False

    @property
    def name(self) -> str:
        """The name to ask for, where it is installed."""
        return self.author.name

    def make(self, parameters: Mapping[str, str], seed: int = 0, events: int | None = None) -> Authored:
        """Return the workload ready to run.

        Raises:
            WorkloadError: A parameter, the seed or the number of events is not taken, or its code fails.

        """
        check_run(self.name, seed, events)
        values = parse_parameters(self.name, self.parameters, parameters)
        made = Authored(self.author, values, seed, events)
        made.summary, made.parameters = self.summary, self.parameters
        made.reads_outcomes = self.reads_outcomes
        return made


def authored_source(plugin: Plugin) -> AuthoredSource:
    """Return a class as a source.

    Raises:
        PluginError: It is no workload, or what it declares is not legal.

    """
    made = plugin.made
    if not issubclass(made, api.Workload):
        raise PluginError(f"{plugin.origin}: {made.__name__} is no workload: expected a subclass of {_BASE}")
    try:
        with blamed(plugin.home, "its declarations"):
            return _declared(plugin, made)
    except PluginError as error:
        raise PluginError(f"{plugin.origin}: {made.__name__}: {error}") from error.__cause__


def _declared(plugin: Plugin, made: type[api.Workload]) -> AuthoredSource:
    version = getattr(made, "api_version", None)
    if version is None:
        raise PluginError(f"it says no api_version: expected api_version = {API_VERSION}")
    if version != API_VERSION or isinstance(version, bool):
        raise PluginError(f"it is written for api_version {as_written(version)}: this is {API_VERSION}")
    for attribute in ("name", "summary"):
        text = getattr(made, attribute, None)
        if not isinstance(text, str) or not text.strip():
            raise PluginError(f"{attribute}: {as_written(text)}, expected a text")
    if not _NAME.fullmatch(made.name) or len(made.name) > _MOST_NAME:
        expected = f"expected at most {_MOST_NAME} small letters and digits with dashes between"
        raise PluginError(f"name: {as_written(made.name)}, {expected}")
    summary = " ".join(made.summary.split())
    _check_text("summary", summary)
    if not isinstance(made.reads_outcomes, bool):
        raise PluginError(f"reads_outcomes: {as_written(made.reads_outcomes)}, expected True or False")
    if made.__abstractmethods__:
        raise PluginError(f"it has no method {', '.join(sorted(made.__abstractmethods__))}")
    for attribute in ("__init__", "prepare", "generate"):
        if not callable(method := getattr(made, attribute)):
            raise PluginError(f"{attribute}: {as_written(method)}, expected a method")
    return AuthoredSource(
        author=Author(plugin, made.name),
        summary=summary,
        documentation=inspect.cleandoc(made.__doc__ or ""),
        parameters=_parameters(made.parameters),
        reads_outcomes=made.reads_outcomes,
    )


def _parameters(declared: object) -> tuple[Parameter, ...]:
    if not isinstance(declared, tuple | list):
        raise PluginError(f"parameters: of type {type(declared).__name__}, expected a tuple of Parameter")
    names: set[str] = set()
    for each in declared:
        if not isinstance(each, Parameter):
            raise PluginError(f"parameters: {as_written(each)}, expected a Parameter")
        _check_parameter(each)
        if each.name in names:
            raise PluginError(f"parameters: {each.name!r}: expected a name of its own")
        try:
            each.parse("parameters", str(each.default))
        except BadParameter as refused:
            raise PluginError(f"its own default is refused: {refused}") from refused
        names.add(each.name)
    return tuple(declared)


def _check_parameter(declared: Parameter) -> None:
    """Refuse a parameter that cannot be listed or set."""
    name = declared.name
    if not isinstance(name, str) or not _PARAMETER.fullmatch(name) or len(name) > _MOST_NAME:
        expected = f"expected a name of at most {_MOST_NAME} letters, digits, _ and -, first a letter or _"
        raise PluginError(f"parameters: {as_written(name)}: {expected}")
    if not isinstance(declared.default, int | float | str):
        said = f"default {as_written(declared.default)}: expected a number or a text"
        raise PluginError(f"parameters: {name}: {said}")
    _check_text(f"parameters: {name}: unit", declared.unit)
    _check_text(f"parameters: {name}: summary", declared.summary)
    if isinstance(declared.default, str):
        _check_text(f"parameters: {name}: default", declared.default)
    for bound in (declared.minimum, declared.maximum):
        if bound is not None and not isinstance(bound, int | float):
            raise PluginError(f"parameters: {name}: a bound is {as_written(bound)}, expected a number")


def _check_text(what: str, text: object) -> None:
    """Refuse what is no text for a line of a list."""
    if not isinstance(text, str) or len(text) > _MOST_TEXT or not text.isprintable():
        raise PluginError(f"{what}: {as_written(text)}, expected at most {_MOST_TEXT:,} printable characters")
