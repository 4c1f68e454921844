"""The long versions: ``fuzz``, ``load`` and ``soak``; each prints what it found."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.attack.fuzz import fuzz_raw, fuzz_requests, fuzz_streams
from tests.attack.load import Size, run_load
from tests.attack.served import Served
from tests.attack.soak import run_soak
from tests.attack.target import FLAGS, Surprise, Target


def main() -> int:
    """Run what is asked for; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fuzz = commands.add_parser("fuzz", help="wild requests, streams and bytes")
    fuzz.add_argument("--examples", type=int, default=2000)
    fuzz.add_argument("--seed", type=int, default=0)
    load = commands.add_parser("load", help="many guests at once, with and without a state directory")
    load.add_argument("--sessions", type=int, default=64)
    load.add_argument("--events", type=int, default=200_000, help="of a fast guest")
    soak = commands.add_parser("soak", help="guests that come and go, and the server's memory")
    soak.add_argument("--minutes", type=float, default=5.0)
    soak.add_argument("--stored", action="store_true", help="with a state directory")
    soak.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = {"fuzz": _fuzz, "load": _load, "soak": _soak}[asked.command]
        return int(not run(Path(folder), asked))


def _fuzz(folder: Path, asked: argparse.Namespace) -> bool:
    begun = time.perf_counter()
    with Served(folder, *FLAGS) as served:
        target = Target(served)
        try:
            for part in (fuzz_requests, fuzz_streams, fuzz_raw):
                part(target, asked.examples, asked.seed)
                print(f"{part.__name__}: {asked.examples} examples, seed {asked.seed}, nothing found")
            target.close()
        except Surprise as surprise:
            print(f"seed {asked.seed}: {surprise}")
            return False
        print(f"{time.perf_counter() - begun:.0f} s, peak {served.peak_bytes() / 1e6:.0f} MB")
    return True


def _load(folder: Path, asked: argparse.Namespace) -> bool:
    size, wrong = Size(asked.sessions, asked.events), 0
    for is_stored in (False, True):
        where = folder / str(is_stored)
        where.mkdir()
        found = run_load(where, size, is_stored=is_stored)
        wrong += found.wrong
        print(f"{'with' if is_stored else 'without'} --state-dir: {found}", flush=True)
    return not wrong


def _soak(folder: Path, asked: argparse.Namespace) -> bool:
    found = run_soak(folder, asked.minutes, is_stored=asked.stored, seed=asked.seed)
    print(found)
    return not found.wrong


if __name__ == "__main__":
    sys.exit(main())
