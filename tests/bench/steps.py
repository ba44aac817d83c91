"""CPU by step, without a broker: the stages over RocksDB in this process, driven as the worker drives them.

    python tests/bench/steps.py [--payments N] [--batch N] [--not-plain SHARE] [--profile] [--record]

The CPU of this thread alone is counted, so other programs disturb it little: the figure to compare changes by. What
RocksDB's own threads take meanwhile is told beside it (`background_us_per_payment`, to ten milliseconds in all): with
the state it grows to as much as writing, so a change of the store shows with `--payments 480000 --batch 1500`.
"""

import argparse
import cProfile
import json
import os
import pstats
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import msgspec  # noqa: E402
from history import described, record  # noqa: E402
from load import MATURITY_MS, Load, make_load  # noqa: E402
from meter import threads_s  # noqa: E402

from stream import collector  # noqa: E402
from stream.replay.log import local_topic_id  # noqa: E402
from stream.runner.partition import PartitionRunner, Reseek, Send  # noqa: E402
from stream.stages.keys import TABLE_PENDING  # noqa: E402
from stream.stages.stage import Journal, Record  # noqa: E402
from stream.stages.state import State  # noqa: E402
from stream.stages.wiring import FOREIGN, GATHERING, Partitions, build_stage  # noqa: E402
from stream.worker.store import RocksStore, StoreMemory  # noqa: E402
from topics.control import encode_control  # noqa: E402
from topics.limits import LIMITS_DEFAULT  # noqa: E402

STEPS = {"payments": "intake", "labels": "intake", "account-journal": "account", "terminal-journal": "terminal"}
CHECKPOINT_EVERY = 10_000  # payments: a second's worth
ONE = Partitions(payments=1, account=1, terminal=1, decisions=1)


class Line:
    """One partition of each stage, in a row; what one sends is the next one's input."""

    def __init__(self, directory: Path) -> None:
        self.cpu_s: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.records: Counter[str] = Counter()
        self.offsets: Counter[str] = Counter()
        self._now_ms = 1_760_000_000_000
        memory = StoreMemory()
        self.stores: dict[str, RocksStore] = {}
        self.runners: dict[str, PartitionRunner] = {}
        for topic in (*STEPS, "examples", "control"):
            store = self.stores[topic] = RocksStore.open(directory / topic, memory=memory)
            state = State(store, scanned=TABLE_PENDING)
            journal = Journal(topic, local_topic_id(topic), 0)
            self.runners[topic] = PartitionRunner(
                journal,
                build_stage(journal, state, ONE),
                state,
                start_offset=0,
                internal=topic not in FOREIGN,
                gather=topic in GATHERING,
            )

    def records_of(
        self, topic: str, values: Sequence[tuple[bytes | None, bytes, Sequence[tuple[str, bytes]]]]
    ) -> list[Record]:
        first = self.offsets[topic]
        self.offsets[topic] += len(values)
        return [Record(first + i, self._now_ms, key, value, headers) for i, (key, value, headers) in enumerate(values)]

    def feed(self, topic: str, values: Sequence[tuple[bytes | None, bytes, Sequence[tuple[str, bytes]]]]) -> None:
        """Apply records, and all that follows from them."""
        runner = self.runners.get(topic)
        if runner is None or not values:
            return
        records = self.records_of(topic, values)
        began = time.thread_time()
        sends = runner.step(records)
        self.cpu_s[STEPS.get(topic, topic)] += time.thread_time() - began
        assert not isinstance(sends, Reseek)
        followed: dict[str, list[tuple[bytes | None, bytes, Sequence[tuple[str, bytes]]]]] = {}
        for send in sends:
            self._count(send)
            followed.setdefault(send.topic, []).append((send.key, send.value, send.headers))
        if sends:
            runner.acknowledged(sends[0].generation, len(sends))
        for to, found in followed.items():
            self.feed(to, found)

    def _count(self, send: Send) -> None:
        self.records[send.topic] += 1
        self.bytes[send.topic] += len(send.value) + sum(len(name) + len(value) for name, value in send.headers)

    def checkpoint(self) -> None:
        for topic, runner in self.runners.items():
            step = STEPS.get(topic, topic)
            began = time.thread_time()
            checkpoint = runner.begin_checkpoint()
            self.cpu_s[f"{step}: freeze"] += time.thread_time() - began
            changes = checkpoint.changes
            self.records[f"{step}: keys written"] += len(changes.writes)
            self.bytes[f"{step}: written"] += sum(len(k) + len(v or b"") for k, v in changes.writes.items())
            began = time.thread_time()
            runner.write(checkpoint, lambda changes, topic=topic: self.stores[topic].write_changes(changes, sync=False))
            self.cpu_s[f"{step}: write"] += time.thread_time() - began


