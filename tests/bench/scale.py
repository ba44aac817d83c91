"""The rows of issue 5's table on scale, one measure at a time.

python tests/bench/scale.py MEASURE [--short] [--json] [--record]

accounts    1,000,000 accounts beside 10,000: CPU per payment, resident memory
hot         an account at 100 times the mean rate, a terminal with 1,000,000 payments in its window
two         two workers' CPU per payment beside one's
light       ten payments a second, and none
learner     examples a second on one core; from a tick to the first decision under its version
soak        half of saturation for --minutes: memory, open files, lag
saturation  latency at 70 % of the saturation measured in the same run
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from history import SCALE, described, record  # noqa: E402
from meter import BenchFailed  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from scale_accounts import accounts  # noqa: E402
from scale_hot import hot  # noqa: E402
from scale_learner import learner  # noqa: E402
from scale_light import light, two  # noqa: E402
from scale_saturation import at_saturation  # noqa: E402
from scale_soak import soak  # noqa: E402

console = Console(stderr=True)
MEASURES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "accounts": lambda given: accounts(short=given.short),
    "hot": lambda given: hot(short=given.short),
    "learner": lambda given: learner(short=given.short),
    "light": lambda given: light(short=given.short),
    "saturation": lambda given: at_saturation(short=given.short),
    "soak": lambda given: soak(minutes=given.minutes, rate=given.rate, series_to=given.series, short=given.short),
    "two": lambda given: two(short=given.short),
}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python tests/bench/scale.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("measure", choices=sorted(MEASURES), metavar="MEASURE", help=", ".join(sorted(MEASURES)))
    parser.add_argument("--short", action="store_true", help="small: shows that it runs, not what is true")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--record", action="store_true", help="append the figures to history.jsonl")
    parser.add_argument("--minutes", type=float, default=30.0, help="of soak")
    parser.add_argument("--rate", type=float, help="of soak, payments/s; else half of the saturation measured first")
    parser.add_argument("--series", type=Path, help="of soak: the looks, as JSON, into this file")
    return parser.parse_args()


def show(found: dict[str, Any]) -> None:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    table = Table(title=f"{found['kind']}: {found['machine']}, load {load}")
    for heading in ("", "measured", "target", "met"):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in found["targets"]:
        table.add_row(row["what"], f"{row['figure']:,g} {row['unit']}", row["target"], "yes" if row["met"] else "NO")
    console.print(table)


def _ended(*_: object) -> None:
    sys.exit(143)  # else workers would outlive us


def main() -> int:
    given = options()
    signal.signal(signal.SIGTERM, _ended)
    try:
        figures = MEASURES[given.measure](given)
    except BenchFailed as error:
        console.print(f"[red]failed[/red]: {error}")
        if given.json:
            print(json.dumps({"error": str(error), "met": False}))
        return 1
    found = described(SCALE[given.measure], figures)
    show(found)
    if given.record:
        record(found)
    if given.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
