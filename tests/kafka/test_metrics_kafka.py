"""What a live worker says of itself, against what was published."""

import importlib.util
import json
import time
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Producer

from stream.metrics import METRICS, PREFIX
from stream.operate import initialise
from stream.settings import Settings
from topics.journal import Block, Clock, encode_block

pytestmark = pytest.mark.kafka

_spec = importlib.util.spec_from_file_location("live_worker", Path(__file__).with_name("live_worker.py"))
live_worker = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(live_worker)

PAYMENTS = 300
REPEATS = 7
PARTITIONS = 2


def _payment(i: int, now_ms: int) -> dict:
    return {
        "payment_id": f"p{i}",
        "event_time": now_ms - 1_000 * (PAYMENTS - i),
        "account_id": f"a{i % 23}",
        "terminal_id": f"t{i % 7}",
        "amount": 100 + i,
        "currency": "EUR",
    }


def _send(producer: Producer, topic: str, records: list, key: bytes | None = None) -> None:
    for record in records:
        value = record if isinstance(record, bytes) else json.dumps(record).encode()
        producer.produce(topic, value, key)
    assert producer.flush(30) == 0


@pytest.fixture(scope="module")
def worker(kafka, tmp_path_factory):
    prefix = kafka.fresh_prefix()
    settings = Settings(bootstrap=kafka.bootstrap, prefix=prefix, group=prefix + "group")
    initialise(settings, "earliest", by="test", why="test", partitions=PARTITIONS)
    started = live_worker.LiveWorker(
        tmp_path_factory.mktemp("metrics"),
        {"FRAUD_BOOTSTRAP": kafka.bootstrap, "FRAUD_PREFIX": prefix, "FRAUD_GROUP": prefix + "group"},
    )
    started.prefix = prefix
    started.producer = Producer({**kafka.client, "acks": "all", "log_level": 0})
    yield started
    started.producer.purge()
    started.stop()


# One worker for all; the tests stand in the order of its life.


def test_not_ready_until_every_partition_runs_and_then_ready(worker):
    seen = []
    give_up_s = time.monotonic() + 120
    while not seen or seen[-1][0] != 200:
        seen.append(worker.page("/ready"))
        assert worker.get("/health")[0] == 200
        assert time.monotonic() < give_up_s, seen[-1]
        time.sleep(0.02)
    assert seen[0][0] == 503
    status, last = seen[-1]
    assert last["running"] == 3 * PARTITIONS + PARTITIONS + 3  # payments, updates, two journals; the three of one
    assert (last["opening"], last["stopped"], last["waiting"]) == ([], [], [])
    for status, shown in seen[:-1]:
        assert status == 503
        assert not shown["ready"]


