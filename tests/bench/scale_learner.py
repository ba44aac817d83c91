"""`learner`: examples a second through the learner's runner; and, live, how soon a version decides after its tick.

The examples are those that the stages make of payments and labels. Every 5,000 of them the learner's whole state is
written and a tick is given; the dearest tick counts as if one came every 100,000 examples: every five seconds, at the
target's own rate.
"""

import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from load import MATURITY_MS, make_load
from ours import PARTITIONS
from scale_load import Stream
from scale_run import Running, bench, running
from scale_verdict import Row, say, verdict
from steps import Line

from stream import collector
from stream.broker.offsets import watermarks
from topics.control import encode_control
from topics.journal import Example, Tick, decode_block, tick_block
from topics.limits import LIMITS_DEFAULT

PER_S = 20_000.0
ACTIVE_S = 5.0
TICKS_EVERY = 100_000  # examples
CHECKPOINT_EVERY = 5_000  # examples: a quarter of a second at the target
BLOCKS_A_ROUND = 16
LIVE_RATE = 500.0
Values = Sequence[tuple[bytes | None, bytes, Sequence[tuple[str, bytes]]]]


class Collecting(Line):
    """Keeps the examples that the stages make, instead of learning from them."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.examples: list[bytes] = []

    def feed(self, topic: str, values: Values) -> None:
        if topic == "examples":
            self.examples += [value for _, value, _ in values]
        else:
            super().feed(topic, values)


def made_examples(payments: int, directory: Path) -> list[bytes]:
    line = Collecting(directory)
    limits = msgspec.structs.replace(LIMITS_DEFAULT, maturity_ms=MATURITY_MS)
    line.feed("control", [(None, encode_control(kind="settings", by="bench", why="measure", payload=limits), ())])
    load = make_load(payments)
    labels = iter(load.labels)
    due = next(labels, None)
    for first in range(0, payments, 500):
        line.feed("payments", [(key, value, ()) for key, value in load.payments[first : first + 500]])
        while due is not None and due.after <= first + 500:
            line.feed("labels", [(due.key, due.value, ())])
            due = next(labels, None)
        if first % 10_000 == 0:
            line.checkpoint()
    return line.examples


def throughput(payments: int) -> dict[str, Any]:
    """Examples a CPU second of one thread: decoding, learning, keeping, checkpoints and ticks."""
    with tempfile.TemporaryDirectory(prefix="fraudstream-learner-") as directory:
        blocks = made_examples(payments, Path(directory) / "made")
        items = [item for block in blocks for item in decode_block(block).items]
        examples = sum(isinstance(item, Example) for item in items)
        say(f"{examples:,} examples in {len(blocks):,} blocks of {payments:,} payments")
        line = Line(Path(directory) / "learned")
        collector.settle()
        warm = len(blocks) // 5 // BLOCKS_A_ROUND * BLOCKS_A_ROUND
        counted = since_checkpoint = ticks = 0
        tick_s = 0.0
        for first in range(0, len(blocks), BLOCKS_A_ROUND):
            if first == warm:
                line.cpu_s.clear()
            some = blocks[first : first + BLOCKS_A_ROUND]
            line.feed("examples", [(None, block, ()) for block in some])
            count = sum(len(decode_block(block).items) for block in some)
            counted, since_checkpoint = counted + count * (first >= warm), since_checkpoint + count
            if since_checkpoint >= CHECKPOINT_EVERY or first + BLOCKS_A_ROUND >= len(blocks):
                line.checkpoint()
                since_checkpoint = 0
                before_s = line.cpu_s["examples"]
                line.feed("examples", [(None, tick_block(0), ())])
                spent_s = line.cpu_s["examples"] - before_s
                line.cpu_s["examples"] -= spent_s
                ticks, tick_s = ticks + 1, max(tick_s, spent_s)
        cpu_us = {name: s / counted * 1e6 for name, s in line.cpu_s.items() if name.startswith("examples")}
        size = len(line.runners["examples"].state.get(b"Nlearner") or b"")
    cpu_us["ticks"] = tick_s / TICKS_EVERY * 1e6
    return {
        "examples": counted,
        "per_s": round(1e6 / sum(cpu_us.values())),
        "cpu_us_per_example": {name: round(us, 2) for name, us in cpu_us.items()},
        "tick_ms_most": round(tick_s * 1e3, 1),
        "ticks": ticks,
        "state_bytes": size,
    }


class _Versions(msgspec.Struct):
    model: str | None = None


class _Answer(msgspec.Struct):
    versions: _Versions


class _Payload(msgspec.Struct):
    version: str = ""


class _Control(msgspec.Struct):
    kind: str
    payload: _Payload


def _read(bootstrap: str, topic: str, partitions: int) -> list[tuple[int, int, bytes]]:
    """(broker's time in ms, offset, value) of all that stands in a topic."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bench-reader", "enable.auto.commit": False})
    left = sum(high - low for low, high in (watermarks(consumer, topic, p) for p in range(partitions)))
    consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in range(partitions)])
    found: list[tuple[int, int, bytes]] = []
    end_s = time.monotonic() + 60
    while len(found) < left and time.monotonic() < end_s:
        found += [
            (message.timestamp()[1], message.offset() or 0, message.value() or b"")
            for message in consumer.consume(5_000, 0.5)
            if message.error() is None
        ]
    consumer.close()
    return found


