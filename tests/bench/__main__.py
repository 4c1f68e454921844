"""Measures everything, or the topics that are named."""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.bench import (
    authored,
    durable,
    engine_lanes,
    growth,
    lanes,
    memory,
    oracle_loop,
    own_policies,
    passes,
    replay,
    sessions,
    start,
    traces,
    transport,
)
from tests.bench.measure import Differs, say
from tests.bench.plan import Plan
from tests.bench.table import Row, table, write_json

TOPICS: Final[dict[str, Callable[[Plan], list[Row]]]] = {
    "loop": oracle_loop.rows,
    "passes": passes.rows,
    "engine": engine_lanes.rows,
    "stream": transport.rows,
    "authored": authored.rows,
    "sessions": sessions.rows,
    "durable": durable.rows,
    "lanes": lanes.lane_rows,
    "levels": lanes.level_rows,
    "own-policies": own_policies.rows,
    "start": start.rows,
    "replay": replay.rows,
    "traces": traces.rows,
    "memory": memory.rows,
    "growth": growth.rows,
}


def main() -> int:
    """Run the benchmarks and return 0, or 1 if something could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("topics", metavar="TOPIC", nargs="*", help=f"of {', '.join(TOPICS)} (default all)")
    parser.add_argument(
        "--json", type=Path, default=Path("build/bench.json"), help="default build/bench.json"
    )
    parser.add_argument("--quick", action="store_true", help="only show that all of it works")
    options = parser.parse_args()
    for topic in options.topics:
        if topic not in TOPICS:
            parser.error(f"no topic {topic!r}; there are {', '.join(TOPICS)}")
    start = time.monotonic()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="exitlab-bench-") as folder:
        plan = Plan(Path(folder), options.quick)
        try:
            for topic in options.topics or TOPICS:
                rows += TOPICS[topic](plan)
        except Differs as error:
            say(str(error))
            return 1
    seconds = time.monotonic() - start
    write_json(options.json, rows, seconds, is_quick=options.quick)
    print(table(rows))
    say(f"{seconds:.0f} s; {options.json} has the numbers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
