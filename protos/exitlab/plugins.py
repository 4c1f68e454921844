"""Loads classes that other people have written, and tells their errors as theirs.

A class is named by an entry point, as ``./file.py:Class``, or as ``module:Class``. Only what is asked for is
imported. A file is loaded as a script is: its folder comes first on ``sys.path``, so it can import what lies
beside it. Loading it leaves no compiled code behind.

An author's error is told with its type, its message and the innermost place that is his: not where his call
went wrong in numpy or in ours.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Final

from exitlab.words import listed, printable, shortened

if TYPE_CHECKING:
    from importlib import metadata

WORKLOADS: Final = "exitlab.workloads"  # groups of entry points
POLICIES: Final = "exitlab.policies"
TABLE_ENDING: Final = ".json"  # of a file with a policy's table
_FILE: Final = re.compile(r"(?P<place>.*\.py):(?P<name>\w*)", re.DOTALL)
_MODULE: Final = re.compile(r"(?P<place>[^\W\d]\w*(?:\.[^\W\d]\w*)*):(?P<name>\w*)")
_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})
_OURS: Final = ("exitlab", "guest_svc", "hypervisor_svc")
_LONGEST_MESSAGE: Final = 300  # of an author's exception, in characters


class PluginError(Exception):
    """A plug-in that cannot be used, told in one line; its cause is what the author's code raised."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """A class that was loaded, and whose it is."""

    made: type
    origin: str  # for people: a file, a module, or a package and its version
    home: Path  # the file or the folder that its author's code lies in


def is_plugin(text: str) -> bool:
    """Tell whether a text is written as a class in a file or in a module."""
    return bool(_FILE.fullmatch(text) or _MODULE.fullmatch(text))


def is_brought(word: str) -> bool:
    """Tell whether a word for a policy is written as a class or as a file, and so is no name."""
    return is_plugin(word) or word.endswith((".py", TABLE_ENDING)) or any(sign in word for sign in ":/\\")


def load(text: str) -> Plugin:
    """Return the class that ``./file.py:Class`` or ``module:Class`` names.

    Raises:
        PluginError: There is none, or importing it failed.

    """
    found = _FILE.fullmatch(text)
    if found is not None:
        path = Path(found["place"])
        return _in_module(_file_module(path), found["name"], found["place"], path.resolve().parent)
    found = _MODULE.fullmatch(text)
    if found is None:
        raise PluginError("expected ./file.py:Class or module:Class")
    module = _module(found["place"])
    return _in_module(module, found["name"], f"module {found['place']}", _home(module))


def entry_points(group: str) -> dict[str, list[metadata.EntryPoint]]:
    """Return what installed packages offer in a group, by name; nothing of it is imported.

    A name that several packages claim has several entries.
    """
    from importlib import metadata  # noqa: PLC0415  (as slow to import as all the rest of a short command)

    named: dict[str, dict[str, metadata.EntryPoint]] = {}
    for entry in metadata.entry_points(group=group):
        named.setdefault(entry.name, {}).setdefault(entry.value, entry)  # a package may be found twice
    return {name: list(entries.values()) for name, entries in sorted(named.items())}


def package_of(entry: metadata.EntryPoint) -> str:
    """Return the package that has an entry point, and its version, for people."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value


def load_entry(entries: list[metadata.EntryPoint]) -> Plugin:
    """Return the class behind an entry point.

    Raises:
        PluginError: Several packages claim its name, there is no such class, or importing it failed.

    """
    packages = [package_of(entry) for entry in entries]
    if len(entries) > 1:
        raise PluginError(f"{len(entries)} packages have this name: {', '.join(packages)}")
    entry = entries[0]
    module = _module(entry.module)
    return _in_module(module, entry.attr, packages[0], _home(module))


def _in_module(module: ModuleType, name: str, origin: str, home: Path) -> Plugin:
    classes = [
        each
        for each, made in vars(module).items()
        if isinstance(made, type) and made.__module__ == module.__name__ and not each.startswith("_")
    ]
    there = f"; its classes are {listed(classes)}" if classes else "; it has no class of its own"
    if not name:
        raise PluginError(f"{origin}: say which class, after a colon{there}")
    made = getattr(module, name, None)
    if made is None:
        raise PluginError(f"{origin}: no class {name}{there}")
    if not isinstance(made, type):
        raise PluginError(f"{origin}: {name} is of type {type(made).__name__}, expected a class")
    return Plugin(made, origin, home)


def _module(name: str) -> ModuleType:
    """Import a module; that it is not there is told apart from what goes wrong inside."""
    # As with python -m: what lies in the working directory is found.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        parent = importlib.util.find_spec(name.partition(".")[0])
    except ValueError:  # __main__, which is us
        parent = None
    if parent is None:
        raise PluginError(f"no module {name}")
    home = Path(parent.origin or ".").resolve()
    with blamed(home.parent if home.name == "__init__.py" else home, "importing it"):
        return importlib.import_module(name)


def _home(module: ModuleType) -> Path:
    """Return the folder of a module's top package, or the file of a module that has none."""
    top = sys.modules[module.__name__.partition(".")[0]]
    path = Path(top.__file__ or ".").resolve()
    return path.parent if path.name == "__init__.py" else path