def run(load: Load, batch: int, directory: Path, profile: cProfile.Profile | None) -> dict[str, Any]:
    """µs of CPU, bytes and records a payment, by step, over the last 80 % of the load."""
    line = Line(directory)
    collector.settle()  # as a worker does
    limits = msgspec.structs.replace(LIMITS_DEFAULT, maturity_ms=MATURITY_MS)
    settings = encode_control(kind="settings", by="bench", why="measure", payload=limits, written_at=0)
    line.feed("control", [(b"settings", settings, ())])
    labels = iter(load.labels)
    due = next(labels, None)
    payments = load.payments
    steady_from = len(payments) // 5 // batch * batch
    counted = len(payments) - steady_from
    background_s = _background_s()
    for first in range(0, len(payments), batch):
        if first == steady_from:
            line.checkpoint()  # so that exactly what is counted is written
            for counter in (line.cpu_s, line.bytes, line.records):
                counter.clear()
            background_s = _background_s()
            if profile is not None:
                profile.enable()
        line.feed("payments", [(key, value, ()) for key, value in payments[first : first + batch]])
        now: list[tuple[bytes | None, bytes, Sequence[tuple[str, bytes]]]] = []
        while due is not None and due.after <= first + batch:
            now.append((due.key, due.value, ()))
            due = next(labels, None)
        line.feed("labels", now)
        if first // CHECKPOINT_EVERY != (first + batch) // CHECKPOINT_EVERY:
            line.checkpoint()
    line.checkpoint()
    if profile is not None:
        profile.disable()
    return {
        "cpu_us_per_payment": {k: round(v / counted * 1e6, 2) for k, v in sorted(line.cpu_s.items())},
        "total_cpu_us": round(sum(line.cpu_s.values()) / counted * 1e6, 2),
        "background_us_per_payment": {
            name: round((s - background_s.get(name, 0.0)) / counted * 1e6, 2) for name, s in _background_s().items()
        },
        "bytes_per_payment": {k: round(v / counted, 1) for k, v in sorted(line.bytes.items())},
        "records_per_payment": {k: round(v / counted, 4) for k, v in sorted(line.records.items())},
        "payments": len(payments),
        "batch": batch,
    }


def _background_s() -> dict[str, float]:
    return {name: s for name, s in sorted(threads_s(os.getpid()).items()) if name.startswith("rocksdb")}


def with_attributes(load: Load, share: float) -> Load:
    """So many of the payments, spread evenly, with what no kernel reads: they go one by one."""
    payments = [
        (key, value[:-1] + b',"attributes":{"basket":3}}' if int(i * share) != int((i + 1) * share) else value)
        for i, (key, value) in enumerate(load.payments)
    ]
    return Load(payments, load.labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--payments", type=int, default=40_000)
    parser.add_argument("--batch", type=int, default=500, help="payments in a round")
    parser.add_argument("--not-plain", type=float, default=0.0, metavar="SHARE", help="of the payments, 0 to 1")
    parser.add_argument("--profile", action="store_true", help="by function; the figures are then too high")
    parser.add_argument("--record", action="store_true", help="append the figures to history.jsonl")
    given = parser.parse_args()
    profile = cProfile.Profile() if given.profile else None
    with tempfile.TemporaryDirectory(prefix="fraudstream-steps-") as directory:
        found = run(with_attributes(make_load(given.payments), given.not_plain), given.batch, Path(directory), profile)
    if profile is not None:
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)
    if given.record:
        record(described("steps", found))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
