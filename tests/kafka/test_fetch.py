"""The fetching thread against a real broker: positions, epochs, errors, transactions, bounds."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from stream.worker.fetch import TP, Fetched, Fetcher, FetchError, FetchSettings, Round

pytestmark = pytest.mark.kafka
SOON_S = 60.0


class Bench:
    """A fetcher whose rounds are taken and released as they come; `seen` holds every part."""

    def __init__(self, bootstrap: str, **settings: Any) -> None:
        self.seen: list[Fetched] = []
        self.errors: list[FetchError] = []
        self.rounds: list[Round] = []
        self.taking = True
        self.fetcher = Fetcher(
            FetchSettings(bootstrap_servers=bootstrap, group_id="fetch-test", **settings),
            stage_of=lambda topic: topic,
            ready=self.ready,
            failed=self.errors.append,
            loop=asyncio.get_running_loop(),
        )

    def ready(self, stage: str) -> None:
        while self.taking and (arrived := self.fetcher.take(stage)) is not None:
            self.rounds.append(arrived)
            self.seen.extend(arrived.parts)
            self.fetcher.release(arrived)

    def offsets(self, epoch: int) -> list[int]:
        return [record.offset for part in self.seen if part.epoch == epoch for record in part.records]


@asynccontextmanager
async def bench(kafka: Any, **settings: Any) -> AsyncIterator[Bench]:
    made = Bench(kafka.bootstrap, **settings)
    made.fetcher.begin()
    try:
        yield made
    finally:
        await asyncio.to_thread(made.fetcher.close)


async def until(true: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + SOON_S
    while not true():
        assert time.monotonic() < give_up_at
        await asyncio.sleep(0.02)


def make_topic(kafka: Any, partitions: int = 1) -> str:
    name = f"{kafka.fresh_prefix()}fetch"
    admin = AdminClient(kafka.client)  # without a name it would be gone before its answer
    admin.create_topics([NewTopic(name, partitions, 1)])[name].result(SOON_S)
    return name


def send(kafka: Any, topic: str, values: range, partition: int = 0) -> None:
    producer = Producer(kafka.client)
    for value in values:
        producer.produce(topic, b"%d" % value, partition=partition, headers=[("h", b"1")])
    assert producer.flush(SOON_S) == 0


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await work()

    asyncio.run(main())


def test_records_come_in_order_with_what_the_stages_need(kafka: Any) -> None:
    topic = make_topic(kafka)
    send(kafka, topic, range(10))

    async def work() -> None:
        async with bench(kafka) as b:
            b.fetcher.start(TP(topic, 0), 3, epoch=1)
            await until(lambda: b.offsets(1) == list(range(3, 10)))
            first = b.seen[0].records[0]
            assert (first.offset, first.key, first.value, first.headers) == (3, None, b"3", [("h", b"1")])
            assert abs(first.at_ms - time.time() * 1000) < 600_000
            await until(lambda: b.fetcher.end_reached(TP(topic, 0)) == 10)
            await until(lambda: b.fetcher.watermarks(TP(topic, 0)) == (0, 10))

    run(work)


def test_after_a_new_start_no_older_epoch_is_taken(kafka: Any) -> None:
    topic = make_topic(kafka)
    send(kafka, topic, range(2_000))

    async def work() -> None:
        async with bench(kafka, round_records_max=50) as b:
            tp = TP(topic, 0)
            for epoch in range(1, 20):
                b.fetcher.start(tp, epoch * 10, epoch)
                before = len(b.seen)
                await asyncio.sleep(0.003 * epoch)
                assert all(part.epoch == epoch for part in b.seen[before:])
            await until(lambda: b.offsets(19)[-1:] == [1_999])
            assert b.offsets(19) == list(range(190, 2_000))
            for epoch in range(1, 19):  # whatever came of an earlier epoch began where it was told to
                got = b.offsets(epoch)
                assert got == list(range(epoch * 10, epoch * 10 + len(got)))

    run(work)


def test_other_partitions_are_not_disturbed_by_a_start_or_a_stop(kafka: Any) -> None:
    topic = make_topic(kafka, 2)

    async def work() -> None:
        async with bench(kafka) as b:
            b.fetcher.start(TP(topic, 0), 0, epoch=1)
            for n in range(10):
                await asyncio.to_thread(send, kafka, topic, range(n * 10, n * 10 + 10))
                b.fetcher.start(TP(topic, 1), 0, epoch=2 + n)
                b.fetcher.stop(TP(topic, 1))
            await until(lambda: len(b.offsets(1)) == 100)
            assert b.offsets(1) == list(range(100))

    run(work)


def test_an_offset_that_is_not_in_the_log_is_told_and_nothing_is_reset(kafka: Any) -> None:
    topic = make_topic(kafka)
    send(kafka, topic, range(10))
    admin = AdminClient(kafka.client)
    admin.delete_records([TopicPartition(topic, 0, 5)])[TopicPartition(topic, 0)].result(SOON_S)

    async def work() -> None:
        async with bench(kafka) as b:
            for epoch, offset in ((1, 2), (2, 50)):
                b.fetcher.start(TP(topic, 0), offset, epoch)
                await until(lambda epoch=epoch: any(error.epoch == epoch for error in b.errors))
            assert {(error.tp, error.cause) for error in b.errors} == {(TP(topic, 0), "offset_out_of_range")}
            assert not b.seen
            b.fetcher.start(TP(topic, 0), 5, epoch=3)
            await until(lambda: b.offsets(3) == list(range(5, 10)))

    run(work)


def test_a_topic_that_is_not_there_is_told(kafka: Any) -> None:
    async def work() -> None:
        async with bench(kafka) as b:
            b.fetcher.start(TP("never-made", 0), 0, epoch=7)
            await until(lambda: bool(b.errors))
            assert (b.errors[0].tp, b.errors[0].epoch, b.errors[0].cause) == (TP("never-made", 0), 7, "unknown_topic")

    run(work)


def test_what_a_transaction_took_back_is_never_read(kafka: Any) -> None:
    topic = make_topic(kafka)
    producer = Producer({**kafka.client, "transactional.id": topic})
    producer.init_transactions(SOON_S)
    for value, keep in ((b"a", True), (b"b", False), (b"c", True)):
        producer.begin_transaction()
        producer.produce(topic, value, partition=0)
        producer.flush(SOON_S)
        if keep:
            producer.commit_transaction(SOON_S)
        else:
            producer.abort_transaction(SOON_S)

    async def work() -> None:
        async with bench(kafka) as b:
            b.fetcher.start(TP(topic, 0), 0, epoch=1)
            # a, its marker, b and its marker (neither is read), c, its marker
            await until(lambda: b.fetcher.end_reached(TP(topic, 0)) == 6)
            await until(lambda: b.offsets(1) == [0, 4])
            assert [record.value for part in b.seen for record in part.records] == [b"a", b"c"]

    run(work)


def test_what_nobody_takes_is_bounded(kafka: Any) -> None:
    topic = make_topic(kafka)
    send(kafka, topic, range(30_000))

    async def work() -> None:
        async with bench(kafka, stage_records_max=3_000, round_records_max=1_000) as b:
            b.taking = False
            b.fetcher.start(TP(topic, 0), 0, epoch=1)
            await until(lambda: b.fetcher.stats().blocked_s > 1.0)
            assert 3_000 <= b.fetcher.stats().records <= 5_100
            b.taking = True
            b.ready(topic)
            await until(lambda: len(b.offsets(1)) == 30_000)
            assert b.offsets(1) == list(range(30_000))
            assert max(arrived.records for arrived in b.rounds) <= 1_000

    run(work)


def test_a_paused_partition_waits_and_loses_nothing(kafka: Any) -> None:
    topic = make_topic(kafka)

    async def work() -> None:
        async with bench(kafka) as b:
            tp = TP(topic, 0)
            b.fetcher.start(tp, 0, epoch=1)
            await asyncio.to_thread(send, kafka, topic, range(5))
            await until(lambda: len(b.offsets(1)) == 5)
            b.fetcher.pause(tp)
            await asyncio.sleep(0.5)
            await asyncio.to_thread(send, kafka, topic, range(5, 10))
            await asyncio.sleep(0.5)
            assert len(b.offsets(1)) == 5
            b.fetcher.resume(tp)
            await until(lambda: b.offsets(1) == list(range(10)))

    run(work)


def test_a_broker_that_comes_back_is_read_on(kafka: Any) -> None:
    topic = make_topic(kafka)
    send(kafka, topic, range(5))

    async def work() -> None:
        async with bench(kafka) as b:
            b.fetcher.start(TP(topic, 0), 0, epoch=1)
            await until(lambda: len(b.offsets(1)) == 5)
            await asyncio.to_thread(kafka.broker.kill)
            await asyncio.sleep(1)
            await asyncio.to_thread(kafka.broker.start)
            await asyncio.to_thread(send, kafka, topic, range(5, 10))
            await until(lambda: b.offsets(1) == list(range(10)))
            assert not b.errors
            assert b.fetcher.stats().transient_errors

    run(work)
