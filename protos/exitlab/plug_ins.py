"""Classes that somebody else wrote: found by reference, loaded, and their mistakes told as theirs.

A class is named on a command line by a *reference*: ``./file.py:Class`` or ``module:Class``. Any other
word is a name; a package gives its class one by an entry point. Whatever an author's code raises is told
in a line that begins with his file and the line in it, as compilers do.

What is imported is his to choose, so nothing of this runs in a server.
"""

import importlib
import importlib.util
import inspect
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import metadata
from types import ModuleType, TracebackType
from typing import Final, Generic, TypeVar

POLICIES: Final = "exitlab.policies"  # the group of entry points that are policies

_Base = TypeVar("_Base")
_OURS: Final = frozenset({"exitlab", "guest_svc", "hypervisor_svc", "importlib", "contextlib"})
_PYTHON: Final = ".py"


class PlugInError(Exception):
    """A plug-in that cannot be used; the message begins with the place of the mistake where there is one."""


@dataclass(frozen=True, slots=True)
class Kind(Generic[_Base]):
    """What plug-ins of one kind have in common."""

    noun: str  # "policy"
    base: type[_Base]  # what an author's class derives from
    api: str  # the module that gives it to him
    api_version: int
    group: str  # of entry points


def is_reference(text: str) -> bool:
    """Return whether a text is written as a class in a file or a module, and not as a name."""
    return ":" in text or "/" in text or "\\" in text or text.endswith(_PYTHON)


def load(kind: Kind[_Base], reference: str) -> type[_Base]:
    """Return the class that a reference stands for.

    What the author's code prints meanwhile goes to standard error.

    Raises:
        PlugInError: there is none such, its module cannot be imported, or it is of another kind.

    """
    where, colon, name = reference.rpartition(":")
    if not colon or where.endswith(":"):
        where, name = reference, ""
    is_file = where.endswith(_PYTHON) or "/" in where or "\\" in where
    if not (where and name.isidentifier()):
        expected = f"{where}:CLASS" if is_file else "./FILE.py:CLASS or MODULE:CLASS"
        raise PlugInError(f"{reference}: expected {expected}")
    with author_speaks():
        module = _file_module(where) if is_file else _named_module(where)
    return _checked(kind, getattr(module, name, None), reference, module)


def load_entry_point(kind: Kind[_Base], entry: metadata.EntryPoint) -> type[_Base]:
    """Return the class that a package's entry point names.

    Raises:
        PlugInError: as for ``load``.

    """
    reference = f"{entry.module}:{entry.attr}"
    with author_speaks():
        module = _named_module(entry.module)
    found: object = module
    for word in entry.attr.split("."):
        found = getattr(found, word, None)
    return _checked(kind, found, reference, module)


def entry_points(group: str) -> list[metadata.EntryPoint]:
    """Return the entry points of a group that packages here have, by name; none of them is imported."""
    return sorted(metadata.entry_points(group=group), key=lambda entry: entry.name)


def package_of(entry: metadata.EntryPoint) -> str:
    """Return the package that an entry point comes from, with its version."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "a package without a name"


@contextmanager
def author_speaks() -> Iterator[None]:
    """Run an author's code: what it prints goes to standard error, as the output is ours."""
    with redirect_stdout(sys.stderr):
        yield


def at(place: str, *said: str) -> PlugInError:
    """Return the error of a mistake at a place, which may be unknown."""
    return PlugInError(": ".join(part for part in (place, *said) if part))


def mistake(error: BaseException, otherwise: str, *about: str) -> PlugInError:
    """Return what an author's code raised as his; where it has no place in it, ``otherwise`` is told."""
    what = type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        return at(f"{_shown(error.filename)}:{error.lineno}", *about, f"{what}: {error.msg}")
    place = place_in(error.__traceback__) or otherwise
    return at(place, *about, f"{what}: {error}" if str(error) else what)


def place_in(trace: TracebackType | None) -> str:
    """Return the innermost place of a traceback in an author's code, as file:line; none is empty.

    A place in a library that he uses is told only if there is no other.
    """
    library = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "purelib", "platlib")})
    own = there = ""
    while trace is not None:
        code, module = trace.tb_frame.f_code, str(trace.tb_frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] not in _OURS and not code.co_filename.startswith("<frozen"):
            there = f"{_shown(code.co_filename)}:{trace.tb_lineno}"
            own = own if code.co_filename.startswith(library) else there
        trace = trace.tb_next
    return own or there


def place_of(thing: type | Callable[..., object]) -> str:
    """Return where an author defined a class or a function, as file:line; unknown is empty."""
    try:
        file, line = inspect.getsourcefile(thing), inspect.getsourcelines(thing)[1]
    except (OSError, TypeError):
        return ""
    return f"{_shown(file)}:{line}" if file else ""


def _shown(path: str) -> str:
    """Return a path as somebody in this folder would write it."""
    folder = os.getcwd() + os.sep
    return path.removeprefix(folder) if path.startswith(folder) else path


def _file_module(path: str) -> ModuleType:
    """Run a file as a module of its own; as for a script, it can import what lies beside it."""
    if not os.path.isfile(path):
        what = "a folder" if os.path.isdir(path) else "no such file"
        raise PlugInError(f"{path}: {what}")
    if not path.endswith(_PYTHON):
        raise PlugInError(f"{path}: no Python file: its name does not end with {_PYTHON}")
    whole = os.path.abspath(path)
    name = f"plug_in_{os.path.basename(whole).removesuffix(_PYTHON)}"
    spec = importlib.util.spec_from_file_location(name, whole)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    sys.path.insert(0, os.path.dirname(whole))
    kept, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # nothing is left in his folder
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise mistake(error, _shown(whole)) from error
    finally:
        sys.dont_write_bytecode = kept
    return module


def _named_module(name: str) -> ModuleType:
    """Import a module by its name, also from the working folder."""
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            said = f"{name}: no such module; a file is written as ./{name.replace('.', '/')}{_PYTHON}:Class"
            raise PlugInError(said) from None
        raise mistake(error, name) from error
    except (Exception, SystemExit) as error:
        raise mistake(error, name) from error


def _checked(kind: Kind[_Base], found: object, reference: str, module: ModuleType) -> type[_Base]:
    """Return a class that a module was said to have, if it is a plug-in of this kind."""
    noun, base = kind.noun, kind.base
    if found is None:
        there = [name for name, one in vars(module).items() if _is_plug_in(one, base)]
        near = get_close_matches(reference.rpartition(":")[2], there, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(there) or f'no {noun}'}"
        raise PlugInError(f"{reference}: there is no such class; {hint}")
    if not (isinstance(found, type) and issubclass(found, base)) or found is base:
        what = "a class" if isinstance(found, type) else f"of type {type(found).__name__}"
        said = f"{what}, but no {noun}; a {noun} is a class derived from {base.__name__} of {kind.api}"
        raise PlugInError(f"{reference}: {said}")
    version = getattr(found, "api_version", 0)
    if version != kind.api_version:
        has = f"has api_version {version!r}" if version else "states no api_version"
        said = f"{found.__name__} {has}; expected {kind.api_version}: write api_version = {kind.api_version}"
        raise at(place_of(found), said)
    return found


def _is_plug_in(thing: object, base: type) -> bool:
    return isinstance(thing, type) and issubclass(thing, base) and thing is not base
