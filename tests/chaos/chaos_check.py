"""Is every answer what the log says? The recorded journals run again, off-line, in fresh stages, and are compared.

Compared are whole records: value, key, headers and partition of all that the stages put on decisions, details and dead
letters; every item that one stage sent to another's journal, whatever blocks it travelled in; and the state of each
partition as the workers left it on disk.
"""

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from hashlib import blake2b
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from confluent_kafka import Consumer, TopicPartition
from numpy.typing import NDArray

from stream.broker.topic_admin import describe_topics, id_bytes
from stream.replay.local import CHECKPOINT_EVERY, build_runner
from stream.runner.partition import META_KEY, Reseek, Send, read_meta
from stream.stages.stage import Journal, Record
from stream.stages.state import MemoryStore
from stream.stages.wiring import Partitions
from stream.worker.store import RESERVED, RocksStore
from topics.control import parse_control
from topics.journal import Block, Item, decode_block
from topics.refusals import Refusal
from topics.skips import Skips

ANSWERS = ("decisions", "decision-details", "dead-letters")
FOREIGN = ("payments", "updates", "labels")
JOURNALS = ("account-journal", "terminal-journal")
BATCH = 1_000
EXAMPLES_MAX = 10
PROCESSES = 2
Prints = NDArray[np.uint64]
Sender = tuple[bytes, int]  # topic id, partition


def print_of(*parts: object) -> int:
    """Of a whole record or item, for comparison: there are millions, and they come from several processes. 64 bits:
    beside two million right ones a wrong record looks right once in 10^13 times."""
    return int.from_bytes(blake2b(msgspec.msgpack.encode(parts), digest_size=8).digest(), "little")


def answer_print(topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Iterable[Any]) -> int:
    return print_of(topic, partition, key, value, sorted((name, content or b"") for name, content in headers))


def item_print(sender: Sender, to_partition: int, item: Item) -> int:
    return print_of(*sender, to_partition, item)


def processes(prepare: Callable[[], None] | None = None) -> ProcessPoolExecutor:
    """In which `verify` works. Each job has a process of its own, so that its memory goes back.

    `prepare`: a function of a module, to be run in each before anything else."""
    return ProcessPoolExecutor(PROCESSES, get_context("spawn"), prepare, max_tasks_per_child=1)


class Checked(msgspec.Struct, kw_only=True):
    """`records`: of the journals, run again. `answers`: distinct ones. All others must be 0:

    `different`: on the topics, and not what the journals say; `absent`: what the journals say, and not on the topics;
    `items_different`, `items_absent`: the same of items between stages; `intake_missing`: foreign records that are in
    no account journal; `states_different`: stores that are not the state of the run off-line
    at the same offset; `states_missing`: partitions of which no worker has a state.
    """

    records: int = 0
    answers: int = 0
    copies: int = 0
    different: int = 0
    absent: int = 0
    items: int = 0
    item_copies: int = 0
    items_different: int = 0
    items_absent: int = 0
    intake_missing: int = 0
    states: int = 0
    states_different: int = 0
    states_missing: int = 0
    examples: list[str] = msgspec.field(default_factory=list[str])

    @property
    def wrong(self) -> int:
        return (
            self.different
            + self.absent
            + self.items_different
            + self.items_absent
            + self.intake_missing
            + self.states_different
            + self.states_missing
        )


def read_topic(client: Mapping[str, Any], name: str) -> dict[int, list[Record]]:
    """All records of a topic, by partition."""
    found: dict[int, list[Record]] = defaultdict(list)
    for partition, record in read_records(client, name):
        found[partition].append(record)
    return {partition: found[partition] for partition in partitions_of(client, name)}


def partitions_of(client: Mapping[str, Any], name: str) -> list[int]:
    """The partitions of a topic."""
    return list(range(len(describe_topics(client, [name])[name].partitions)))


