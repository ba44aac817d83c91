"""Figures that were measured, one JSON object a line, with what they were measured on: `history.jsonl`."""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal, get_args

HISTORY = Path(__file__).parent / "history.jsonl"

ScaleKind = Literal[
    "scale accounts", "scale hot", "scale two", "scale light", "scale learner", "scale soak", "scale saturation"
]
Kind = Literal["whole way", "hop", "steps"] | ScaleKind
SCALE: dict[str, ScaleKind] = {kind.split()[1]: kind for kind in get_args(ScaleKind)}


def _cpu_ticks() -> tuple[int, int]:
    """What the machine's host has taken from it, and all there was, since it was started (Linux; else nothing)."""
    try:
        with open("/proc/stat") as stat:
            ticks = [int(word) for word in stat.readline().split()[1:9]]
    except OSError:
        return 0, 0
    return ticks[7], sum(ticks)


_BEGAN = _cpu_ticks()


def stolen() -> float:
    """The share of the cores' time that the host gave to others since this run began."""
    taken, of_all = (now - began for now, began in zip(_cpu_ticks(), _BEGAN, strict=True))
    return taken / of_all if of_all else 0.0


def described(kind: Kind, found: dict[str, Any]) -> dict[str, Any]:
    """`found` with kind, machine, what its host took from it, commit, time (UTC) and command."""
    words = ["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]
    return {
        "kind": kind,
        **found,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "stolen": round(stolen(), 3),
        "commit": _commit(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(word for word in words if word not in ("--record", "--json")),
    }


def record(figures: dict[str, Any]) -> None:
    with open(HISTORY, "a") as history:
        history.write(json.dumps(figures) + "\n")


def latest(kind: Kind) -> dict[str, Any] | None:
    """The last one of this kind; None: it was never measured."""
    if not HISTORY.exists():
        return None
    of_kind = [line for line in map(json.loads, HISTORY.read_text().splitlines()) if line.get("kind") == kind]
    return of_kind[-1] if of_kind else None


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
