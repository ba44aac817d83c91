"""The short form of the simulation. `python tests/simulation --seeds 500` is the long one."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import sim_jobs
from mutants import MUTANTS, ROOT, Mutant, caught_by
from sim_jobs import Failed, jobs_default, run_seeds
from sim_seed import PAYMENTS, Ran
from sim_small import ACCOUNT_BOMB, CLOCK_BOMB, TERMINAL_BOMB

from stream.runner.partition import CRASH_POINTS

SEEDS = 60
FAULTS = (
    ACCOUNT_BOMB,
    CLOCK_BOMB,
    TERMINAL_BOMB,
    "appended twice",
    "applied again",
    "arrived unacknowledged",
    "crash after a commit, outputs in flight",
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
    "slow",
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
    for ran in run_seeds(range(1, SEEDS + 1), payments=PAYMENTS, jobs=jobs_default()):
        if isinstance(ran, Failed):
            pytest.fail(f"python tests/simulation --seeds 1 --seed {ran.seed}\n{ran.what}")
        fired.update(ran.fired)
        happened.update(ran.happened)
    assert not set(CRASH_POINTS) - set(fired), "a crash point never fired"
    assert not {fault for fault in FAULTS if not happened[fault]}, "a fault touched nothing"
    assert happened["model versions"] >= SEEDS // 6, "the learner hardly ever published"
    assert happened["examples"] >= 10 * SEEDS


def simulation(*arguments: str, **env: str) -> list[str]:
    """The lines that it prints."""
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).parent), *arguments],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.splitlines()


def test_a_seed_is_the_same_run_under_another_hash_seed_and_in_another_process() -> None:
    def told(jobs: str, hash_seed: str) -> list[str]:
        lines = simulation("--seeds", "3", "--seed", "9", "--digests", "--jobs", jobs, PYTHONHASHSEED=hash_seed)
        return lines[:-1]  # without the summary, which holds a time

    in_one = told("1", "1")
    assert [line.split()[:2] for line in in_one[:3]] == [["digest", seed] for seed in ("9", "10", "11")]
    assert told("2", "2") == in_one


def test_seeds_that_fail_are_told_in_their_order_however_many_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_on_even(seed: int, *, payments: int) -> Ran:
        if seed % 2 == 0:
            raise ArithmeticError(f"{seed} of {payments}")
        return Ran(seed, "", Counter(), Counter())

    monkeypatch.setattr(sim_jobs, "run_seed", fails_on_even)  # a forked process has it too
    for jobs in (1, 2):
        results = list(run_seeds(range(1, 41), payments=7, jobs=jobs))
        assert [result.seed for result in results] == list(range(1, 41))
        failed = [result for result in results if isinstance(result, Failed)]
        assert [(result.seed, result.what) for result in failed] == [
            (seed, f"ArithmeticError: {seed} of 7") for seed in range(2, 41, 2)
        ]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_a_summary_of_what_was_run(how: signal.Signals) -> None:
    command = [sys.executable, str(Path(__file__).parent), "--seeds", "100000", "--digests", "--jobs", "2", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as ran:
        assert ran.stdout is not None
        first = ran.stdout.readline()
        ran.send_signal(how)
        ran.send_signal(how)  # as `timeout` does
        lines = [first, *ran.stdout.read().splitlines()]
        assert ran.stderr is not None
        said = ran.stderr.read()
    assert lines[-1].startswith("{"), said
    summary = json.loads(lines[-1])
    digests = [line for line in lines if line.startswith("digest")]
    assert 1 <= summary["seeds"] == len(digests) < 1_000
    assert summary["failures"] == []
    assert ran.returncode == 1  # not all that was asked for was run


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_fault_planted_in_the_source_is_found(mutant: Mutant) -> None:
    assert caught_by(mutant) is not None


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_mutant_still_finds_the_text_that_it_replaces(mutant: Mutant) -> None:
    for file, text, _ in mutant.patches:
        assert (ROOT / file).read_text().count(text) == 1