def read_records(client: Mapping[str, Any], name: str, only: int | None = None) -> Iterator[tuple[int, Record]]:
    """All records of a topic, or of one partition, each with its partition, one after the other: a plain consumer."""
    consumer = Consumer(
        {
            **client,
            "group.id": "chaos-check",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
        }
    )
    try:
        for partition in sorted(consumer.list_topics(name, timeout=30).topics[name].partitions):
            if only not in (None, partition):
                continue
            low, high = consumer.get_watermark_offsets(TopicPartition(name, partition), timeout=30)
            if high <= low:
                continue
            consumer.assign([TopicPartition(name, partition, low)])
            at = low
            while at < high:
                first = consumer.poll(30.0)  # `consume` with a time-out would wait for all of its records
                assert first is not None, f"{name}[{partition}]: nothing for 30 s at {at} of {high}"
                for message in [first, *consumer.consume(5_000, 0)]:
                    at = (message.offset() or 0) + 1
                    if message.error() is not None:
                        at = message.offset() or at  # the end of the partition
                        continue
                    yield (
                        partition,
                        Record(
                            message.offset() or 0,
                            message.timestamp()[1],
                            message.key(),
                            message.value(),
                            tuple(message.headers() or ()),
                        ),
                    )
            consumer.unassign()
    finally:
        consumer.close()


class Rerun(msgspec.Struct, kw_only=True):
    """A journal's partition to be run again. `kept`: what stood in it before somebody deleted it, under `topic_id`;
    what the topic holds now, with the id `live_id`, follows on it. `explain`: prints to be told of as examples."""

    client: dict[str, Any]
    name: str
    journal: Journal
    live_id: bytes
    kept: list[Record]
    skips: set[int]
    partitions: Partitions
    states: list[Path] | None
    sender_id: bytes  # of the account journal, whose items come to terminal journals
    explain: set[int] = msgspec.field(default_factory=set[int])


class Ran(msgspec.Struct, kw_only=True):
    """What a journal's partition says: prints of answers and of items that it sent, and of those that came to it.
    `intake`: offsets by sender. `checked`: what this partition adds to the whole."""

    checked: Checked
    said: Prints
    sent: Prints
    arrived: Prints
    intake: dict[Sender, NDArray[np.int64]]


