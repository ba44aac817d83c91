"""`deploy/reliability.md`, from what runs have recorded, and from nothing else."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from chaos_faults import BROKERS, FAULTS, one_broker

HEAD = """# What faults have done

Made by `python tests/chaos --report` from `tests/chaos/results.jsonl` and `tests/simulation/results.jsonl`, one line a
run; no figure is written by hand. What the faults do not cover is at the end.

## On real Kafka

Each run is real Apache Kafka, real `fraud worker` processes and a load that goes on while the fault happens.

- *Missing*: payments without an answer.
- *Conflicting*: answers that differ among themselves, or from what the recorded journals say when they are run again
  off-line (values, keys, headers, items between stages, and the state that the workers left on disk).
- *Recovery*: the longest time from a fault (from the return of a leader, where brokers were away) until all that had
  been sent by then was answered; on two cores that others used as well.
- *Goes on after*: the longest time from a fault (or the return of a leader) until every partition had a new answer, by
  the broker's clock: without the time to work off what had gathered.
- *Last*: the last run's payments, and the commit that was tried; "-dirty": with changes on it.
- *Failed before*: runs that failed before the code was mended; the figures are of the runs since.

Again: `python tests/chaos --fault NAME --payments N --record --json`.

"""
SIMULATED = """
## In one thread, seeded

The real stages and the real runner over an in-memory log, store and clock. A seed that fails prints the command that
repeats it; mutants are patches to the source that some seed must find.

Again: `python tests/simulation --seeds N --seed S --mutants --record --json`.

| seeds | from seed | failures | mutants | survivors | crash points that never fired | seeds a second | commit |
|---|---|---|---|---|---|---|---|
"""


def write_report(results: Path, simulated: Path, report: Path) -> None:
    text = (
        HEAD + table(_lines(results)) + "\n" + meanings() + SIMULATED + simulations(_lines(simulated)) + _limits(report)
    )
    report.write_text(text, encoding="utf-8")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


LIMITS = "## Not covered"


def _limits(report: Path) -> str:
    """What people wrote at the end of the page stays."""
    before = report.read_text(encoding="utf-8") if report.exists() else ""
    _, found, rest = before.partition(LIMITS)
    return f"\n{LIMITS}{rest}" if found else ""


def table(runs: Iterable[dict[str, Any]]) -> str:
    by_fault: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        by_fault[run["fault"]].append(run)
    rows = [
        "| fault | runs | failed before | payments | largest | missing | conflicting | last | evidence | recovery, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    failing: list[dict[str, Any]] = []
    for name in FAULTS:
        tried = by_fault.get(name, [])
        of = _since_it_passed(tried)
        if not of:
            failing += tried[-1:]
            rows.append(f"| {name} | {'FAILS' if tried else 'not run'} | {len(tried)} | | | | | | | |")
            continue
        cells = (
            name,
            str(len(of)),
            str(sum(map(_is_bad, tried))),
            f"{sum(run.get('payments', 0) for run in of):,}",
            f"{max(run.get('payments', 0) for run in of):,}",
            *(f"{sum(run.get(field, 0) for run in of):,}" for field in ("missing", "conflicting")),
            f"{of[-1].get('payments', 0):,} at {of[-1].get('commit', 'a commit not kept')}",
            evidence_of(of),
            f"{max(run.get('recovery_seconds') or 0.0 for run in of)}",
        )
        rows.append("| " + " | ".join(cells) + " |")
    failures = [f"- {run['fault']}, seed {run['seed']}: {run['failed'][0]}" for run in failing]
    return "\n".join(rows) + "\n" + ("\nFailing:\n\n" + "\n".join(failures) + "\n" if failures else "")


def _is_bad(run: dict[str, Any]) -> bool:
    return bool(run["failed"] or run.get("missing") or run.get("conflicting"))


def _since_it_passed(tried: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs after the last that was no good."""
    bad = [i for i, run in enumerate(tried) if _is_bad(run)]
    return tried[bad[-1] + 1 :] if bad else tried


def simulations(runs: Iterable[dict[str, Any]]) -> str:
    return "".join(
        f"| {run['seeds']:,} | {run['seed']} | {len(run['failures'])} | {run['mutants'] or 'not tried'} | "
        f"{len(run['survivors']) if run['mutants'] else ''} | {len(run['silent_crash_points'])} | "
        f"{run['seeds_per_second']} | {run.get('commit', '')} |\n"
        for run in runs
    )


LARGEST = ("_max", "_after_s", "_partitions_s", "_disk_s", "_restored_s", "kinds_of_poison", "accounts")
"""Ends of names whose values are no counts: the largest of all runs is told."""


def evidence_of(runs: list[dict[str, Any]]) -> str:
    """Counts are added up over the runs, of `LARGEST` it is the largest, the rest is the last run's."""
    totals: dict[str, Any] = {}
    for run in runs:
        for what, value in run.get("evidence", {}).items():
            counts = isinstance(value, int) and not isinstance(value, bool)
            if what.endswith(LARGEST) and not isinstance(value, list):
                totals[what] = max(totals.get(what, value), value)
            else:
                totals[what] = totals.get(what, 0) + value if counts else value
    return ", ".join(f"{what.replace('_', ' ')} {_text(value)}" for what, value in totals.items())


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{what} {count}" for what, count in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else f"{value}"


def meanings() -> str:
    return "".join(
        f"- **{name}**{'' if BROKERS[name] is one_broker else ' (brokers of its own kind)'}: "
        f"{' '.join((function.__doc__ or '').split())}\n"
        for name, function in FAULTS.items()
    )
