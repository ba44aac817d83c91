"""Journals of a live deployment, copied into files, give the same answers in another process."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer
from live_worker import LiveWorker

from stream.operate import initialise
from stream.reconcile import reconcile
from stream.settings import Settings

pytestmark = pytest.mark.kafka

PAYMENTS = 400
FRAUD = (sys.executable, "-c", "from stream.cli.main import main; main()")


def _fraud(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([*FRAUD, *arguments, "--json"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _payment(n: int) -> bytes:
    return msgspec.json.encode(
        {
            "payment_id": f"p{n}",
            "event_time": 1_700_000_000_000 + n,
            "account_id": f"a{n % 17}",
            "amount": 100 + n,
            "currency": "EUR",
            "terminal_id": f"t{n % 5}",
        }
    )


def test_journals_of_a_live_deployment_give_the_same_answers_elsewhere(kafka: Any, tmp_path: Path) -> None:
    prefix = kafka.fresh_prefix()
    settings = Settings(bootstrap=kafka.bootstrap, prefix=prefix, group=prefix + "workers")
    initialise(settings, "earliest", by="test", why="test")
    environment = {"FRAUD_BOOTSTRAP": kafka.bootstrap, "FRAUD_PREFIX": prefix, "FRAUD_GROUP": settings.group}
    worker = LiveWorker(tmp_path / "worker", environment)
    try:
        producer = Producer(kafka.client)
        values = [_payment(n) for n in range(PAYMENTS)] + [_payment(7), b"{", b"", _payment(8)]
        for value in values:
            producer.produce(prefix + "payments", value=value, key=b"k")
        assert producer.flush(60) == 0
        worker.until(lambda: reconcile(kafka.client, prefix).missing == 0, "not all are answered")
    finally:
        worker.stop()
    directory = tmp_path / "journals"
    written = _fraud("journals", "dump", str(directory), "--bootstrap", kafka.bootstrap, "--prefix", prefix)
    assert written["files"] > 6
    found = _fraud("journals", "verify", str(directory))
    assert found["equal"]
    assert found["topics"]["decisions"]["reproduced"] == len(values)
    assert found["topics"]["dead-letters"]["reproduced"] == 2
    assert found["topics"]["decisions"]["recorded"] == len(values)
    assert found["topics"]["decision-details"]["reproduced"] == PAYMENTS
    _a_second_dump_leaves_the_first_as_it_is(directory, kafka.bootstrap, prefix)


def _a_second_dump_leaves_the_first_as_it_is(directory: Path, bootstrap: str, prefix: str) -> None:
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    command = ["journals", "dump", str(directory), "--bootstrap", bootstrap, "--prefix", prefix]
    done = subprocess.run([*FRAUD, *command], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert "give each dump a directory of its own" in " ".join(done.stderr.split())
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
