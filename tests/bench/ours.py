"""Ours, all of it: `fraud worker` as it is started in production, on a deployment of its own."""

import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
from confluent_kafka import Producer
from load import MATURITY_MS, Load
from meter import Answers, BenchFailed, Figure, figure, memory_mb, watch

from stream.operate import initialise
from stream.settings import Settings
from topics.limits import LIMITS_DEFAULT

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-c", "from stream.cli.main import main; main()", "worker", "--log-level", "WARNING")
PARTITIONS = 2  # as many as there are cores for workers: at a given rate, each further one means smaller batches
PRODUCTION = Settings.model_construct()  # what stands in settings.py, whatever the environment says
_numbers = itertools.count()


@dataclass(frozen=True)
class Deployment:
    settings: Settings
    directory: Path
    started_s: float = 0.0

    @property
    def log(self) -> Path:
        return self.directory / "worker.log"


def deploy(bootstrap: str, directory: Path, partitions: int = PARTITIONS) -> Deployment:
    prefix = f"bench{int(time.time())}-{next(_numbers)}."
    place = Path(tempfile.mkdtemp(dir=directory, prefix="ours-"))
    settings = Settings(bootstrap=bootstrap, prefix=prefix, group=prefix + "workers")
    limits = msgspec.structs.replace(LIMITS_DEFAULT, maturity_ms=MATURITY_MS)
    initialise(settings, "earliest", by="bench", why="measure", partitions=partitions, limits=limits)
    return Deployment(settings, place)


@contextlib.contextmanager
def worker(
    deployment: Deployment, *, tick_s: float, snapshot_s: float, instance: str = "state"
) -> Iterator["subprocess.Popen[bytes]"]:
    """A worker with checkpoints, snapshots to a `file://` URL, and a learner that publishes every `tick_s`.

    `instance`: its state's directory; two workers of one deployment need two.
    """
    settings, place = deployment.settings, deployment.directory
    snapshots = place / "snapshots"
    snapshots.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "FRAUD_BOOTSTRAP": settings.bootstrap or "",
        "FRAUD_PREFIX": settings.prefix,
        "FRAUD_GROUP": settings.group,
        "FRAUD_STATE_DIR": str(place / instance),
        "FRAUD_SNAPSHOT_URL": snapshots.as_uri(),
        "FRAUD_SNAPSHOT_EVERY_S": str(snapshot_s),
        "FRAUD_TICK_EVERY_S": str(tick_s),
    }
    with open(deployment.log, "ab") as log:
        process = subprocess.Popen(COMMAND, cwd=place, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Labeller:
    """Publishes labels and clocks when about the payments before them have been answered, as life would."""

    def __init__(self, deployment: Deployment, load: Load) -> None:
        self._topic = deployment.settings.prefix + "labels"
        self._producer = Producer(deployment.settings.client())
        self._left = iter(load.labels)
        self._next = next(self._left, None)
        self.sent = 0

    def __call__(self, answered: int) -> None:
        while self._next is not None and self._next.after <= answered:
            self._producer.produce(self._topic, self._next.value, self._next.key, partition=0)
            self.sent += 1
            self._next = next(self._left, None)
        self._producer.poll(0)


def publish_payments(bootstrap: str, topic: str, payments: list[tuple[bytes, bytes]]) -> None:
    """All of it, acknowledged, with no event time as Kafka's timestamp."""
    producer = Producer(
        {"bootstrap.servers": bootstrap, "compression.type": "lz4", "linger.ms": 20, "delivery.report.only.error": True}
    )
    for key, value in payments:
        while True:
            try:
                producer.produce(topic, value, key)
                break
            except BufferError:
                producer.poll(0.1)
    if producer.flush(120):
        raise BenchFailed(f"the broker does not take the payments of {topic}")


def run_ours(
    bootstrap: str, load: Load, directory: Path, *, tick_s: float, snapshot_s: float, timeout_s: float
) -> Figure:
    deployment = deploy(bootstrap, directory)
    prefix = deployment.settings.prefix
    wanted = len(load.payments)
    publish_payments(bootstrap, prefix + "payments", load.payments)
    answers = Answers(bootstrap, prefix + "decisions", PARTITIONS)
    examples = Answers(bootstrap, prefix + "examples", 1)
    labeller = Labeller(deployment, load)
    try:
        with worker(deployment, tick_s=tick_s, snapshot_s=snapshot_s) as process:
            try:
                samples, most_mb = watch(process, answers, wanted, timeout_s=timeout_s, each=labeller)
            except BenchFailed as error:
                raise BenchFailed(f"ours: {error}\n{deployment.log.read_text()[-3000:]}") from error
            found = figure("ours", samples, wanted, most_mb)
            found.extra = {
                "labels_and_clocks": labeller.sent,
                "example_blocks": examples.count(),
                "snapshots": len(list((deployment.directory / "snapshots").rglob("*manifest*"))),
                "memory_mb_end": round(memory_mb(process.pid), 1),
            }
    finally:
        answers.close()
        examples.close()
    return found
