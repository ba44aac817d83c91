"""The hop alone: three copies in a row through the worker's membership and fetching, without stages.

    python tests/bench/hop.py [--rates 200,1000,4000] [--seconds 20] [--record] [--json]

The columns of design.md's table: latency p50 / p99 in ms, open loop, producer's linger 1 ms, four partitions a topic;
the first row is one topic read back, the floor of the method. CPU is the copying process's, per record and hop.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import os
import subprocess
import sys
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from history import described, record  # noqa: E402
from latency import ANSWER_S_MAX, consume, percentile, produce  # noqa: E402
from load import make_load  # noqa: E402
from meter import BenchFailed, cpu_s  # noqa: E402
from ours import PARTITIONS, ROOT  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from stream.broker.embedded import EmbeddedBroker  # noqa: E402
from stream.broker.topic_admin import Topic, create_topics  # noqa: E402

COPIER = ROOT / "tests" / "kafka" / "toy_worker.py"
HOPS = 3
WARM_RATE, WARM_S = 500.0, 8.0


def run_through(bootstrap: str, first: str, last: str, rate: float, seconds: float, seed: int) -> list[float]:
    """Milliseconds from the acknowledgement on `first` to the reading from `last`, ascending; infinite: never came."""
    payments = make_load(int(rate * seconds), seed=seed).payments
    ids = [json.loads(value)["payment_id"] for _, value in payments]
    spawn = multiprocessing.get_context("spawn")
    acks: Queue[Any] = spawn.Queue()
    reads: Queue[Any] = spawn.Queue()
    ready = spawn.Event()
    limit_s = seconds + ANSWER_S_MAX
    reader = spawn.Process(target=consume, args=(bootstrap, last, len(ids), limit_s, ready, reads), daemon=True)
    reader.start()
    if not ready.wait(60):
        raise BenchFailed("the reader does not start")
    sender = spawn.Process(target=produce, args=(bootstrap, first, payments, ids, rate, acks), daemon=True)
    sender.start()
    acked, _ = acks.get(timeout=limit_s + 60)
    read: dict[str, int] = reads.get(timeout=limit_s + 60)
    return sorted((read[i] - acked[i]) / 1e6 if i in read else math.inf for i in acked)


def figures(ms: list[float]) -> dict[str, float]:
    return {"p50": round(percentile(ms, 0.5), 1), "p99": round(percentile(ms, 0.99), 1)}


def measure(rates: list[float], seconds: float) -> dict[str, Any]:
    topics = [f"hop{i}" for i in range(HOPS + 1)]
    found: dict[str, Any] = {"floor": {}, "hops": {}, "cpu_us_per_hop": {}}
    with EmbeddedBroker(properties={"log.message.timestamp.type": "LogAppendTime"}) as broker:
        made = [Topic(name=name, partitions=PARTITIONS) for name in (*topics, "floor")]
        create_topics({"bootstrap.servers": broker.bootstrap}, made, replication=1)
        copies = [part for a, b in itertools.pairwise(topics) for part in ("--copy", f"{a}:{b}")]
        command = [sys.executable, str(COPIER), "--bootstrap", broker.bootstrap, "--group", "hop", *copies]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        copier = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        try:
            for last, first in (("floor", "floor"), (topics[-1], topics[0])):  # a cold broker is ten times slower
                run_through(broker.bootstrap, first, last, WARM_RATE, WARM_S, seed=90)
            for number, rate in enumerate(rates):
                name = f"{rate:g}"
                floor = run_through(broker.bootstrap, "floor", "floor", rate, seconds, seed=10 + number)
                found["floor"][name] = figures(floor)
                before_s = cpu_s(copier.pid)
                ms = run_through(broker.bootstrap, topics[0], topics[-1], rate, seconds, seed=50 + number)
                used_s = cpu_s(copier.pid) - before_s
                found["hops"][name] = figures(ms)
                found["cpu_us_per_hop"][name] = round(used_s / len(ms) / HOPS * 1e6, 1)
                if copier.poll() is not None:
                    raise BenchFailed(f"the copier ended with code {copier.returncode}")
        finally:
            copier.terminate()
            copier.wait(30)
    return found


def show(found: dict[str, Any]) -> None:
    table = Table(title="p50 / p99 in ms")
    table.add_column("payments/s", justify="right")
    for name in ("one topic, no hop", f"{HOPS} hops", "CPU µs a record and hop"):
        table.add_column(name, justify="right")
    for rate in found["hops"]:
        cells = [f"{at['p50']:.0f} / {at['p99']:.0f}" for at in (found["floor"][rate], found["hops"][rate])]
        table.add_row(rate, *cells, f"{found['cpu_us_per_hop'][rate]:.0f}")
    Console(stderr=True).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/bench/hop.py", description=__doc__)
    parser.add_argument("--rates", default="200,1000,4000")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--record", action="store_true", help="append the figures to history.jsonl")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    given = parser.parse_args()
    found = described("hop", measure([float(rate) for rate in given.rates.split(",")], given.seconds))
    show(found)
    if given.record:
        record(found)
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