def test_counters_say_what_was_published(worker):
    now_ms = int(time.time() * 1000)
    payments = [_payment(i, now_ms) for i in range(PAYMENTS)]
    _send(worker.producer, worker.prefix + "payments", payments)
    scrape = worker.until(
        lambda: (found := worker.metrics()).value("answers_total", answer="first") >= PAYMENTS and found,
        "the payments are not answered",
    )
    bad = [b"{", b"{}", b'{"payment_id": "x", "account_id": "4111111111111111"}', dict(payments[0], amount=-1)]
    _send(worker.producer, worker.prefix + "payments", [*bad, *payments[:REPEATS], dict(payments[1], amount=1)])
    label = {"kind": "chargeback", "observed_at": now_ms, "payment_id": "p1", "account_id": "a1", "source": "bank"}
    _send(
        worker.producer,
        worker.prefix + "labels",
        [label, dict(label, payment_id="nobody's"), b"[]", {"kind": "clock", "observed_at": now_ms}],
    )
    scrape = worker.until(
        lambda: (
            (found := worker.metrics()).value("label_clock_timestamp_seconds", stage="terminal") > 0
            and found.value("answers_total") >= PAYMENTS + REPEATS + len(bad) + 1
            and found.value("labels_total", outcome="met") >= 1  # a scrape is not one moment: counts come first
            and found.value("labels_total", outcome="refused") >= 1
            and found.value("checkpoint_duration_seconds_count") > 1
            and found.value("lag_records") == 0
            and found
        ),
        "not all is answered",
    )
    refused = len(bad) + 1
    assert scrape.value("payments_total", arrival="first") == PAYMENTS
    assert scrape.value("payments_total", arrival="repeat") == REPEATS
    assert scrape.value("payments_total", arrival="refused") == refused
    assert scrape.value("answers_total", answer="first") == PAYMENTS == scrape.value("verdicts_total")
    assert scrape.value("answers_total", answer="repeat") == REPEATS
    assert scrape.value("answers_total", answer="refused") == refused
    causes = {one["cause"]: scrape.value("refusals_total", **one) for one in scrape.labels("refusals_total")}
    assert {cause: n for cause, n in causes.items() if cause != "missing_field"} == {
        "not_json": 1,
        "card_number": 1,
        "amount_negative": 1,
        "contradiction": 1,
        "wrong_type": 1,  # the label
    }
    assert causes["missing_field"] == 1
    assert scrape.value("labels_total", outcome="joined") == 1 == scrape.value("labels_total", outcome="met")
    assert scrape.value("labels_total", outcome="orphaned") == 1
    assert scrape.value("labels_total", outcome="refused") == 1
    assert scrape.value("records_applied_total", topic="payments") == PAYMENTS + REPEATS + refused
    assert scrape.value("records_applied_total", topic="labels") == 4
    assert scrape.value("answer_latency_seconds_count") == PAYMENTS
    assert scrape.value("answer_latency_seconds_bucket", le="+Inf") == PAYMENTS
    assert 0 < scrape.value("answer_latency_seconds_sum") < 60 * PAYMENTS
    assert scrape.value("lag_seconds") == 0
    assert scrape.value("prev_gaps_open") == 0
    assert scrape.value("maturity_lag_seconds") <= 0  # the labels' clock is past the newest payment
    assert scrape.value("group_generation") >= 1 == scrape.value("group_member")
    assert scrape.value("partitions", status="running") == 4 * PARTITIONS + 3
    assert scrape.value("policy_enforced") == 0


def test_every_metric_is_shown_with_a_help_text(worker):
    families = worker.metrics().families
    for name, what in METRICS.items():
        shown = families[PREFIX + name + ("_info" if what.kind == "info" else "")]
        assert shown.documentation == what.text
        assert shown.type == ("gauge" if what.kind == "info" else what.kind)


def test_sockets_listen_on_loopback_only(worker, kafka):
    for pid in (worker.process.pid, kafka.broker.pid):
        sockets = psutil.Process(pid).net_connections("inet")
        listening = [one.laddr for one in sockets if one.status == psutil.CONN_LISTEN]
        assert listening
        assert {at.ip for at in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
        if pid == worker.process.pid:
            assert [at.port for at in listening] == [worker.port]


def test_a_broken_chain_and_a_stopped_partition_are_told(worker):
    stray = Block(sender=b"s" * 16, partition=0, prev=(5, 0), items=[Clock(9, 0, 0, 1)])
    worker.producer.produce(worker.prefix + "terminal-journal", encode_block(stray), partition=0)
    assert worker.producer.flush(30) == 0
    scrape = worker.until(lambda: (found := worker.metrics()).value("prev_gaps_open") and found, "the gap is not told")
    place = {"stage": "terminal", "topic": "terminal-journal", "partition": "0"}
    assert scrape.value("prev_gap_items_total") == 1 == scrape.value("prev_gap_items_total", **place)
    assert scrape.value("prev_gap_open_seconds", **place) < 60

    worker.producer.produce(worker.prefix + "terminal-journal", b"no block", partition=1)
    assert worker.producer.flush(30) == 0
    worker.until(lambda: worker.get("/ready")[0] == 503, "it says that it is ready")
    shown = worker.until(
        lambda: (page := worker.page("/ready")[1]).get("stopped") and page, "the stopped partition is not named"
    )
    name = f"{worker.prefix}terminal-journal[1]"
    assert shown["stopped"] == [name]
    assert shown["failures"][name]
    assert worker.get("/health")[0] == 200  # the others go on
    scrape = worker.metrics()
    assert scrape.value("partition_stopped") == 1 == scrape.value("partition_stopped", **{**place, "partition": "1"})
    assert scrape.value("partitions", stage="terminal", status="stopped") == 1


def test_counters_outlive_the_stopped_partition(worker):
    assert worker.metrics().value("answers_total", answer="first") >= PAYMENTS


def test_other_pages_and_methods_are_refused(worker):
    assert worker.get("/")[0] == 404
    assert worker.get("/metrics/../ready")[0] == 404