def run_again(job: Rerun) -> Ran:
    """In fresh stages; the state is compared with the furthest that a worker has left."""
    topic, topic_id, partition = job.journal
    checked = Checked()
    said, sent, arrived = array("Q"), array("Q"), array("Q")
    intake: dict[Sender, array[int]] = defaultdict(lambda: array("q"))

    def arriving(records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            block = decode_block(record.value or b"")
            sender = (block.sender, block.partition)
            if topic == "account-journal":
                intake[sender].extend([item.offset for item in block.items])
            elif block.sender == job.sender_id:
                _arrive(job, checked, sender, block, record.offset, arrived)
            checked.records += 1
            yield record

    kept = job.kept
    live = (record for _, record in read_records(job.client, job.name, partition))
    if topic_id == job.live_id:
        after = kept[-1].offset if kept else -1
        records = arriving(chain(kept, (record for record in live if record.offset > after)))
    else:
        records = arriving(kept)
    store = MemoryStore()
    runner = build_runner(job.journal, store, job.partitions)
    runner.skips = job.skips
    best = None if job.states is None else furthest(topic, partition, job.states)
    for batch in _batches(records, cut=-1 if best is None else best[0]):
        sends = runner.step(batch)
        assert not isinstance(sends, Reseek)
        for send in sends:
            runner.acknowledged(send.generation)
            _note(job, checked, send, said, sent)
        at_best = best is not None and runner.next_offset == best[0]
        if at_best or runner.state.changed >= CHECKPOINT_EVERY:
            # Not only at the end: scans go through all that was changed, and deleted, since the last one.
            runner.write(runner.begin_checkpoint(), store.write)
        if best is not None and at_best:
            _compare_state(checked, f"{topic}[{partition}] at {best[0]}", store, best[1])
            best = (best[0], {})
    if topic_id != job.live_id:
        for _ in arriving(live):
            pass
    checked.states_missing += job.states is not None and best is None
    return Ran(
        checked=checked,
        said=_array(said),
        sent=_array(sent),
        arrived=_array(arrived),
        intake={sender: np.unique(np.array(offsets, np.int64)) for sender, offsets in intake.items()},
    )


def _array(prints: "array[int]") -> Prints:
    return np.frombuffer(prints.tobytes(), np.uint64)


def _arrive(job: Rerun, checked: Checked, sender: Sender, block: Block, offset: int, arrived: "array[int]") -> None:
    for item in block.items:
        mark = item_print(sender, job.journal.partition, item)
        if mark in job.explain:
            _example(checked, f"{job.journal.topic}[{job.journal.partition}]@{offset}: {item!r}")
        arrived.append(mark)


def _note(job: Rerun, checked: Checked, send: Send, said: "array[int]", sent: "array[int]") -> None:
    sender = (job.journal.topic_id, job.journal.partition)
    if send.topic in ANSWERS:
        mark = answer_print(send.topic, send.partition, send.key, send.value, send.headers)
        if mark in job.explain:
            _example(checked, f"in the log, not on the topic: {send.topic}[{send.partition}] {send.headers}")
        said.append(mark)
    elif send.topic == "terminal-journal":
        for item in decode_block(send.value).items:
            mark = item_print(sender, send.partition, item)
            if mark in job.explain:
                _example(checked, f"never came to terminal-journal[{send.partition}]: {item!r}")
            sent.append(mark)


def read_answers(client: Mapping[str, Any], topic: str, name: str, explain: set[int]) -> tuple[Prints, list[str]]:
    """Prints of all copies on a topic of answers; examples of those that are asked for."""
    found, examples = array("Q"), Checked()
    for partition, record in read_records(client, name):
        mark = answer_print(topic, partition, record.key, record.value, record.headers)
        if mark in explain:
            _example(examples, f"on the topic, not in the log: {topic}[{partition}] {record!r}")
        found.append(mark)
    return _array(found), examples.examples


def read_offsets(client: Mapping[str, Any], name: str) -> dict[int, NDArray[np.int64]]:
    """Of the records of a topic, by partition."""
    found: dict[int, array[int]] = defaultdict(lambda: array("q"))
    for partition, record in read_records(client, name):
        found[partition].append(record.offset)
    return {partition: np.array(offsets, np.int64) for partition, offsets in found.items()}


def verify(
    pool: Executor,
    client: Mapping[str, Any],
    prefix: str,
    states: list[Path] | None = None,
    saved: Mapping[tuple[str, int], tuple[bytes, list[Record]]] | None = None,
) -> Checked:
    """`pool`: see `processes`. `states`: state directories of workers that have ended in order. `saved`: what stood
    in journals' partitions (topic id, records) before somebody deleted it; the records that are still there, or came
    later, follow on it."""
    names = {topic: prefix + topic for topic in (*JOURNALS, *ANSWERS, *FOREIGN, "control")}
    described = describe_topics(client, list(names.values()))
    ids = {topic: id_bytes(described[name].topic_id) for topic, name in names.items()}
    count = {topic: len(described[name].partitions) for topic, name in names.items()}
    partitions = Partitions(
        payments=count["payments"],
        account=count["account-journal"],
        terminal=count["terminal-journal"],
        decisions=min(count["decisions"], count["decision-details"]),
    )
    skips = _skips(read_topic(client, names["control"])[0])
    jobs: list[Rerun] = []
    for topic in JOURNALS:
        for partition in range(count[topic]):
            topic_id, kept = (saved or {}).get((topic, partition), (ids[topic], []))
            jobs.append(
                Rerun(
                    client=dict(client),
                    name=names[topic],
                    journal=Journal(topic, topic_id, partition),
                    live_id=ids[topic],
                    kept=kept,
                    skips=skips.of(ids[topic], partition),
                    partitions=partitions,
                    states=states,
                    sender_id=ids["account-journal"],
                )
            )
    running = [pool.submit(run_again, job) for job in jobs]
    reading = [pool.submit(read_answers, client, topic, names[topic], set[int]()) for topic in ANSWERS]
    foreign = {topic: pool.submit(read_offsets, client, names[topic]) for topic in FOREIGN}
    ran = [future.result() for future in running]
    checked = _together(one.checked for one in ran)
    said = np.unique(np.concatenate([one.said for one in ran]))
    sent = np.unique(np.concatenate([one.sent for one in ran]))
    copies = np.concatenate([future.result()[0] for future in reading])
    answers = np.unique(copies)
    came = np.concatenate([one.arrived for one in ran])
    arrived = np.unique(came)
    different, absent = _without(answers, said), _without(said, answers)
    items_different, items_absent = _without(arrived, sent), _without(sent, arrived)
    checked.answers, checked.copies = len(said), len(copies) - len(answers)
    checked.different, checked.absent = len(different), len(absent)
    checked.items, checked.item_copies = len(sent), len(came) - len(arrived)
    checked.items_different, checked.items_absent = len(items_different), len(items_absent)
    for topic, future in foreign.items():
        _look_for_intake(checked, topic, (ids[topic], future.result()), ran)
    if different.size:
        wrong = set(different[:3].tolist())
        for topic in ANSWERS:
            checked.examples += pool.submit(read_answers, client, topic, names[topic], wrong).result()[1]
    wrong = {mark for found in (absent, items_different, items_absent) for mark in found[:3].tolist()}
    if wrong:
        again = [pool.submit(run_again, msgspec.structs.replace(job, explain=wrong)) for job in jobs]
        checked.examples += [line for future in again for line in future.result().checked.examples]
    return checked


def _together(parts: Iterable[Checked]) -> Checked:
    whole = Checked()
    for part in parts:
        for name in part.__struct_fields__:
            setattr(whole, name, getattr(whole, name) + getattr(part, name))
    return whole


def _without(these: Prints, those: Prints) -> Prints:
    """Both are sorted, and without repetition."""
    return np.setdiff1d(these, those, assume_unique=True)


def _skips(control: list[Record]) -> Skips:
    found = Skips()
    for record in control:
        parsed = parse_control(record.value)
        if not isinstance(parsed, Refusal):
            found.take(parsed)
    return found


def _look_for_intake(
    checked: Checked, topic: str, stands: tuple[bytes, dict[int, NDArray[np.int64]]], ran: list[Ran]
) -> None:
    """Each foreign record is in an account journal."""
    topic_id, by_partition = stands
    for partition, offsets in by_partition.items():
        there = [one.intake[topic_id, partition] for one in ran if (topic_id, partition) in one.intake]
        lost = np.setdiff1d(offsets, np.concatenate(there) if there else np.empty(0, np.int64))
        checked.intake_missing += len(lost)
        for offset in lost[:3].tolist():
            _example(checked, f"{topic}[{partition}]@{offset} is in no account journal")


def _batches(records: Iterable[Record], *, cut: int) -> Iterator[list[Record]]:
    """In pieces, one of which ends before the offset `cut`."""
    batch: list[Record] = []
    for record in records:
        if batch and (len(batch) == BATCH or record.offset == cut):
            yield batch
            batch = []
        batch.append(record)
    if batch:
        yield batch


def furthest(topic: str, partition: int, states: list[Path]) -> tuple[int, dict[bytes, bytes]] | None:
    """Next offset and content of the copy that is furthest: others were left behind when the partition moved."""
    best: tuple[int, dict[bytes, bytes]] | None = None
    for state in states:
        directory = state / topic / str(partition)
        if not directory.is_dir():
            continue
        with RocksStore.open(directory) as store:
            pairs = dict(store.scan(b"", RESERVED, 100_000_000))
        meta = read_meta(pairs.get(META_KEY))
        if meta is not None and (best is None or meta.next_offset > best[0]):
            best = (meta.next_offset, pairs)
    return best


def _compare_state(checked: Checked, name: str, wanted: MemoryStore, found: dict[bytes, bytes]) -> None:
    """A worker's state against that of the run off-line at the same offset."""
    expected = dict(wanted.pairs())
    checked.states += 1
    if found != expected:
        checked.states_different += 1
        keys = [key for key in {*found, *expected} if found.get(key) != expected.get(key)]
        _example(
            checked,
            f"{name}: {len(keys)} keys differ of {len(expected)}: "
            + "; ".join(f"{key!r}: {found.get(key)!r} / {expected.get(key)!r}"[:300] for key in sorted(keys)[:3]),
        )


def _example(checked: Checked, text: str) -> None:
    if len(checked.examples) < EXAMPLES_MAX:
        checked.examples.append(text[:600])
