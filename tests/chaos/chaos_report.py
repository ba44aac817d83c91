"""`deploy/reliability.md`, from what runs have recorded, and from nothing else."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from chaos_faults import FAULTS

HEAD = """# What faults have done

Made by `python tests/chaos --report` from `tests/chaos/results.jsonl`, one line a run; no figure is written by hand.
Each run is real Apache Kafka (one broker), real `fraud worker` processes and a load that goes on while the fault
happens. *Missing*: payments without an answer. *Conflicting*: answers that differ among themselves, or from what the
recorded journals say when they are run again off-line (values, keys, headers, items between stages, and the state
that the workers left on disk). *Recovery*: the longest time from a fault until all that had been sent by then was
answered; on a machine that others used as well. A run that failed stays in the table until a later run of that fault
and seed has passed.

Again: `python tests/chaos --fault NAME --payments N --record --json`.

"""


def write_report(results: Path, report: Path) -> None:
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    runs = [json.loads(line) for line in lines]
    report.write_text(HEAD + table(runs) + "\n" + meanings(), encoding="utf-8")


def table(runs: Iterable[dict[str, Any]]) -> str:
    last: dict[tuple[str, int], dict[str, Any]] = {}
    for run in runs:
        last[run["fault"], run["seed"]] = run
    by_fault: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in last.values():
        by_fault[run["fault"]].append(run)
    rows = [
        "| fault | runs | failed | payments | missing | conflicting | evidence | recovery, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in FAULTS:
        of = by_fault.get(name, [])
        if not of:
            rows.append(f"| {name} | not run | | | | | | |")
            continue
        cells = (
            name,
            str(len(of)),
            str(sum(bool(run["failed"]) for run in of)),
            *(f"{sum(run.get(field, 0) for run in of):,}" for field in ("payments", "missing", "conflicting")),
            evidence_of(of),
            f"{max(run.get('recovery_seconds', 0.0) for run in of)}",
        )
        rows.append("| " + " | ".join(cells) + " |")
    failures = [f"- {run['fault']}, seed {run['seed']}: {run['failed'][0]}" for run in last.values() if run["failed"]]
    return "\n".join(rows) + "\n" + ("\nFailed:\n\n" + "\n".join(failures) + "\n" if failures else "")


def evidence_of(runs: list[dict[str, Any]]) -> str:
    """Counts are added up over the runs, the rest is the last run's."""
    totals: dict[str, Any] = {}
    for run in runs:
        for what, value in run.get("evidence", {}).items():
            counts = isinstance(value, int) and not isinstance(value, bool)
            totals[what] = totals.get(what, 0) + value if counts else value
    return ", ".join(f"{what.replace('_', ' ')} {_text(value)}" for what, value in totals.items())


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{what} {count}" for what, count in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else f"{value}"


def meanings() -> str:
    return "".join(f"- **{name}**: {(function.__doc__ or '').strip()}\n" for name, function in FAULTS.items())
