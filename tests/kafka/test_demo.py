"""`fraud demo` as a program, recounted by a plain consumer that knows nothing of this project."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from confluent_kafka import Consumer, TopicPartition

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(1200)]

FRAUD = [sys.executable, "-c", "from stream.cli.main import main; main()"]
RUN_S_MAX = 900
GONE_S_MAX = 30


def read_to_end(bootstrap: str, topic: str) -> list[Any]:
    """Every record of a topic, as it stands."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "recount", "enable.auto.commit": False})
    partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
    ends = {
        number: consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=30)[1] for number in partitions
    }
    consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
    found: list[Any] = []
    while len(found) < sum(ends.values()):
        batch = consumer.consume(5_000, 20.0)
        assert batch, f"{topic} ended early"
        for message in batch:
            assert message.error() is None
            found.append(message)
    consumer.close()
    return found


def recount(bootstrap: str, prefix: str) -> dict[str, int]:
    """Missing and conflicting, from the two public topics alone."""
    asked = {(message.partition(), message.offset()) for message in read_to_end(bootstrap, prefix + "payments")}
    by_record: dict[tuple[int, int], set[bytes]] = defaultdict(set)
    by_payment: dict[tuple[str, str, str], set[bytes]] = defaultdict(set)
    refused = deliveries = 0
    for message in read_to_end(bootstrap, prefix + "decisions"):
        deliveries += 1
        _, partition, offset = dict(message.headers())["origin"].split(b":")
        by_record[int(partition), int(offset)].add(message.value())
        answer = json.loads(message.value())
        if answer["outcome"] == "refused":
            refused += 1
        else:
            by_payment[answer["tenant_id"], answer["account_id"], answer["payment_id"]].add(message.value())
    return {
        "payments": len(asked),
        "decisions": deliveries,
        "missing": len(asked - by_record.keys()),
        "unasked": len(by_record.keys() - asked),
        "conflicting": sum(len(values) > 1 for part in (by_record, by_payment) for values in part.values()),
        "refused": refused,
        "dead_letters": len(read_to_end(bootstrap, prefix + "dead-letters")),
    }


def test_the_demo_answers_every_payment_once_and_its_model_learns(kafka: Any) -> None:
    prefix = kafka.fresh_prefix()
    options = ["demo", "--short", "--json", "--bootstrap", kafka.bootstrap, "--prefix", prefix]
    done = subprocess.run([*FRAUD, *options], capture_output=True, text=True, timeout=RUN_S_MAX, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    told = json.loads(done.stdout.splitlines()[-1])

    found = recount(kafka.bootstrap, prefix)
    assert found["missing"] == found["conflicting"] == found["unasked"] == 0
    for name in ("payments", "decisions", "missing", "conflicting", "dead_letters"):
        assert told[name] == found[name], name
    assert told["payments"] == 20_000

    assert found["refused"] == found["dead_letters"] == told["bad_injected"] == told["bad_refused"]
    assert 0.007 < told["bad_injected"] / told["payments"] < 0.013
    assert told["repeats_sent"] == told["repeats_answered"] > 0

    counting = [version for version in told["versions"] if version["share"] >= 0.01]
    assert told["model_versions"] >= 5
    assert len({version["version"].split("-")[1] for version in counting}) >= 5, "they differ in content"
    assert told["rescored_equal"]
    assert told["compared_frauds"] >= 30  # when the last version comes is a matter of seconds
    assert told["average_precision"] > told["average_precision_first_version"]
    assert told["average_precision"] > told["average_precision_amount_only"]
    assert told["average_precision"] > told["average_precision_rules_only"]
    assert 0 < told["latency_ms"]["p50"] <= told["latency_ms"]["p99"] <= told["latency_ms"]["p999"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_demo_that_is_ended(how: signal.Signals, tmp_path: Path) -> None:
    """Not its broker, not its workers, not what they kept on disk."""
    here = {**os.environ, "TMPDIR": str(tmp_path), "FRAUD_BROKER_DIR": str(tmp_path / "none")}
    here.pop("FRAUD_BOOTSTRAP", None)
    with (tmp_path / "told").open("wb") as told:
        demo = subprocess.Popen([*FRAUD, "demo", "--short"], stdout=told, stderr=told, env=here, start_new_session=True)
    assert str(tmp_path) != tempfile.gettempdir()
    try:
        children = _wait_for_a_worker(demo.pid, tmp_path / "told")
        demo.send_signal(how)
        demo.wait(GONE_S_MAX)
        _, alive = psutil.wait_procs(children, timeout=GONE_S_MAX)
    finally:
        if demo.poll() is None:
            demo.kill()
    assert not alive
    assert demo.returncode == (-signal.SIGKILL if how is signal.SIGKILL else 130)
    end_s = time.monotonic() + GONE_S_MAX
    while (left := sorted(path.name for path in tmp_path.glob("fraudstream-*"))) and time.monotonic() < end_s:
        time.sleep(0.2)
    assert not left


def _wait_for_a_worker(pid: int, told: Path) -> list[psutil.Process]:
    """All descendants, once a worker is among them."""
    end_s = time.monotonic() + RUN_S_MAX
    while time.monotonic() < end_s:
        assert psutil.pid_exists(pid), told.read_text()
        found = psutil.Process(pid).children(recursive=True)
        if any("worker" in _arguments(each) and "guard.py" not in " ".join(_arguments(each)) for each in found):
            return found
        time.sleep(0.2)
    raise AssertionError(told.read_text())


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
