"""Every decoder against damaged and hostile bytes: a named end or a value, quickly, in bounded memory.

What is damaged is real: payments, labels, updates, control records, blocks of a journal, manifests, a state's meta
record, files of journals. Each is cut, flipped, spliced, or given lengths and depths that lie.
"""

import hashlib
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from stage_bench import NOW_MS, Bench, control, limits, payment
from test_markers import marker, model
from test_terminal_stage import clocks, judged, placed, repeat

from stream.features import MODEL_FEATURES
from stream.model.compiled import Compiled, Corrupt
from stream.model.learner import Learner
from stream.replay.journal_files import Head, JournalDamaged, JournalReader, JournalWriter
from stream.rules.default import DEFAULT_RULES
from stream.rules.policy import DEFAULT_POLICY
from stream.runner.errors import StepFailed, Unreadable
from stream.runner.partition import META_KEY, Meta, PartitionRunner, commit_metadata, suppress_below
from stream.stages.control import ControlStage
from stream.stages.learn import fresh_learner
from stream.stages.stage import Journal, Record, Step
from stream.stages.state import MemoryStore, State
from stream.stages.wiring import Partitions, build_stage
from stream.worker.snapshots import Manifest, SnapshotFile, SnapshotTorn, decode_manifest
from topics.codec import Parsed, ParsedLabel, ParsedUpdate, parse_label, parse_payment, parse_update
from topics.control import Engine, Rates, Skip
from topics.journal import FIRST_PREV, Block, Item, Marker, encode_block
from topics.limits import LIMITS_DEFAULT
from topics.refusals import Refusal

SECONDS_MAX = 5.0
MEMORY_FACTOR = 200  # a byte of JSON may become an object
MEMORY_FLOOR = 16 << 20
SENDER = b"s" * 16

JSON = {
    "payment": msgspec.json.encode(
        {
            "payment_id": "p1",
            "event_time": NOW_MS,
            "account_id": "a1",
            "amount": 1_000,
            "currency": "EUR",
            "terminal_id": "t1",
            "latitude": 1.5,
            "attributes": {"a": 1, "b": "x"},
            "references": {"rrn": "123456789012"},
        }
    ),
    "label": msgspec.json.encode({"kind": "chargeback", "payment_id": "p1", "account_id": "a1", "observed_at": NOW_MS}),
    "update": msgspec.json.encode({"kind": "captured", "payment_id": "p1", "account_id": "a1", "observed_at": NOW_MS}),
}
CONTROLS: dict[str, Marker] = {
    "model": marker(model(1)),
    "rules": control("rules", DEFAULT_RULES),
    "policy": control("policy", DEFAULT_POLICY),
    "settings": limits(maturity_ms=1_000_000),
    "rates": control("rates", Rates(base="EUR", nano_base_per_minor={"USD": 9 * 10**8})),
    "engine": control("engine", Engine(engine=1)),
    "skip": control("skip", Skip(topic_id="00" * 16, partition=0, offset=7)),
}


def block(*items: Item) -> bytes:
    placed_at = [msgspec.structs.replace(item, offset=i, n=0) for i, item in enumerate(items)]
    return encode_block(Block(sender=SENDER, partition=0, prev=FIRST_PREV, items=placed_at))


BLOCKS = {
    "account-journal": block(payment(1), payment(2, value=b"{}"), CONTROLS["settings"], payment(1)),
    "terminal-journal": block(placed(1), judged(1, True), repeat(1, NOW_MS), clocks(NOW_MS)[0], CONTROLS["model"]),
}
MANIFEST = msgspec.json.encode(
    Manifest(
        layout=1,
        stage="account",
        partition=3,
        topic_id="00" * 16,
        offset=9,
        engine="1",
        created_ms=1,
        files=[SnapshotFile(name="000001.sst", size=3, sha256="0" * 64), SnapshotFile(
            name="CURRENT", size=1, sha256="1" * 64, inline=b"x")],
    )
)  # fmt: skip
LIES = [  # msgpack lengths of 4 GB, deep nesting, broken UTF-8, numbers beyond their type
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\x91" * 2_000,
    b"[" * 5_000,
    b'{"a":' * 5_000,
    b"\xff\xfe",
    b'"\\ud800"',
    b"\xa4\xff\xff\xff\xff",
    b"9" * 400,
    b"1e999",
    b"-1",
    b"null",
    b"NaN",
    b"\x00",
]


