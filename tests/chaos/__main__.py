"""`python tests/chaos --fault NAME --payments N --json`: see `main`."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results.jsonl"
SIMULATED = HERE.parent / "simulation" / "results.jsonl"
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from chaos_check import Checked, processes, verify  # noqa: E402
from chaos_deployment import AnyBroker, Deployment  # noqa: E402
from chaos_faults import AGAIN, BROKERS, FAULTS, MANY, NOT_RUN_AGAIN  # noqa: E402
from chaos_faults_broker import THREE  # noqa: E402, F401  (registers its faults)
from chaos_faults_log import POINTS  # noqa: E402, F401  (registers its faults)
from chaos_faults_version import ENGINE  # noqa: E402, F401  (registers its faults)

from stream.reconcile import reconcile  # noqa: E402


def try_fault(
    name: str,
    payments: int,
    seed: int,
    times: int | None,
    broker: AnyBroker,
    directory: Path,
    *,
    snapshots: bool = True,
) -> dict[str, Any]:
    """One fault under load, and what it left behind. `failed`: why the run is no good; empty if it is."""
    prefix = f"{name}-{os.getpid()}-{seed}."
    deployment = Deployment(broker, directory, prefix, seed, snapshots=snapshots, times=times)
    if payments >= MANY:  # every few seconds they would take as much of a worker as the payments do
        deployment.environment["FRAUD_SNAPSHOT_EVERY_S"] = "20"
    began_s = time.monotonic()
    failed: list[str] = []
    try:
        deployment.begin()
        evidence = FAULTS[name](deployment, payments)
        deployment.until_answered()
        deployment.settle()
        deployment.say("all is answered; the workers leave, and everything is compared")
        codes = deployment.stop_workers()
        deployment.say(f"SIGTERM took {[worker.stop_seconds[-1:] for worker in deployment.workers]} s")
        if any(codes):
            failed.append(f"workers ended with {codes}")
        states = [worker.state for worker in deployment.workers]
        checked = Checked()
        with processes(deployment.prepare_rerun) as pool:
            reconciling = pool.submit(reconcile, deployment.client, deployment.prefix)
            if name not in NOT_RUN_AGAIN:
                checked = verify(pool, deployment.client, deployment.prefix, states, deployment.saved)
            found = reconciling.result()
        deployment.say("everything is compared")
    finally:
        deployment.close()
    again = {
        "answers_again": found.repeated,
        "journal_items_again": checked.item_copies,
        "records_reapplied": deployment.reapplied(),
    }
    bit = evidence.pop("bit")
    if bit == AGAIN:
        bit = any(again.values())
    evidence |= again | {"fenced": deployment.logged("fenced: |left without a last checkpoint")}
    evidence = {what: value for what, value in evidence.items() if value}
    if not bit:
        failed.append("no sign that the fault bit")
    failed += _wrong(checked)
    if found.unasked or found.dead_letters_missing:
        failed.append(f"reconcile: {found.unasked} unasked, {found.dead_letters_missing} letters missing")
    slow = [s for worker in deployment.workers for s in worker.stop_seconds if s > 10.0]
    if slow:
        failed.append(f"SIGTERM took {slow} s")
    return {
        "fault": name,
        "seed": seed,
        "payments": found.payments,
        "missing": found.missing - deployment.held_back,
        "conflicting": found.conflicting + checked.wrong,
        "evidence": evidence,
        "recovery_seconds": deployment.recovery_seconds(),
        "answers_compared": checked.answers,
        "states_compared": checked.states,
        "seconds": round(time.monotonic() - began_s, 1),
        "failed": failed,
    }


def _wrong(checked: Checked) -> list[str]:
    return [f"{field} {getattr(checked, field)}" for field in _ZERO if getattr(checked, field)] + checked.examples


_ZERO = (
    "different",
    "absent",
    "items_different",
    "items_absent",
    "intake_missing",
    "states_different",
    "states_missing",
)


PAYMENTS = 20_000
CI_PAYMENTS = 6_000
CI_FAULTS = 3
CI_TURNS = (  # each takes a minute or two, and needs no rights that a CI machine may not give
    "kill",
    "poison",
    "broker-kill",
    "stop",
    "apply-raises",
    "state-deleted",
    "flip",
    "compressions",
    "group-offsets-reset",
)


def ci_faults(day: int) -> list[str]:
    """Three of `CI_TURNS`, so that each has its day within a week.

    >>> {name for day in range(7) for name in ci_faults(day)} == set(CI_TURNS)
    True
    """
    return [CI_TURNS[(day * CI_FAULTS + i) % len(CI_TURNS)] for i in range(CI_FAULTS)]


def commit() -> str:
    """What was tried; "-dirty" if anything but the records differs from it."""

    def git(*words: str) -> str:
        told = subprocess.run(["git", "-C", str(HERE), *words], capture_output=True, text=True, check=False)
        return told.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", f":!{RESULTS.name}")
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")


def run(
    name: str,
    payments: int,
    seed: int,
    times: int | None,
    keep: Path | None,
    record: Path | None,
    *,
    snapshots: bool = True,
) -> dict[str, Any]:
    """One fault on a broker of its own; whatever goes wrong is in `failed`."""
    directory = keep or Path(tempfile.mkdtemp(prefix="fraudstream-chaos-"))
    try:
        with BROKERS[name](directory, payments) as broker:
            result = try_fault(name, payments, seed, times, broker, directory, snapshots=snapshots)
    except Exception as error:
        traceback.print_exc()
        result = {"fault": name, "seed": seed, "failed": [f"{type(error).__name__}: {error}"]}
    finally:
        if keep is None:
            shutil.rmtree(directory, ignore_errors=True)
    for line in result["failed"]:
        print(f"{name}: {line}", file=sys.stderr)
    if not snapshots:
        result["snapshots"] = False
    if record is not None:
        with open(record, "a", encoding="utf-8") as out:
            out.write(json.dumps({**result, "commit": commit()}) + "\n")
    return result


def bad(result: dict[str, Any]) -> bool:
    return bool(result["failed"] or result.get("missing") or result.get("conflicting"))


def main() -> int:
    """Exit code 1 if anything is missing or conflicting, or if a fault left no sign that it bit."""
    parser = argparse.ArgumentParser(prog="python tests/chaos", description="Faults on real Kafka and real workers.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--fault", choices=[*FAULTS, "all"], help="which")
    what.add_argument("--ci", action="store_true", help=f"{CI_FAULTS} faults by turns, by the day of the year")
    what.add_argument("--report", action="store_true", help="write deploy/reliability.md from what was recorded")
    parser.add_argument("--payments", type=int, help=f"default {PAYMENTS:,}, with --ci {CI_PAYMENTS:,}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--times", type=int, help="how often it happens; default by the number of payments")
    parser.add_argument("--keep", type=Path, help="keep logs and states in this directory")
    parser.add_argument("--no-snapshots", action="store_true", help="workers have their own disks only")
    parser.add_argument("--record", action="store_true", help="append the result to tests/chaos/results.jsonl")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    if options.report:
        from chaos_report import write_report

        write_report(RESULTS, SIMULATED, HERE.parents[1] / "deploy" / "reliability.md")
        return 0
    payments = options.payments or (CI_PAYMENTS if options.ci else PAYMENTS)
    names = [options.fault]
    if options.ci:
        names = ci_faults(time.localtime().tm_yday)
    elif options.fault == "all":
        names = list(FAULTS)
    results: list[dict[str, Any]] = []
    for name in names:
        keep = options.keep / name if options.keep is not None and len(names) > 1 else options.keep
        record = RESULTS if options.record else None
        results.append(
            run(name, payments, options.seed, options.times, keep, record, snapshots=not options.no_snapshots)
        )
        print(json.dumps(results[-1]), flush=True)
    if options.json and len(names) > 1:
        total = {
            "fault": ",".join(names),
            "payments": sum(result.get("payments", 0) for result in results),
            "missing": sum(result.get("missing", 0) for result in results),
            "conflicting": sum(result.get("conflicting", 0) for result in results),
            "evidence": {result["fault"]: result.get("evidence", {}) for result in results},
            "recovery_seconds": max((result.get("recovery_seconds", 0.0) for result in results), default=0.0),
            "failed": [f"{result['fault']}: {line}" for result in results for line in result["failed"]],
        }
        print(json.dumps(total))
    return 1 if any(map(bad, results)) else 0


if __name__ == "__main__":
    sys.exit(main())
