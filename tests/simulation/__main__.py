"""`python tests/simulation --seeds N --seed S [--jobs J] [--mutants] [--json]`: see the module's `main`."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

# `FRAUD_SIMULATED_SOURCE`: a patched copy of the source, when this process is to run a mutant.
sys.path[:0] = [str(Path(__file__).parent), os.environ.get("FRAUD_SIMULATED_SOURCE", str(Path(__file__).parents[2]))]

from sim_jobs import Failed, jobs_default, run_seeds  # noqa: E402
from sim_seed import PAYMENTS  # noqa: E402

from stream.runner.partition import CRASH_POINTS  # noqa: E402

HERE = Path(__file__).parent
PROGRESS_EVERY_S = 30.0
SEEDS_FOR_ALL_POINTS = 50  # so many seeds must pass every crash point


class Tally:
    """What the seeds that have been run have shown."""

    def __init__(self) -> None:
        self.ran = 0
        self.failures: list[int] = []
        self.fired: Counter[str] = Counter()
        self.happened: Counter[str] = Counter()
        self.stopped = False  # by a signal
        self.telling = False  # of a result: a signal waits until it is told and counted
        self.began_s = self.told_s = time.monotonic()

    def stop(self, _signal: int, _frame: object) -> None:
        if self.stopped:
            return  # `timeout` signals the process and its group: the second would end the ending half-way
        self.stopped = True
        if not self.telling:
            raise KeyboardInterrupt

    def per_second(self) -> float:
        return round(self.ran / (time.monotonic() - self.began_s), 2)

    def progress(self, seeds: int) -> None:
        if time.monotonic() - self.told_s >= PROGRESS_EVERY_S:
            self.told_s = time.monotonic()
            said = f"{self.ran} of {seeds} seeds, {len(self.failures)} failures, {self.per_second()} seeds/s"
            print(said, file=sys.stderr, flush=True)


def tally(options: argparse.Namespace) -> Tally:
    """Run the seeds. SIGINT or SIGTERM ends it early: what was run until then counts."""
    found = Tally()
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, found.stop)
    seeds = range(options.seed, options.seed + options.seeds)
    try:
        with closing(run_seeds(seeds, payments=options.payments, jobs=min(options.jobs, len(seeds)))) as results:
            for result in results:
                found.telling = True
                found.ran += 1
                if isinstance(result, Failed):
                    found.failures.append(result.seed)
                    print(f"seed {result.seed}: {result.what}", flush=True)
                    again = f"--seeds 1 --seed {result.seed} --payments {options.payments}"
                    print(f"  python tests/simulation {again}", flush=True)
                    if options.seeds == 1:
                        print(result.trace, file=sys.stderr)
                    if options.stop:
                        break
                else:
                    found.fired.update(result.fired)
                    found.happened.update(result.happened)
                    if options.digests:
                        print(f"digest {result.seed} {result.digest}", flush=True)
                found.progress(options.seeds)
                found.telling = False
                if found.stopped:
                    raise KeyboardInterrupt
    except KeyboardInterrupt:
        print(f"stopped by a signal after {found.ran} of {options.seeds} seeds", file=sys.stderr, flush=True)
    return found


def commit() -> str:
    """Of the source that was run; empty if that is not known."""
    ran = subprocess.run(
        ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return ran.stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/simulation", description="Seeded faults over a log in memory.")
    parser.add_argument("--seeds", type=int, default=500, help="how many")
    parser.add_argument("--seed", type=int, default=1, help="the first")
    parser.add_argument("--payments", type=int, default=PAYMENTS, help="a seed")
    parser.add_argument("--jobs", type=int, default=jobs_default(), help="processes; results do not depend on it")
    parser.add_argument("--mutants", action="store_true", help="also patch the source, and see whether it is found out")
    parser.add_argument("--digests", action="store_true", help="print a hash of each seed's log")
    parser.add_argument("--stop", action="store_true", help="stop at the first failure")
    parser.add_argument("--record", action="store_true", help="append the summary to tests/simulation/results.jsonl")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    if options.seeds < 1 or options.jobs < 1:
        parser.error("--seeds and --jobs are 1 or more")
    found = tally(options)
    per_second = found.per_second()
    silent = sorted(set(CRASH_POINTS) - set(found.fired))
    if found.ran < SEEDS_FOR_ALL_POINTS or options.stop:
        silent = []
    if silent:
        print(f"crash points that never fired: {', '.join(silent)}")
    print("fired:", dict(sorted(found.fired.items())))
    print("happened:", dict(sorted(found.happened.items())))
    survivors: list[str] = []
    mutants = 0
    if options.mutants and not found.stopped:
        from mutants import MUTANTS, surviving

        mutants = len(MUTANTS)
        survivors = surviving(verbose=True, jobs=options.jobs)
    summary = {
        "seeds": found.ran,
        "failures": found.failures,
        "mutants": mutants,
        "survivors": survivors,
        "seeds_per_second": per_second,
        "silent_crash_points": silent,
        "jobs": options.jobs,
    }
    if options.record and found.ran:
        with open(HERE / "results.jsonl", "a", encoding="utf-8") as out:
            out.write(json.dumps({"seed": options.seed, **summary, "commit": commit()}) + "\n")
    print(json.dumps(summary) if options.json else summary)
    return 1 if found.failures or survivors or silent or found.stopped else 0


if __name__ == "__main__":
    sys.exit(main())
