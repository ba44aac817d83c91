"""`python tests/bench --peers kstreams,quix,faust [--payments N] [--rounds 3] [--json]`: ours and others, one run."""

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import page  # noqa: E402
from history import described, record  # noqa: E402
from latency import latency  # noqa: E402
from load import make_load  # noqa: E402
from meter import BenchFailed, Figure  # noqa: E402
from ours import PRODUCTION, publish_payments, run_ours  # noqa: E402
from peers import PARTITIONS, SHARE, NotPresent, prepare, run_peer  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from stream.broker.embedded import EmbeddedBroker  # noqa: E402
from stream.broker.topic_admin import Topic, create_topics  # noqa: E402

WARM_FROM = 50_000  # payments of a round; in a small run nothing is measured that would be worth the time
console = Console(stderr=True)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python tests/bench", description=__doc__)
    parser.add_argument("--peers", default="", help=f"comma-separated, of: {','.join(SHARE)}")
    parser.add_argument("--payments", type=int, default=150_000, help="a run of ours (the slow peers take a share)")
    parser.add_argument("--rounds", type=int, default=3, help="ours and each peer alternate; the worst ratio counts")
    parser.add_argument("--rate", type=float, default=1_000.0, help="payments/s of the latency run; 0: none")
    parser.add_argument("--seconds", type=float, default=20.0, help="of the latency run")
    parser.add_argument(
        "--partitions", type=int, default=1, help="of each topic in the latency run; a worker's rounds are cut by them"
    )
    parser.add_argument("--tick-s", type=float, default=5.0, help="how often the learner may publish, in the rounds")
    parser.add_argument("--snapshot-s", type=float, default=10.0, help="how often snapshots are taken, in the rounds")
    parser.add_argument("--timeout-s", type=float, default=300.0, help="of one run")
    parser.add_argument("--smoke", action="store_true", help="small; fails on nonsense, not on noise")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--record", action="store_true", help="append the figures to history.jsonl")
    parser.add_argument("--page", action="store_true", help="measure nothing: write deploy/performance.md from history")
    given = parser.parse_args()
    if given.smoke:
        given.payments, given.rounds, given.rate, given.seconds = 40_000, 1, 200.0, 4.0
        given.tick_s = given.snapshot_s = 2.0
        given.timeout_s = 180.0
        given.peers = given.peers or "faust"
    given.peers = [name for name in given.peers.split(",") if name]
    unknown = set(given.peers) - set(SHARE)
    if unknown:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    return given


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """All rounds, then the latency run. Raises `BenchFailed`."""
    absent: dict[str, str] = {}
    for name in given.peers:
        try:
            console.print(f"preparing {name}")
            prepare(name)
        except NotPresent as error:
            absent[name] = str(error)
    peers = [name for name in given.peers if name not in absent]
    load = make_load(given.payments)
    figures: dict[str, list[Figure]] = {name: [] for name in ("ours", *peers)}
    with (
        tempfile.TemporaryDirectory(prefix="fraudstream-bench-") as temporary,
        EmbeddedBroker(properties={"log.message.timestamp.type": "LogAppendTime"}) as broker,
    ):
        directory, bootstrap = Path(temporary), broker.bootstrap
        if peers:
            create_topics({"bootstrap.servers": bootstrap}, [Topic(name="peers", partitions=PARTITIONS)], replication=1)
            publish_payments(bootstrap, "peers", load.payments)
        every: dict[str, Any] = {
            "tick_s": given.tick_s,
            "snapshot_s": given.snapshot_s,
            "timeout_s": given.timeout_s,
        }
        if given.payments >= WARM_FROM:
            # The broker has just started: its compilers take half a core, and ours would always be the one beside them.
            console.print("a round that is not counted")
            run_ours(bootstrap, load, directory, **every)
        for number in range(given.rounds):
            for name in ("ours", *peers):
                if name == "ours":
                    found = run_ours(bootstrap, load, directory, **every)
                else:
                    found = run_peer(name, bootstrap, "peers", given.payments, directory, timeout_s=given.timeout_s)
                figures[name].append(found)
                console.print(
                    f"round {number + 1} {name}: {found.cpu_us:.1f} CPU µs, {found.per_second:,.0f}/s, "
                    f"load {found.load_average:.1f} {found.extra} {found.by_thread_us}",
                    highlight=False,
                )
        times = None
        if given.rate > 0:
            times = latency(
                bootstrap,
                directory,
                rate=given.rate,
                seconds=given.seconds,
                # As a worker does by itself; of a short run, so that both fall into it.
                tick_s=min(PRODUCTION.tick_every_s, given.seconds / 2),
                snapshot_s=min(PRODUCTION.snapshot_every_s, given.seconds / 2),
                partitions=given.partitions,
            )
    return summary(given, figures, absent, times, load.value_bytes_mean)