@st.composite
def damaged(draw: st.DrawFn, sound: bytes) -> bytes:
    """`sound`, damaged one to four times; or bytes that were never any."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=300))
    body = bytearray(sound)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(body) - 1)))
        kind = draw(st.integers(0, 5))
        if kind == 0 and body:
            body[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == 1:
            del body[at:]
        elif kind == 2:
            body[at:at] = draw(st.sampled_from(LIES))
        elif kind == 3:
            until = draw(st.integers(at, min(len(body), at + 40)))
            body[at:until] = draw(st.sampled_from(LIES))
        elif kind == 4:
            until = draw(st.integers(at, min(len(body), at + 200)))
            body[at:at] = body[at:until] * draw(st.integers(1, 20))
        else:
            body[at : at + 1] = draw(st.binary(max_size=3))
    return bytes(body)


def bounded(call: Callable[[], Any], given_bytes: int) -> Any:
    """What `call` returns, if it took neither long nor much memory."""
    tracemalloc.start()
    began_s = time.monotonic()
    try:
        return call()
    finally:
        seconds = time.monotonic() - began_s
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert seconds < SECONDS_MAX, f"{seconds:.1f} s for {given_bytes} bytes"
        assert peak < MEMORY_FLOOR + MEMORY_FACTOR * given_bytes, f"{peak:,} bytes of memory for {given_bytes}"


@pytest.fixture(scope="module", autouse=True)
def _kernels_are_compiled() -> None:
    model(1).score(np.zeros((1, len(MODEL_FEATURES)), np.float32))
    Bench("terminal").feed(placed(1))


fuzzed = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("kind", JSON)
@fuzzed
@given(st.data())
def test_foreign_records_are_parsed_or_refused(kind: str, data: st.DataObject) -> None:
    raw = data.draw(damaged(JSON[kind]))
    for parse in (parse_payment, parse_label, parse_update):
        found = bounded(lambda parse=parse: parse(raw, LIMITS_DEFAULT), len(raw))
        assert isinstance(found, Parsed | ParsedLabel | ParsedUpdate | Refusal)


@pytest.mark.parametrize("kind", JSON)
@fuzzed
@given(st.data())
def test_the_account_stage_takes_any_foreign_bytes(kind: str, data: st.DataObject) -> None:
    raw = data.draw(damaged(JSON[kind]))
    source = list(JSON).index(kind)
    item = msgspec.structs.replace(payment(1, value=raw), source={0: 0, 1: 2, 2: 1}[source])
    out = bounded(lambda: Bench("account").feed(item), len(raw))
    if kind == "payment":
        assert len(out.items) + len(out.values("decisions")) >= 1  # placed, or answered `refused`


def control_stage() -> ControlStage:
    destinations = {"account-journal": 1, "terminal-journal": 1, "examples": 1}
    return ControlStage(State(MemoryStore(), scanned=b"P"), destinations=destinations)


class Taken:
    """An outbox that keeps the markers."""

    def __init__(self) -> None:
        self.markers: list[tuple[str, Marker]] = []

    def journal(self, step: Step, topic: str, partition: int, item: Any) -> None:
        self.markers.append((topic, item))

    def records(self, *_: Any) -> None:
        raise AssertionError("control goes to journals only")


@pytest.mark.parametrize("kind", CONTROLS)
@fuzzed
@given(st.data())
def test_control_passes_on_only_what_stops_no_stage(kind: str, data: st.DataObject) -> None:
    """But for a model whose hash is not that of its content: that one must stop the stage that would score with it."""
    raw = data.draw(damaged(CONTROLS[kind].body))
    out = Taken()
    step = Step(0, 0, NOW_MS, (SENDER, 0), Record(0, NOW_MS, None, raw))
    bounded(lambda: control_stage().apply([step], out), len(raw))
    for topic, passed in out.markers:
        if topic == "examples":
            continue
        bench = Bench("account" if topic == "account-journal" else "terminal")
        try:
            bounded(lambda bench=bench, passed=passed: bench.feed(passed), len(raw))
        except Corrupt:
            assert passed.kind == "model"
            continue
        bench.again()  # what was taken can be read back


@pytest.mark.parametrize("topic", BLOCKS)
@fuzzed
@example(data=None)
@given(data=st.data())
def test_a_damaged_block_is_applied_or_stops_its_partition_by_name(topic: str, data: st.DataObject | None) -> None:
    raw = BLOCKS[topic] if data is None else data.draw(damaged(BLOCKS[topic]))
    journal = Journal(topic, b"j" * 16, 0)
    state = State(MemoryStore(), scanned=b"P")
    runner = PartitionRunner(journal, build_stage(journal, state, Partitions(), plain=True), state, start_offset=0)
    sends: Any = []
    try:
        sends = bounded(lambda: runner.step([Record(0, NOW_MS, None, raw)]), len(raw))
    except (Unreadable, StepFailed) as error:
        stopped = str(error)
    else:
        stopped = ""
    assert not stopped or f"{topic}[0]@0" in stopped
    assert data is not None or (sends and not stopped), f"an undamaged block is applied: {stopped}"


@fuzzed
@given(damaged(MANIFEST))
def test_a_damaged_manifest_is_torn_or_whole(raw: bytes) -> None:
    try:
        found = bounded(lambda: decode_manifest(raw, hashlib.sha256(raw).hexdigest(), "account", 3), len(raw))
    except SnapshotTorn:
        return
    assert all("/" not in file.name and not file.name.startswith(".") for file in found.files)


META = msgspec.msgpack.encode(Meta(1, SENDER, 0, 9, [(SENDER, 0, 1, 2)], [("terminal-journal", 0, 1, 2)]))


@fuzzed
@given(damaged(META))
def test_a_damaged_offset_of_a_state_is_corrupt_or_an_offset(raw: bytes) -> None:
    from stream.worker.host import Host
    from stream.worker.store import StoreCorrupt

    class Store:
        directory = Path("state")

        def get_many(self, keys: list[bytes]) -> list[bytes | None]:
            assert keys == [META_KEY]
            return [raw]

    try:
        found = bounded(lambda: Host._next_offset(Store()), len(raw))  # pyright: ignore
    except StoreCorrupt:
        return
    assert isinstance(found, int)


@fuzzed
@given(damaged(model(1).encode()))
def test_a_damaged_model_is_corrupt_or_itself(raw: bytes) -> None:
    try:
        found = bounded(lambda: Compiled.decode(raw), len(raw))
    except Corrupt:
        return
    assert msgspec.structs.replace(found, frauds=0) == msgspec.structs.replace(model(1), frauds=0)


LEARNER = fresh_learner().to_bytes()


@settings(fuzzed, max_examples=50)
@given(damaged(LEARNER))
def test_a_damaged_learner_is_named(raw: bytes) -> None:
    try:
        bounded(lambda: Learner.from_bytes(raw), len(raw))
    except (msgspec.MsgspecError, ValueError, Corrupt):
        return


@settings(fuzzed, max_examples=100)
@given(damaged(b"\x01\x02\x03"), st.integers(0, 2**63))
def test_a_commits_metadata_suppresses_on_our_own_word_only(raw: bytes, offset: int) -> None:
    text = raw.decode("latin-1")
    below = suppress_below(SENDER, offset, text)
    assert below == (offset if text == commit_metadata(SENDER, offset) else 0)


@settings(fuzzed, max_examples=100)
@given(data=st.data())
def test_a_damaged_file_of_a_journal_is_refused_or_read(tmp_path_factory: Any, data: st.DataObject) -> None:
    directory = tmp_path_factory.mktemp("journal")
    head = Head(topic="control", topic_id=SENDER, partition=0, partitions=1, engine=1)
    with JournalWriter(directory, head) as writer:
        writer.add([Record(i, NOW_MS, b"k", JSON["payment"], (("h", b"v"),)) for i in range(20)])
    sound = writer.path.read_bytes()
    raw = data.draw(damaged(sound))
    writer.path.write_bytes(raw)
    try:
        read = bounded(lambda: list(JournalReader(writer.path).records()), len(sound) + 20_000_000 // MEMORY_FACTOR)
    except JournalDamaged:
        return
    assert len(read) == 20


def test_the_undamaged_are_taken() -> None:
    """Else a fuzzer would only ever see refusals."""
    assert isinstance(parse_payment(JSON["payment"], LIMITS_DEFAULT), Parsed)
    assert isinstance(parse_label(JSON["label"], LIMITS_DEFAULT), ParsedLabel)
    assert isinstance(parse_update(JSON["update"], LIMITS_DEFAULT), ParsedUpdate)
    for kind, sound in CONTROLS.items():
        out = Taken()
        control_stage().apply([Step(0, 0, NOW_MS, (SENDER, 0), Record(0, NOW_MS, None, sound.body))], out)
        assert bool(out.markers) == (kind != "skip"), kind
    assert decode_manifest(MANIFEST, hashlib.sha256(MANIFEST).hexdigest(), "account", 3).offset == 9
    assert Learner.from_bytes(LEARNER)
