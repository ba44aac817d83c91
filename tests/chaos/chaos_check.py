"""Is every answer what the log says? The recorded journals run again, off-line, in fresh stages, and are compared.

Compared are whole records: value, key, headers and partition of all that the stages put on decisions, details and dead
letters; every item that one stage sent to another's journal, whatever blocks it travelled in; and the state of each
partition as the workers left it on disk.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import Consumer, TopicPartition

from stream.broker.topic_admin import describe_topics, id_bytes
from stream.replay.local import CHECKPOINT_EVERY, build_runner
from stream.runner.partition import META_KEY, Reseek, Send, read_meta
from stream.stages.stage import Journal, Record
from stream.stages.state import MemoryStore
from stream.stages.wiring import Partitions
from stream.worker.store import RESERVED, RocksStore
from topics.control import parse_control
from topics.journal import decode_block
from topics.refusals import Refusal
from topics.skips import Skips

ANSWERS = ("decisions", "decision-details", "dead-letters")
JOURNALS = ("account-journal", "terminal-journal")
BATCH = 1_000
Print = int
Said = tuple[str, int, tuple[tuple[str, bytes], ...]]  # topic, partition, headers of an answer


def print_of(*parts: Hashable) -> Print:
    """Of a whole record or item, for comparison within this process: there are millions. 64 bits: beside two million
    right ones a wrong record looks right once in 10^13 times."""
    return hash(parts)


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


def read_records(client: Mapping[str, Any], name: str) -> Iterator[tuple[int, Record]]:
    """All records of a topic, each with its partition, partition by partition: a plain consumer."""
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


def verify(
    client: Mapping[str, Any],
    prefix: str,
    states: list[Path] | None = None,
    saved: Mapping[tuple[str, int], tuple[bytes, list[Record]]] | None = None,
) -> Checked:
    """`states`: state directories of workers that have ended in order. `saved`: what stood in journals' partitions
    (topic id, records) before somebody deleted it; the records that are still there, or came later, follow on it."""
    names = {topic: prefix + topic for topic in (*JOURNALS, *ANSWERS, "payments", "updates", "labels", "control")}
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
    checked = Checked()
    said: dict[Print, Said] = {}
    items: dict[tuple[str, int, bytes, int], dict[tuple[int, int], Print]] = defaultdict(dict)
    journals = {topic: read_topic(client, names[topic]) for topic in JOURNALS}
    for topic in JOURNALS:
        for partition, live in journals[topic].items():
            topic_id, records = ids[topic], live
            if saved is not None and (topic, partition) in saved:
                topic_id, kept = saved[topic, partition]
                same = topic_id == ids[topic]
                records = [*kept, *(record for record in live if same and record.offset > kept[-1].offset)]
                journals[topic][partition] = records if same else [*kept, *live]
            store = MemoryStore()
            runner = build_runner(Journal(topic, topic_id, partition), store, partitions)
            runner.skips = skips.of(ids[topic], partition)
            best = None if states is None else furthest(topic, partition, states)
            for batch in _batches(records, cut=-1 if best is None else best[0]):
                sends = runner.step(batch)
                assert not isinstance(sends, Reseek)
                for send in sends:
                    runner.acknowledged(send.generation)
                    _note(send, topic_id, partition, said, items)
                at_best = best is not None and runner.next_offset == best[0]
                if at_best or runner.state.changed >= CHECKPOINT_EVERY:
                    # Not only at the end: scans go through all that was changed, and deleted, since the last one.
                    runner.write(runner.begin_checkpoint(), store.write)
                if best is not None and at_best:
                    _compare_state(checked, f"{topic}[{partition}] at {best[0]}", store, best[1])
            checked.records += len(records)
            checked.states_missing += states is not None and best is None
    _compare_answers(checked, said, client, {topic: names[topic] for topic in ANSWERS})
    _compare_items(checked, ids["account-journal"], items, journals["terminal-journal"])
    _look_for_intake(checked, client, names, ids, journals["account-journal"])
    return checked


def _skips(control: list[Record]) -> Skips:
    found = Skips()
    for record in control:
        parsed = parse_control(record.value)
        if not isinstance(parsed, Refusal):
            found.take(parsed)
    return found


def _note(
    send: Send,
    topic_id: bytes,
    partition: int,
    said: dict[Print, Said],
    items: dict[tuple[str, int, bytes, int], dict[tuple[int, int], Print]],
) -> None:
    if send.topic in ANSWERS:
        headers = tuple(sorted(send.headers))
        answer = print_of(send.topic, send.partition, send.key, send.value, headers)
        said[answer] = (send.topic, send.partition, headers)
        return
    for item in decode_block(send.value).items:
        items[send.topic, send.partition, topic_id, partition][item.offset, item.n] = print_of(
            msgspec.msgpack.encode(item)
        )


def _compare_answers(
    checked: Checked, said: dict[Print, Said], client: Mapping[str, Any], topics: dict[str, str]
) -> None:
    seen: set[Print] = set()
    for topic, name in topics.items():
        for partition, record in read_records(client, name):
            headers = tuple(sorted((name, value or b"") for name, value in record.headers))
            answer = print_of(topic, partition, record.key, record.value, headers)
            checked.copies += answer in seen
            if answer not in said and answer not in seen:
                checked.different += 1
                _example(checked, f"on the topic, not in the log: {topic}[{partition}] {record!r}")
            seen.add(answer)
    checked.answers = len(said)
    for answer in said.keys() - seen:
        checked.absent += 1
        _example(checked, f"in the log, not on the topic: {said[answer]}")


def _compare_items(
    checked: Checked,
    sender: bytes,
    items: dict[tuple[str, int, bytes, int], dict[tuple[int, int], Print]],
    journal: dict[int, list[Record]],
) -> None:
    """Each copy of an item between account and terminal stage is what the account journal says, and all came."""
    arrived: set[tuple[int, int, int, int]] = set()
    for partition, records in journal.items():
        for record in records:
            block = decode_block(record.value or b"")
            if block.sender != sender:
                continue
            wanted = items["terminal-journal", partition, sender, block.partition]
            for item in block.items:
                place = (partition, block.partition, item.offset, item.n)
                checked.item_copies += place in arrived
                arrived.add(place)
                if wanted.get((item.offset, item.n)) != print_of(msgspec.msgpack.encode(item)):
                    checked.items_different += 1
                    _example(checked, f"terminal-journal[{partition}]@{record.offset}: {item!r}")
    for (topic, partition, _, sender_partition), sent in items.items():
        if topic == "terminal-journal":
            missing = [at for at in sent if (partition, sender_partition, *at) not in arrived]
            checked.items += len(sent)
            checked.items_absent += len(missing)
            if missing:
                _example(checked, f"never came to terminal-journal[{partition}]: {sorted(missing)[:3]}")


def _look_for_intake(
    checked: Checked,
    client: Mapping[str, Any],
    names: dict[str, str],
    ids: dict[str, bytes],
    journal: dict[int, list[Record]],
) -> None:
    there: set[tuple[bytes, int, int]] = set()
    for records in journal.values():
        for record in records:
            block = decode_block(record.value or b"")
            there.update((block.sender, block.partition, item.offset) for item in block.items)
    for topic in ("payments", "updates", "labels"):
        for partition, record in read_records(client, names[topic]):
            if (ids[topic], partition, record.offset) not in there:
                checked.intake_missing += 1
                _example(checked, f"{topic}[{partition}]@{record.offset} is in no account journal")


def _batches(records: list[Record], *, cut: int) -> Iterator[list[Record]]:
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
    if len(checked.examples) < 10:
        checked.examples.append(text[:600])
