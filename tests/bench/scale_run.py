"""Workers under the measures of scale: started, awaited, and their CPU over a number of answers."""

import contextlib
import itertools
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

from confluent_kafka import ConsumerGroupState
from confluent_kafka.admin import AdminClient
from meter import LOOK_EVERY_S, Answers, BenchFailed, Figure, Sample, cpu_s, figure, memory_mb, threads_s, tree
from ours import PARTITIONS, Deployment, deploy, worker
from scale_load import Feeder, Stream
from scale_verdict import say

from stream.broker.embedded import EmbeddedBroker
from stream.errors import OperatorError

TICK_S, SNAPSHOT_S = 5.0, 15.0
GROUP_S_MAX = 300.0
FROZEN_S = 2.0  # a look that took so long: the whole machine stood still, or we did; what it saw counts for nothing
AFTER_FROZEN_S = 15.0  # sessions have expired: the group forms anew
TRIES = 3
Process = subprocess.Popen[bytes]


class Bench(NamedTuple):
    """A broker of its own, and a place for the workers' files."""

    bootstrap: str
    directory: Path


class Running(NamedTuple):
    deployment: Deployment
    processes: list[Process]
    answers: Answers
    feeder: Feeder

    def alive(self) -> None:
        for process in self.processes:
            if process.poll() is not None:
                tail = self.deployment.log.read_text()[-3000:]
                raise BenchFailed(f"a worker ended with code {process.returncode}\n{tail}")

    def cpu_s(self) -> float:
        return sum(cpu_s(pid) for process in self.processes for pid in tree(process.pid))

    def memory_mb(self) -> float:
        """Of the one that has most."""
        return max(memory_mb(process.pid) for process in self.processes)

    def await_answers(self, timeout_s: float) -> None:
        """Until all that was sent is answered. Raises `BenchFailed`."""
        end_s = time.monotonic() + timeout_s
        while (done := self.answers.count()) < self.feeder.sent:
            self.alive()
            self.feeder.labels(done)
            if time.monotonic() > end_s:
                raise BenchFailed(f"{done} of {self.feeder.sent} answers after {timeout_s:.0f} s")
            time.sleep(LOOK_EVERY_S)

    def measure(self, payments: int, *, timeout_s: float) -> Figure:
        """Send so many, and see what they cost between 20 % and 95 % of their answers; again if we stood still."""
        for tries_left in reversed(range(TRIES)):
            samples, most_mb = self._answered(payments, timeout_s)
            frozen = sum(b.at_s - a.at_s > FROZEN_S for a, b in itertools.pairwise(samples))
            if not frozen or not tries_left:
                found = figure("ours", samples, payments, most_mb)
                found.extra = {"frozen": frozen}
                return found
            say(f"stood still {frozen} times: measured again")
            time.sleep(AFTER_FROZEN_S)
        raise AssertionError("the loop returns")

    def _answered(self, payments: int, timeout_s: float) -> tuple[list[Sample], float]:
        before = self.feeder.sent
        self.feeder.send(payments)
        samples: list[Sample] = []
        most_mb = 0.0
        end_s = time.monotonic() + timeout_s
        while True:
            done = self.answers.count()
            self.alive()
            threads: Counter[str] = Counter()
            for process in self.processes:
                threads.update(threads_s(process.pid))
            samples.append(Sample(time.monotonic(), done - before, self.cpu_s(), dict(threads)))
            most_mb = max(most_mb, self.memory_mb())
            self.feeder.labels(done)
            if done >= before + payments:
                return samples, most_mb
            if time.monotonic() > end_s:
                raise BenchFailed(f"{done - before} of {payments} answers after {timeout_s:.0f} s")
            time.sleep(LOOK_EVERY_S)


@contextlib.contextmanager
def bench() -> Generator[Bench]:
    with (
        tempfile.TemporaryDirectory(prefix="fraudstream-scale-") as temporary,
        EmbeddedBroker(properties={"log.message.timestamp.type": "LogAppendTime"}) as broker,
    ):
        yield Bench(broker.bootstrap, Path(temporary))


def _deployed(place: Bench) -> Deployment:
    for tries_left in reversed(range(TRIES)):
        try:
            return deploy(place.bootstrap, place.directory)
        except OperatorError as error:
            if not tries_left:
                raise BenchFailed(str(error)) from error
            say(f"deployed again after: {error}")
            time.sleep(AFTER_FROZEN_S)
    raise AssertionError("the loop returns or raises")


@contextlib.contextmanager
def running(
    place: Bench, stream: Stream, *, workers: int = 1, tick_s: float = TICK_S, snapshot_s: float = SNAPSHOT_S
) -> Generator[Running]:
    """A deployment with so many workers, which share its partitions; nothing is sent yet."""
    deployment = _deployed(place)
    answers = Answers(place.bootstrap, deployment.settings.prefix + "decisions", PARTITIONS)
    with contextlib.ExitStack() as stack:
        stack.callback(answers.close)
        processes = [
            stack.enter_context(worker(deployment, tick_s=tick_s, snapshot_s=snapshot_s, instance=f"state{number}"))
            for number in range(workers)
        ]
        found = Running(deployment, processes, answers, Feeder(deployment, stream))
        await_group(deployment, workers, found)
        yield found


def await_group(deployment: Deployment, members: int, found: Running) -> None:
    """Until the group is stable and each member has partitions."""
    admin = AdminClient(deployment.settings.client())
    group = deployment.settings.group
    end_s = time.monotonic() + GROUP_S_MAX
    while time.monotonic() < end_s:
        found.alive()
        with contextlib.suppress(Exception):  # not there yet
            described = admin.describe_consumer_groups([group], request_timeout=5)[group].result()
            assigned = [len(member.assignment.topic_partitions) for member in described.members]
            if described.state == ConsumerGroupState.STABLE and len(assigned) == members and all(assigned):
                return
        time.sleep(0.5)
    raise BenchFailed(f"the group has not settled on {members} members after {GROUP_S_MAX:.0f} s")
