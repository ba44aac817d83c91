"""The golden journals: a few hundred payments as they were journaled once, and the hash of all answers to them.

`python tests/golden` prints the hash; `python tests/golden --record` makes the journals anew, which is only right
together with a new `ENGINE_VERSION`.
"""

import json
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from stream.dataset import TOPIC_OF, Dataset, write_dataset
from stream.features import FEATURES_VERSION, MODEL_FEATURES
from stream.model.learner import Learner, Published
from stream.model.learner import Settings as LearnerSettings
from stream.replay.local import Local, build_runner
from stream.replay.log import LocalLog, local_topic_id
from stream.rules.policy import Policy
from stream.runner.partition import Reseek
from stream.simulate import SHORT_DELAY, SimulationSettings, inject, simulate
from stream.stages.control import model_record
from stream.stages.stage import Journal, Record
from stream.stages.state import MemoryStore
from stream.stages.wiring import Partitions
from stream.version import ENGINE_VERSION
from topics.control import encode_control
from topics.details import DecisionDetails
from topics.journal import decode_block
from topics.limits import Limits

DIRECTORY = Path(__file__).parent
RECORDED = DIRECTORY / "journals.msgpack.z"
SAID = DIRECTORY / "answers.json"
JOURNALS = ("account-journal", "terminal-journal")
PARTITIONS = Partitions(payments=2, account=2, terminal=2, decisions=2)
DAY_MS = 86_400_000
MODEL_FRAUDS_MIN = 3
SMALL = SimulationSettings(
    seed=4, accounts=14, terminals=10, days=24, payments_per_day=13, fraud_rate=0.08, label_delay=SHORT_DELAY
)


class Row(NamedTuple):
    """One record of a journal, in its partition."""

    topic: str
    partition: int
    at_ms: int
    value: bytes


# ---- read ----


def recorded() -> dict[tuple[str, int], list[Record]]:
    """The journals by topic and partition."""
    rows = msgspec.msgpack.decode(zlib.decompress(RECORDED.read_bytes()), type=list[Row])
    journals: dict[tuple[str, int], list[Record]] = {}
    for row in rows:
        records = journals.setdefault((row.topic, row.partition), [])
        records.append(Record(len(records), row.at_ms, None, row.value))
    return journals


def _tokens(topic: str, partition: int, key: bytes | None, value: bytes, headers: object) -> list[bytes]:
    """An output as bytes to hash; a block by its items, so that it does not matter how they were grouped."""
    if topic in (*JOURNALS, "examples"):
        items = decode_block(value).items
        return [msgspec.msgpack.encode((topic, partition, item)) for item in items]
    return [msgspec.msgpack.encode((topic, partition, key, value, headers))]


class Answered(NamedTuple):
    """`hashes`: SHA-256 per journal partition, of its outputs and of its state at the end."""

    answers: int
    outputs: dict[str, str]
    states: dict[str, str]


def answered(*, sizes: Sequence[int] = (1_000,), plain: bool = False, checkpoint_every: int = 0) -> Answered:
    """Run each recorded journal through its stage, from nothing, in batches of these sizes by turns.

    `checkpoint_every`: batches; 0: at the end only.
    """
    outputs: dict[str, str] = {}
    states: dict[str, str] = {}
    answers = 0
    for (topic, partition), records in sorted(recorded().items()):
        store = MemoryStore()
        runner = build_runner(Journal(topic, local_topic_id(topic), partition), store, PARTITIONS, plain=plain)
        hashes: dict[str, Any] = {}
        for turn in range(len(records)):
            sends = runner.step(records[runner.next_offset : runner.next_offset + sizes[turn % len(sizes)]])
            assert not isinstance(sends, Reseek)
            for send in sends:
                runner.acknowledged(send.generation)
                answers += send.topic == "decisions"
                to = hashes.setdefault(f"{send.topic}[{send.partition}]", sha256())
                for token in _tokens(send.topic, send.partition, send.key, send.value, send.headers):
                    to.update(token)
            if checkpoint_every and turn % checkpoint_every == 0:
                runner.write(runner.begin_checkpoint(), store.write)
        runner.write(runner.begin_checkpoint(), store.write)
        name = f"{topic}[{partition}]"
        outputs[name] = sha256(repr([(to, hashes[to].hexdigest()) for to in sorted(hashes)]).encode()).hexdigest()
        states[name] = sha256(msgspec.msgpack.encode(list(store.pairs()))).hexdigest()
    return Answered(answers, outputs, states)