def _file_module(path: Path) -> ModuleType:
    """Load a file as a script is loaded, under a name that hides no module."""
    if not path.is_file():
        raise PluginError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}")
    path = path.resolve()
    name = f"_exitlab_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # as it ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(path.parent)
    is_new = folder not in sys.path
    if is_new:
        sys.path.insert(0, folder)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.modules[name] = module
    try:
        with blamed(path.parent, "importing it"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        if is_new:
            sys.path.remove(folder)
        raise
    finally:
        sys.dont_write_bytecode = before
    return module


@contextmanager
def blamed(home: Path, doing: str, *passing: type[BaseException]) -> Iterator[None]:
    """Tell what an author's code raises as his: a PluginError that says while ``doing`` what.

    Signals are nobody's errors; those of ``passing`` are told already. A GeneratorExit is what the author has
    raised himself: no ``with`` of this holds a ``yield``.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, (PluginError, KeyboardInterrupt, *passing)):
            raise
        place = _place(error.__traceback__, home)
        if isinstance(error, SystemExit) and (place is None or _is_ours(_last(error.__traceback__))):
            raise  # a signal's
        raise PluginError(f"{doing}: {told(error, home)}") from error


def told(error: BaseException, home: Path) -> str:
    """Return an author's exception on one line: its type, its message, and his innermost place."""
    try:
        message = " ".join(str(error).split())
    except Exception:  # his own class has no words for it
        message = "without a message that can be read"
    place = _place(error.__traceback__, home)
    if isinstance(error, SyntaxError) and error.filename is not None:
        message, place = error.msg, f"{shown(error.filename)}, line {error.lineno}"
    said = ": ".join(part for part in (type(error).__name__, shortened(message, _LONGEST_MESSAGE)) if part)
    return f"{said} ({place})" if place else said


def place_of(generator: Generator[Any, Any, Any]) -> str:
    """Return where a generator stands: file and line, of the innermost that it yields from."""
    inner: Any = generator  # typeshed's type of a generator has not what it is made of
    while inspect.isgenerator(inner.gi_yieldfrom):
        inner = inner.gi_yieldfrom
    frame = inner.gi_frame
    return f"{shown(inner.gi_code.co_filename)}, line {frame.f_lineno}" if frame is not None else ""


def shown(path: str) -> str:
    """Return a path as people know it: from the working directory, where it lies below."""
    try:
        short = os.path.relpath(path)
    except ValueError:  # another drive
        return path
    return printable(path if short.startswith(os.pardir) else short)


def _place(trace: TracebackType | None, home: Path) -> str | None:
    """Return the innermost place of a traceback that is the author's, or else the innermost not ours."""
    found = other = None
    while trace is not None:
        frame = trace.tb_frame
        file = Path(frame.f_code.co_filename)
        place = f"{shown(str(file))}, line {trace.tb_lineno}"
        if not _is_ours(frame):
            other = place if not _is_import(frame) else other
            if file.is_relative_to(home) and not _INSTALLED & set(file.relative_to(home).parts):
                found = place
        trace = trace.tb_next
    return found or other


def _last(trace: TracebackType | None) -> FrameType | None:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return None if trace is None else trace.tb_frame


def _is_ours(frame: FrameType | None) -> bool:
    if frame is None:
        return False
    name = frame.f_globals.get("__name__", "")
    if name == "__main__":  # run by python -m
        name = getattr(frame.f_globals.get("__spec__"), "name", "")
    return str(name).partition(".")[0] in _OURS


def _is_import(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith("<frozen importlib")  # what Python itself runs to import
