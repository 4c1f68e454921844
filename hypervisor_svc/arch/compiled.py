"""Compiles the loops, and keeps the compiled code so that it is never stale and never missed.

numba's own cache looks at one file only: a loop that calls functions of another file would keep
stale code after an edit there. So the cache folder is named by a hash of every source file that
compiled code can reach, of numba's version and of the processor. What is in it is then of use, and what is
not has to be compiled: each function is looked for before, so that whoever waits is told.

With ``NUMBA_DISABLE_JIT=1`` every loop runs as plain Python with identical results.
"""

import hashlib
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

import numba
from llvmlite import binding

from exitlab import debugreg, events

# What the compiled loops are made of, constants of the contract included.
_SOURCES: Final = (
    *sorted(Path(__file__).parent.glob("*.py")),
    *sorted((Path(__file__).parents[1] / "engine").glob("*.py")),
    *(Path(str(module.__file__)) for module in (debugreg, events)),
)


@cache
def rules_digest() -> str:
    """Return a digest of the rules: of every source file that the compiled loops are made of."""
    digest = hashlib.sha256()
    for path in _SOURCES:
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def _code_digest() -> str:
    """Return a digest of the rules, of the compiler and of the processor that code is made for."""
    config = numba.config
    processor = (
        config.CPU_NAME or binding.get_host_cpu_name(),
        config.CPU_FEATURES or binding.get_host_cpu_features().flatten(),
    )
    made_for = (numba.__version__, platform.python_version(), platform.machine(), *processor)
    return hashlib.sha256("|".join([rules_digest(), *made_for]).encode()).hexdigest()[:16]


@cache
def cache_folder() -> Path:
    """Return the folder for compiled code; ``EXITLAB_CACHE_DIR`` moves its parent."""
    parent = os.environ.get("EXITLAB_CACHE_DIR")
    base = (
        Path(parent) if parent else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "exitlab"
    )
    return base / _code_digest()


def _is_usable(folder: Path) -> bool:
    """Make a folder and tell whether code can be kept in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


IS_PLAIN: Final = bool(numba.config.DISABLE_JIT)
# Where the folder cannot be used, numba would choose others, which do not see every edit: so nothing
# is kept then.
_IS_KEPT: Final = not IS_PLAIN and _is_usable(cache_folder())
if _IS_KEPT:
    numba.config.CACHE_DIR = str(cache_folder())


_is_said = False


def _say_compiling() -> None:
    """Tell once, on standard error, why this start takes long."""
    global _is_said  # noqa: PLW0603  # once a process
    if not _is_said:
        often = (
            "once for this version" if _IS_KEPT else f"at every start, as {cache_folder()} cannot be written"
        )
        print(f"compiling the engine, {often} (half a minute or more)", file=sys.stderr, flush=True)
    _is_said = True


def compiled(signature: Any = None) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles a function.

    With ``signature`` the code is made (or taken from the cache) at import; without, the function is
    a helper of numbers that is compiled into its callers. The compiled function releases the
    interpreter's lock.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        made = numba.njit(nogil=True, error_model="numpy", cache=_IS_KEPT)(function)
        if _IS_KEPT:
            # The folder stands for the sources; in some releases of numba, their dates would count too.
            made._cache._cache_file._source_stamp = _code_digest()
        if signature is None or IS_PLAIN:
            return made
        if not is_kept(made):
            _say_compiling()
        made.compile(signature)
        made.disable_compile()  # arguments of other types are a mistake, and not to be compiled for
        return made

    return decorate


def is_kept(made: Any) -> bool:
    """Tell whether the code of a compiled function is in the cache."""
    if not _IS_KEPT:
        return False
    # numba does not tell before it compiles; a file of code is written after its entry in the index.
    kept = made._cache
    return any(Path(kept.cache_path).glob(f"{kept._impl.filename_base}.*.nbc"))
