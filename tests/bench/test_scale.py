"""The measures of scale: that the command runs and says what it must, and that a soak's verdicts can fail."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parent


@pytest.fixture(scope="module")
def series() -> Any:
    sys.path.insert(0, str(BENCH))
    try:
        return importlib.import_module("scale_series")
    finally:
        sys.path.remove(str(BENCH))


def looks(series: Any, *, memory_mb_per_s: float = 0.0, files_per_s: float = 0.0, lag_per_s: float = 0.0) -> list[Any]:
    return [
        series.Look(
            at_s=float(t),
            memory_mb=500.0 + memory_mb_per_s * t + t % 3,
            files=40 + int(files_per_s * t),
            tables=t % 7,
            sent=100 * t,
            lag=20 + int(lag_per_s * t),
            cpu_s=0.1 * t,
        )
        for t in range(600)
    ]


@pytest.mark.parametrize(
    ("rises", "missed"),
    [({}, []), ({"memory_mb_per_s": 0.1}, [0]), ({"files_per_s": 0.01}, [1]), ({"lag_per_s": 0.5}, [2])],
)
def test_a_soak_misses_the_target_of_what_rises_and_no_other(
    series: Any, rises: dict[str, float], missed: list[int]
) -> None:
    found = series.judge(looks(series, **rises), rate=100.0)
    assert [i for i, row in enumerate(found["targets"]) if not row["met"]] == missed
    assert found["met"] is not bool(missed)


def test_the_warm_up_is_not_held_against_a_soak(series: Any) -> None:
    warm = [look._replace(memory_mb=100.0) if look.at_s < 100 else look for look in looks(series)]
    assert series.judge(warm, rate=100.0)["met"]


def test_the_command_says_target_figure_and_whether_it_is_met() -> None:
    command = [sys.executable, str(BENCH / "scale.py"), "hot", "--short", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kind"] == "scale hot"
    assert len(found["targets"]) == 2
    for row in found["targets"]:
        assert row.keys() == {"what", "target", "figure", "unit", "met"}
        assert abs(row["figure"]) < 100.0  # so short a run shows that it runs: noise may make the hot ones cheaper
    assert found["terminal"]["count_30d"] == 20_000
