"""What a look a second says of a long run: does anything rise that should stand?"""

import itertools
import statistics
from typing import Any, NamedTuple

from scale_verdict import Row, least_squares, verdict

WARM_SHARE = 0.2
MEMORY_GROWTH = 0.03
LAG_S = 1.0  # a lag is flat if its line grows by less than a second's payments
STILL_S = 5.0  # between two looks: the machine stood, and lag and group with it; such a run proves little
BARS = "▁▂▃▄▅▆▇█"
WIDTH = 60


class Look(NamedTuple):
    """One second: since the start, resident memory, open files (RocksDB's tables apart), payments sent, unanswered."""

    at_s: float
    memory_mb: float
    files: int
    tables: int
    sent: int
    lag: int
    cpu_s: float


def plot(name: str, values: list[float]) -> str:
    """One line: the medians of as many pieces as fit, between the least and the most of them."""
    if not values:
        return f"{name}: nothing"
    size = max(1, len(values) // WIDTH)
    pieces = [statistics.median(values[i : i + size]) for i in range(0, len(values), size)]
    low, high = min(pieces), max(pieces)
    step = (high - low) / (len(BARS) - 1) or 1.0
    return f"{name:>12} {''.join(BARS[round((piece - low) / step)] for piece in pieces)}  {low:,.0f} to {high:,.0f}"


def judge(series: list[Look], rate: float) -> dict[str, Any]:
    """The lines through what was seen after the warm-up, and how far each rises until the end."""
    warm_s = series[-1].at_s * WARM_SHARE
    after = [look for look in series if look.at_s >= warm_s]
    seconds = [look.at_s for look in after]
    span_s = seconds[-1] - seconds[0]
    columns = {name: [float(getattr(look, name)) for look in after] for name in ("memory_mb", "files", "tables", "lag")}
    lines = {name: least_squares(seconds, values) for name, values in columns.items()}
    rises = {name: line.per_hour * span_s / 3600 for name, line in lines.items()}
    third = len(after) // 3
    usual_files = [statistics.median(look.files for look in part) for part in (after[:third] or after, after[-third:])]
    rows = [
        Row("soak: resident memory after warm-up", rises["memory_mb"] / lines["memory_mb"].at(seconds[0]) * 100,
            MEMORY_GROWTH * 100, "% up"),
        # A snapshot has a few more open while it is taken: the median does not mind, a leak moves it.
        Row("soak: open files, median of the last third less the first's", usual_files[1] - usual_files[0], 0, "files"),
        Row("soak: the lag's line rises by", rises["lag"] / rate, LAG_S, "s of payments"),
    ]  # fmt: skip
    return verdict(
        rows,
        slopes_per_hour={name: round(line.per_hour, 2) for name, line in lines.items()},
        median={name: statistics.median(values) for name, values in columns.items()},
        most={name: max(values) for name, values in columns.items()},
        warm_s=round(warm_s, 1),
        stood_still=sum(b.at_s - a.at_s > STILL_S for a, b in itertools.pairwise(series)),
        plots=[plot(name, [float(getattr(look, name)) for look in series]) for name in columns],
    )
