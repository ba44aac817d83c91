"""`python tests/chaos --fault NAME --payments N --json`: see `main`."""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from chaos_check import Checked, verify  # noqa: E402
from chaos_deployment import Deployment  # noqa: E402
from chaos_faults import AGAIN, FAULTS  # noqa: E402
from chaos_faults_log import POINTS  # noqa: E402, F401  (registers its faults)

from stream.broker.embedded import EmbeddedBroker  # noqa: E402
from stream.reconcile import reconcile  # noqa: E402


def try_fault(name: str, payments: int, seed: int, broker: EmbeddedBroker, directory: Path) -> dict[str, Any]:
    """One fault under load, and what it left behind. `failed`: why the run is no good; empty if it is."""
    deployment = Deployment(broker, directory, f"{name}-{os.getpid()}-{seed}.", seed)
    began_s = time.monotonic()
    failed: list[str] = []
    try:
        deployment.begin()
        evidence = FAULTS[name](deployment, payments)
        deployment.until_answered()
        codes = deployment.stop_workers()
        if any(codes):
            failed.append(f"workers ended with {codes}")
        found = reconcile(deployment.client, deployment.prefix)
        states = [worker.state for worker in deployment.workers]
        checked = verify(deployment.client, deployment.prefix, states, deployment.saved)
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
    if not found.good:
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


_ZERO = ("different", "absent", "items_different", "items_absent", "intake_missing", "states_different")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/chaos", description="Faults on real Kafka and real workers.")
    parser.add_argument("--fault", choices=sorted(FAULTS), help="which")
    parser.add_argument("--payments", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="keep logs and states in this directory")
    parser.add_argument("--record", type=Path, help="append the result to this file of JSON lines")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    if options.fault is None:
        parser.error("--fault is needed")
    directory = options.keep or Path(tempfile.mkdtemp(prefix="fraudstream-chaos-"))
    try:
        with EmbeddedBroker() as broker:
            try:
                result = try_fault(options.fault, options.payments, options.seed, broker, directory)
            except Exception as error:
                traceback.print_exc()
                result = {"fault": options.fault, "seed": options.seed, "failed": [f"{type(error).__name__}: {error}"]}
    finally:
        if options.keep is None:
            shutil.rmtree(directory, ignore_errors=True)
    failed = bool(result["failed"] or result.get("missing") or result.get("conflicting"))
    for line in result["failed"]:
        print(line, file=sys.stderr)
    if options.record is not None:
        with open(options.record, "a", encoding="utf-8") as out:
            out.write(json.dumps(result) + "\n")
    print(json.dumps(result) if options.json else result)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