def as_json(found: Answered) -> dict[str, object]:
    return {"engine": ENGINE_VERSION, "answers": found.answers, "outputs": found.outputs, "states": found.states}


# ---- record ----


def record() -> None:
    """Make the journals and their answers anew."""
    plain = _run(None)
    details = [
        msgspec.json.decode(r.value or b"", type=DecisionDetails)
        for partition in range(PARTITIONS.decisions)
        for r in plain.read("decision-details", partition, 0, 10**6)
    ]
    log = _run(_model([np.frombuffer(d.features, np.float32) for d in details]))
    rows = [
        Row(topic, partition, r.at_ms, r.value or b"")
        for topic in JOURNALS
        for partition in range(PARTITIONS.of(topic))
        for r in log.read(topic, partition, 0, 10**6)
    ]
    RECORDED.write_bytes(zlib.compress(msgspec.msgpack.encode(rows), 9))
    SAID.write_text(json.dumps(as_json(answered()), indent=1) + "\n")


def _model(rows: list[Any]) -> bytes:
    """A control record with a small model that has learned something."""
    learner = Learner(
        LearnerSettings(features=len(MODEL_FEATURES), features_version=FEATURES_VERSION, frauds_min=MODEL_FRAUDS_MIN)
    )
    for row in rows:
        learner.unlabelled(row)
    for number, row in enumerate(rows):
        learner.example(row, number % 5 == 0, 1.0, "golden", "chargeback")
    published = learner.tick(1)
    assert isinstance(published, Published), "enough payments for bins"
    return model_record(published.compiled, None)


def _control(kind: str, payload: object) -> bytes:
    return encode_control(kind=kind, by="golden", why="recorded", payload=payload)


def events(settings: SimulationSettings = SMALL) -> Iterator[tuple[str, bytes, int]]:
    """Topic, value and time (ms) of what a made world sends, with bad records and repeats."""
    world = simulate(settings)
    with tempfile.TemporaryDirectory() as directory:
        paths = write_dataset(directory, world.tables())
        events = Dataset(paths["payments"], paths["labels"], paths["updates"]).events(clock_every_ms=DAY_MS // 2)
        for injected in inject(events, bad_rate=0.08, repeat_rate=0.05, seed=4):
            yield TOPIC_OF[injected.event.kind], injected.event.value, injected.event.at_ms


def _run(model: bytes | None) -> LocalLog:
    log = LocalLog()
    local = Local(log, PARTITIONS)
    limits = Limits(maturity_ms=3 * DAY_MS, dedupe_horizon_ms=20 * DAY_MS, answer_ttl_ms=5 * DAY_MS)
    policy = Policy(mode="enforce", matured_frauds_min=1)
    for number, (topic, value, at_ms) in enumerate(events()):
        local.now_ms = max(local.now_ms, at_ms + 10)
        if number == 0:
            for kind, payload in (("settings", limits), ("policy", policy)):
                log.append("control", 0, _control(kind, payload), at_ms=local.now_ms)
        if number == 200 and model is not None:
            log.append("control", 0, model, at_ms=local.now_ms)
        partition = number % PARTITIONS.of(topic)
        log.append(topic, partition, value, at_ms=local.now_ms)
        if number % 7 == 0:
            local.pump()
        if number % 50 == 0:
            local.tick()
    local.pump()
    return log
