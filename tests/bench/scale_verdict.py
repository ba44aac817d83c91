"""What a measure of scale says: per target of issue 5 the figure, and whether it is met."""

import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple


class Row(NamedTuple):
    """`figure` and `target` in `unit`; met when the figure is at most the target, or at least it (`at_least`)."""

    what: str
    figure: float
    target: float
    unit: str
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.figure >= self.target if self.at_least else self.figure <= self.target

    def described(self) -> dict[str, Any]:
        sign = "≥" if self.at_least else "≤"
        return {
            "what": self.what,
            "target": f"{sign} {self.target:,g} {self.unit}".rstrip(),
            "figure": round(self.figure, 3),
            "unit": self.unit,
            "met": self.met,
        }


def verdict(rows: Sequence[Row], **more: Any) -> dict[str, Any]:
    """What is recorded of a measure: its rows, whether all are met, and the figures that they come from."""
    return {"targets": [row.described() for row in rows], "met": all(row.met for row in rows), **more}


class Line(NamedTuple):
    """`value(t) = at_zero + per_hour * t / 3600`, t in seconds."""

    at_zero: float
    per_hour: float

    def at(self, seconds: float) -> float:
        return self.at_zero + self.per_hour * seconds / 3600.0


def least_squares(seconds: Sequence[float], values: Sequence[float]) -> Line:
    """The line nearest to the points; flat for fewer than two.

    >>> least_squares([0.0, 1800.0, 3600.0], [5.0, 6.0, 7.0])
    Line(at_zero=5.0, per_hour=2.0)
    """
    n = len(seconds)
    if n < 2:
        return Line(values[0] if n else 0.0, 0.0)
    mean_t, mean_v = sum(seconds) / n, sum(values) / n
    spread = sum((t - mean_t) ** 2 for t in seconds)
    slope = sum((t - mean_t) * (v - mean_v) for t, v in zip(seconds, values, strict=True)) / spread if spread else 0.0
    return Line(mean_v - slope * mean_t, slope * 3600.0)


def say(text: str) -> None:
    """A line of progress, for people."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)
