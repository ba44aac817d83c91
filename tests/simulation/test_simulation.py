"""The short form of the simulation. `python tests/simulation --seeds 500` is the long one."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from mutants import MUTANTS, ROOT, Mutant, caught_by
from sim_seed import run_seed

from stream.runner.partition import CRASH_POINTS

SEEDS = 60
FAULTS = (
    "appended twice",
    "applied again",
    "arrived unacknowledged",
    "delivered twice",
    "fenced",
    "fetch lost",
    "from the start",
    "held",
    "lost disk",
    "lost in flight",
    "offsets reset",
    "reseek",
    "snapshot restored",
    "skip of another record",
    "skipped",
    "stage failed",
    "stale fetch",
    "torn write",
    "twin of a version",
    "version held",
    "weights became NaN",
    "zombie",
)


def test_seeds_keep_every_promise_and_every_fault_bites() -> None:
    fired: Counter[str] = Counter()
    happened: Counter[str] = Counter()
    for seed in range(1, SEEDS + 1):
        try:
            ran = run_seed(seed)
        except Exception as error:
            pytest.fail(f"python tests/simulation --seeds 1 --seed {seed}\n{type(error).__name__}: {error}")
        fired.update(ran.fired)
        happened.update(ran.happened)
    assert not set(CRASH_POINTS) - set(fired), "a crash point never fired"
    assert not {fault for fault in FAULTS if not happened[fault]}, "a fault touched nothing"
    assert happened["model versions"] >= SEEDS // 6, "the learner hardly ever published"
    assert happened["examples"] >= 10 * SEEDS


def test_a_seed_is_the_same_run_under_another_hash_seed() -> None:
    def digests(hash_seed: str) -> str:
        return subprocess.run(
            [sys.executable, str(Path(__file__).parent), "--seeds", "3", "--seed", "9", "--digests"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    found = [[line for line in digests(seed).splitlines() if line.startswith("digest")] for seed in ("1", "2")]
    assert len(found[0]) == 3
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_fault_planted_in_the_source_is_found(mutant: Mutant) -> None:
    assert caught_by(mutant) is not None


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_mutant_still_finds_the_text_that_it_replaces(mutant: Mutant) -> None:
    for file, text, _ in mutant.patches:
        assert (ROOT / file).read_text().count(text) == 1