def summary(
    given: argparse.Namespace,
    figures: dict[str, list[Figure]],
    absent: dict[str, str],
    times: dict[str, Any] | None,
    value_bytes: float,
) -> dict[str, Any]:
    """The worst round of each: the most CPU of ours, and per peer the smallest ratio of a round."""
    ours = figures["ours"]
    worst = max(ours, key=lambda figure: figure.cpu_us)
    ratios: dict[str, float | None] = {
        name: round(min(peer.cpu_us / own.cpu_us for peer, own in zip(found, ours, strict=True)), 3)
        for name, found in figures.items()
        if name != "ours"
    }
    found: dict[str, Any] = {
        "ratios": ratios | dict.fromkeys(absent),
        "not_present": absent,
        "cpu_us_per_payment": {name: round(max(f.cpu_us for f in found), 2) for name, found in figures.items()},
        "cpu_us_per_payment_rounds": {name: [round(f.cpu_us, 2) for f in found] for name, found in figures.items()},
        "cpu_us_by_thread": {name: round(us, 2) for name, us in worst.by_thread_us.items()},
        "payments_per_second": {name: round(min(f.per_second for f in found)) for name, found in figures.items()},
        "memory_mb": {name: round(max(f.memory_mb for f in found)) for name, found in figures.items()},
        "latency_ms": times,
        "ours": worst.extra,
        "load_average": [round(f.load_average, 1) for f in ours],
        "payments": given.payments,
        "value_bytes": round(value_bytes),
    }
    return described("whole way", found)


def nonsense(found: dict[str, Any]) -> list[str]:
    """What no noise explains: figures that are missing, or that cannot be."""
    wrong = [
        f"{name}: {us} CPU µs a payment" for name, us in found["cpu_us_per_payment"].items() if not 1.0 < us < 50_000.0
    ]
    wrong += [f"ratio of {name} is missing" for name, ratio in found["ratios"].items() if ratio is None]
    if not found["ours"]["example_blocks"]:
        wrong.append("nothing was learned")
    times = found["latency_ms"]
    if times is not None and (times["unanswered"] or times["p50"] is None):
        wrong.append(f"{times['unanswered']} payments were never answered")
    return wrong


def show(found: dict[str, Any]) -> None:
    table = Table(title=f"{found['payments']:,} payments, {found['machine']}, load {found['load_average']}")
    for heading in ("", "CPU µs a payment", "rounds", "payments/s", "MB", "ratio (worst)"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, us in found["cpu_us_per_payment"].items():
        rounds = " ".join(f"{value:.0f}" for value in found["cpu_us_per_payment_rounds"][name])
        ratio = found["ratios"].get(name)
        table.add_row(
            name,
            f"{us:.1f}",
            rounds,
            f"{found['payments_per_second'][name]:,}",
            str(found["memory_mb"][name]),
            "" if ratio is None else f"{ratio:.2f}",
        )
    for name, why in found["not_present"].items():
        table.add_row(name, "not present", why.splitlines()[0][:60], "", "", "")
    console.print(table)
    if found["latency_ms"] is not None:
        console.print("latency, ms:", found["latency_ms"])


def main() -> int:
    given = options()
    if given.page:
        console.print(f"written: {page.write()}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else workers would outlive us
    try:
        found = measure(given)
    except BenchFailed as error:
        console.print(f"[red]failed[/red]: {error}")
        if given.json:
            print(json.dumps({"error": str(error)}))
        return 1
    show(found)
    wrong = nonsense(found)
    for line in wrong:
        console.print(f"[red]nonsense[/red]: {line}")
    if given.record:
        record(found)
    if given.json:
        print(json.dumps(found))
    return 1 if wrong and given.smoke else 0


if __name__ == "__main__":
    sys.exit(main())
