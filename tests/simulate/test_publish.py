"""Publishing: order, pacing, what fails, and the commands' exit codes. With a producer that remembers."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from confluent_kafka import KafkaError
from typer.testing import CliRunner

import stream.cli.publish
import stream.cli.simulate
from stream.dataset import Dataset, Event
from stream.publish import Published, Publisher, PublishFailed, line_events, publish

TOPICS = ("x.payments", "x.labels", "x.updates")


class FakeProducer:
    """Remembers; `full` calls raise BufferError, the record number `fails` is reported as not delivered."""

    def __init__(self, *, full: int = 0, fails: int | None = None, topics: tuple[str, ...] = TOPICS) -> None:
        self.sent: list[tuple[str, bytes, bytes | None, int | None]] = []
        self.full, self.fails, self.topics = full, fails, topics
        self.polled: list[float] = []
        self.purged = False
        self._reports: list[Any] = []

    def list_topics(self, timeout: float) -> Any:
        return SimpleNamespace(topics=dict.fromkeys(self.topics))

    def produce(
        self, topic: str, value: bytes, key: bytes | None, *, on_delivery: Any, partition: int | None = None
    ) -> None:
        if self.full:
            self.full -= 1
            raise BufferError
        if len(self.sent) == self.fails:
            self._reports.append(on_delivery)
        self.sent.append((topic, value, key, partition))

    def poll(self, seconds: float) -> int:
        self.polled.append(seconds)
        for report in self._reports:
            report(KafkaError(KafkaError._MSG_TIMED_OUT), None)
        self._reports.clear()
        return 0

    def flush(self, seconds: float) -> int:
        return self.poll(seconds)

    def purge(self) -> None:
        self.purged = True


def payments(count: int) -> list[Event]:
    return [Event("payment", at, b'{"n":%d}' % at, f"a{at}", "default") for at in range(count)]


def test_records_go_to_their_topics_in_order_and_without_a_timestamp():
    producer = FakeProducer()
    label, clock = Event("label", 1, b"l", "a0", "default"), Event("clock", 2, b"c", "", "default")
    update = Event("update", 1, b"u", "a0", "default")
    done = publish([*payments(1), label, clock, update], Publisher(producer, prefix="x."))  # type: ignore[arg-type]
    assert producer.sent == [
        ("x.payments", b'{"n":0}', b"a0", None),
        ("x.labels", b"l", b"a0", 0),
        ("x.labels", b"c", None, 0),
        ("x.updates", b"u", b"a0", None),
    ]
    assert (done.payments, done.labels, done.clocks, done.updates, done.records) == (1, 1, 1, 1, 4)


def test_a_full_queue_is_waited_for_and_nothing_is_left_out():
    producer = FakeProducer(full=3)
    assert publish(payments(5), Publisher(producer)).payments == 5  # type: ignore[arg-type]
    assert [value for _, value, _, _ in producer.sent] == [event.value for event in payments(5)]


def test_a_delivery_error_ends_it():
    with pytest.raises(PublishFailed, match="not delivered"):
        publish(payments(10), Publisher(FakeProducer(fails=4)))  # type: ignore[arg-type]


def test_a_missing_topic_is_named():
    publisher = Publisher(FakeProducer(topics=("x.payments",)), prefix="x.")  # type: ignore[arg-type]
    publisher.require_topics(["payment"])
    with pytest.raises(PublishFailed, match=r"no topic x\.labels"):
        publisher.require_topics(["payment", "label"])


class Time:
    """A clock that moves by what is waited, and by `slow_s` for each record."""

    def __init__(self, slow_s: float = 0.0) -> None:
        self.now, self.slow_s = 100.0, slow_s
        self.sent_at: list[float] = []

    def producer(self) -> FakeProducer:
        producer = FakeProducer()
        produce, poll = producer.produce, producer.poll

        def timed_produce(*args: Any, **more: Any) -> None:
            self.sent_at.append(self.now - 100.0)
            self.now += self.slow_s
            produce(*args, **more)

        def timed_poll(seconds: float) -> int:
            self.now += seconds
            return poll(seconds)

        producer.produce, producer.poll = timed_produce, timed_poll  # type: ignore[method-assign]
        return producer


def test_the_rate_is_kept_to_a_millisecond():
    time = Time()
    publish(payments(50), Publisher(time.producer()), rate=200.0, clock=lambda: time.now)  # type: ignore[arg-type]
    assert time.sent_at == pytest.approx([number / 200 for number in range(50)], abs=0.0011)


def test_the_loop_is_open_a_slow_record_does_not_delay_the_plan():
    time = Time(slow_s=0.02)
    done = publish(payments(50), Publisher(time.producer()), rate=100.0, clock=lambda: time.now)  # type: ignore[arg-type]
    assert time.sent_at == pytest.approx([number * 0.02 for number in range(50)], abs=0.0011)
    assert done.late_s == pytest.approx(49 * 0.01, abs=0.002)


def test_progress_counts_every_record_once():
    told: list[int] = []
    publish(payments(2_500), Publisher(FakeProducer()), progress=told.append)  # type: ignore[arg-type]
    assert sum(told) == 2_500


def test_lines_are_sent_as_they_are():
    lines = [b'{"account_id":"a1","amount":1}\r\n', b"\n", b"no json\n", b'{"account_id":7}\n', b'"\xff"']
    events = list(line_events(lines))
    assert [event.value for event in events] == [
        b'{"account_id":"a1","amount":1}',
        *(line.strip() for line in lines[2:]),
    ]
    assert [event.account_id for event in events] == ["a1", "", "", ""]


# ------------------------------------------------------------------------------------------------------- the commands

app = typer.Typer()
app.command("simulate", epilog=stream.cli.simulate.EPILOG)(stream.cli.simulate.command)
app.command("publish", epilog=stream.cli.publish.EPILOG)(stream.cli.publish.command)


def last_json(output: str) -> dict[str, Any]:
    return json.loads(output.strip().splitlines()[-1])


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    args = ["simulate", "--accounts", "40", "--days", "5", "--seed", "9", "--out", str(tmp_path / "w"), "--json"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    said = last_json(result.stdout)
    dataset = Dataset(tmp_path / "w" / "payments.parquet", tmp_path / "w" / "labels.parquet")
    assert dataset.payment_rows == said["payments"] > 100
    return tmp_path / "w"


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> FakeProducer:
    fake = FakeProducer(topics=("payments", "labels", "updates"))
    monkeypatch.setattr(stream.cli.publish, "connect", lambda client: fake)
    return fake


def run(*args: str) -> Any:
    return CliRunner().invoke(app, ["publish", "--bootstrap", "127.0.0.1:1", *args])


def test_publish_sends_a_dataset_and_says_how_much(directory: Path, producer: FakeProducer):
    files = [str(directory / "payments.parquet"), "--labels", str(directory / "labels.parquet")]
    result = run(*files, "--updates", str(directory / "updates.parquet"), "--json")
    assert result.exit_code == 0, result.output
    done = Published(**last_json(result.stdout))
    topics = [topic for topic, *_ in producer.sent]
    assert done.payments == topics.count("payments") > 100
    assert done.labels + done.clocks == topics.count("labels")
    assert done.updates == topics.count("updates") > 0
    assert done.clocks > 24


def test_publish_exits_with_1_when_a_record_is_not_delivered(directory: Path, producer: FakeProducer):
    producer.fails = 20
    result = run(str(directory / "payments.parquet"))
    assert result.exit_code == 1
    assert "not delivered" in result.output
    assert producer.purged


def test_publish_exits_with_2_on_wrong_use(directory: Path, producer: FakeProducer):
    assert run(str(directory / "labels.parquet")).exit_code == 2
    assert run("-", "--labels", str(directory / "labels.parquet")).exit_code == 2
    assert run(str(directory / "payments.parquet"), "--bootstrap", "elsewhere.example:9092").exit_code == 2
    assert not producer.sent


def test_publish_takes_lines_from_standard_input(producer: FakeProducer):
    args = ["publish", "-", "--bootstrap", "127.0.0.1:1"]
    result = CliRunner().invoke(app, args, input=b'{"account_id":"a1"}\nbad\n')
    assert result.exit_code == 0, result.output
    assert [(value, key) for _, value, key, _ in producer.sent] == [(b'{"account_id":"a1"}', b"a1"), (b"bad", None)]


def test_simulate_exits_with_2_on_wrong_use(tmp_path: Path):
    for wrong in (["--start", "yesterday"], ["--label-delay", "never"], ["--fraud-rate", "0.7"]):
        result = CliRunner().invoke(app, ["simulate", "--out", str(tmp_path), *wrong])
        assert result.exit_code == 2, result.output


@pytest.mark.parametrize("name", ["simulate", "publish"])
def test_help_shows_an_example(name: str):
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert f"Example: fraud {name}" in result.output
