"""Durations on the command line: 45d, 12h, 90m, 30s, 250ms."""

import re
from typing import Final

import typer

UNIT_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 7 * 86_400_000}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")


def parse_duration_ms(text: str) -> int:
    """Whole milliseconds. Raises `typer.BadParameter` (exit code 2) saying what was expected.

    >>> parse_duration_ms("7d"), parse_duration_ms("1.5h")
    (604800000, 5400000)
    """
    found = _DURATION.fullmatch(text.strip().lower())
    if found is None:
        raise typer.BadParameter(f"{text!r} is not a duration; write a number and a unit, as in 7d, 12h, 30m or 45s")
    duration_ms = round(float(found[1]) * UNIT_MS[found[2]])
    if duration_ms <= 0:
        raise typer.BadParameter(f"{text!r} is not above 0")
    return duration_ms


def duration_text(duration_ms: int) -> str:
    """In the largest unit of which it is a whole number.

    >>> duration_text(45 * 86_400_000), duration_text(90_000), duration_text(1)
    ('45d', '90s', '1ms')
    """
    unit = next(unit for unit in ("d", "h", "m", "s", "ms") if duration_ms % UNIT_MS[unit] == 0)
    return f"{duration_ms // UNIT_MS[unit]}{unit}"