def _flow(found: Running, seconds: float) -> None:
    began_s, sent = time.monotonic(), 0
    while (at_s := time.monotonic() - began_s) < seconds:
        due = int(at_s * LIVE_RATE) - sent
        if due:
            found.feeder.send(due)
            sent += due
            found.feeder.labels(found.feeder.sent)
        time.sleep(0.02)


def activation(seconds: float, tick_s: float) -> dict[str, Any]:
    """Seconds from a tick's broker timestamp to that of the first decision under the version it made."""
    stream = Stream(seed=50, accounts=50_000, ms_between=60_000.0)
    with bench() as place, running(place, stream, tick_s=tick_s) as found:
        found.feeder.send(12_000)  # eight days of event time: payments mature
        found.await_answers(600.0)
        flow = threading.Thread(target=_flow, args=(found, seconds), daemon=True)
        flow.start()
        flow.join(seconds + 60)
        found.await_answers(600.0)
        prefix = found.deployment.settings.prefix
        decisions = _read(place.bootstrap, prefix + "decisions", PARTITIONS)
        examples = _read(place.bootstrap, prefix + "examples", 1)
        control = _read(place.bootstrap, prefix + "control", 1)
    ticks = [at for at, _, value in examples if any(isinstance(item, Tick) for item in decode_block(value).items)]
    published: dict[str, int] = {}
    for at, _, value in control:
        word = msgspec.json.decode(value, type=_Control) if b'"kind":"model"' in value else None
        if word is not None:
            published.setdefault(word.payload.version, at)
    decode = msgspec.json.Decoder(_Answer).decode
    first: dict[str, int] = {}
    for at, _, value in decisions:
        version = decode(value).versions.model
        if version is not None:
            first[version] = min(at, first.get(version, at))
    found_s = [
        (first[version] - max((tick for tick in ticks if tick <= at), default=at)) / 1000
        for version, at in published.items()
        if version in first
    ]
    said = [round(s, 2) for s in found_s]
    say(f"{len(ticks)} ticks, {len(published)} versions, first decisions after {said} s")
    return {"ticks": len(ticks), "versions": len(published), "decided_under": len(found_s), "seconds": said}


def learner(*, short: bool) -> dict[str, Any]:
    speed = throughput(3_000 if short else 60_000)
    live = activation(8.0, 2.0) if short else activation(60.0, 5.0)
    slowest = max(live["seconds"], default=float("inf"))
    rows = [
        Row("learner, one core: examples", speed["per_s"], PER_S, "/s", at_least=True),
        Row("a version decides after its tick (the slowest)", slowest, ACTIVE_S, "s"),
    ]
    return verdict(rows, throughput=speed, activation=live)
