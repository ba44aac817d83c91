"""`python tests/simulation --seeds N --seed S [--mutants] [--json]`: see the module's `main`."""

import argparse
import json
import os
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

# `FRAUD_SIMULATED_SOURCE`: a patched copy of the source, when this process is to run a mutant.
sys.path[:0] = [str(Path(__file__).parent), os.environ.get("FRAUD_SIMULATED_SOURCE", str(Path(__file__).parents[2]))]

from sim_seed import PAYMENTS, run_seed  # noqa: E402

from stream.runner.partition import CRASH_POINTS  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/simulation", description="Seeded faults over a log in memory.")
    parser.add_argument("--seeds", type=int, default=500, help="how many")
    parser.add_argument("--seed", type=int, default=1, help="the first")
    parser.add_argument("--payments", type=int, default=PAYMENTS, help="a seed")
    parser.add_argument("--mutants", action="store_true", help="also patch the source, and see whether it is found out")
    parser.add_argument("--digests", action="store_true", help="print a hash of each seed's log")
    parser.add_argument("--stop", action="store_true", help="stop at the first failure")
    parser.add_argument("--record", action="store_true", help="append the summary to tests/simulation/results.jsonl")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    failures: list[int] = []
    fired: Counter[str] = Counter()
    happened: Counter[str] = Counter()
    began_s = time.monotonic()
    ran = 0
    for seed in range(options.seed, options.seed + options.seeds):
        ran += 1
        try:
            result = run_seed(seed, payments=options.payments)
        except Exception as error:
            failures.append(seed)
            print(f"seed {seed}: {type(error).__name__}: {error}", flush=True)
            print(f"  python tests/simulation --seeds 1 --seed {seed} --payments {options.payments}", flush=True)
            if options.seeds == 1:
                traceback.print_exc()
            if options.stop:
                break
            continue
        fired.update(result.fired)
        happened.update(result.happened)
        if options.digests:
            print(f"digest {seed} {result.digest}", flush=True)
    seconds = time.monotonic() - began_s
    silent = sorted(set(CRASH_POINTS) - set(fired)) if options.seeds >= 50 and not options.stop else []
    if silent:
        print(f"crash points that never fired: {', '.join(silent)}")
    print("fired:", dict(fired))
    print("happened:", dict(happened))
    survivors: list[str] = []
    mutants = 0
    if options.mutants:
        from mutants import MUTANTS, surviving

        mutants = len(MUTANTS)
        survivors = surviving(verbose=True)
    summary = {
        "seeds": ran,
        "failures": failures,
        "mutants": mutants,
        "survivors": survivors,
        "seeds_per_second": round(ran / seconds, 2),
        "silent_crash_points": silent,
    }
    if options.record:
        with open(Path(__file__).parent / "results.jsonl", "a", encoding="utf-8") as out:
            out.write(json.dumps({"seed": options.seed, **summary}) + "\n")
    print(json.dumps(summary) if options.json else summary)
    return 1 if failures or survivors or silent else 0


if __name__ == "__main__":
    sys.exit(main())
