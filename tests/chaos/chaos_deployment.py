"""A deployment to be hurt: a real broker, real `fraud worker` processes, a load that goes on, and an eye on answers."""

import contextlib
import ctypes
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from chaos_load import DAY_MS, Wanted
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from stream.broker.cluster import EmbeddedCluster
from stream.broker.embedded import EmbeddedBroker
from stream.broker.topic_admin import describe_topics, id_bytes
from stream.operate import initialise
from stream.rules.policy import DEFAULT_POLICY
from stream.settings import Settings
from stream.stages.stage import Record
from topics.limits import LIMITS_DEFAULT
from topics.refusals import Cause

ROOT = Path(__file__).parents[2]
PARTITIONS = 2
COMMAND = (sys.executable, "-c", "from stream.cli.main import main; main()")
STOOD_STILL_S = 2.0  # between two looks: more was not this process's time
SENT_AT_ONCE = 50
WAITING_MAX = 30_000  # seconds of answers: to be behind for minutes would show the machine, not the fault
ANSWER_S_MAX = 150.0  # without any new answer: the run has failed
Place = tuple[int, int]
AnyBroker = EmbeddedBroker | EmbeddedCluster


class ChaosError(Exception):
    """The deployment did not do what the fault's script needs."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _die_with_parent() -> None:
    """In the child: whatever ends this run ends its workers (Linux; elsewhere they may outlive it)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class WorkerProcess:
    """One `fraud worker`, started again and again with one state directory and one log file."""

    def __init__(self, name: str, command: list[str], directory: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.directory = directory / name
        self.state = self.directory / "state"
        self.log = self.directory / "worker.log"
        self.directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.started_s = 0.0
        self.exit_codes: list[int] = []
        self.stop_seconds: list[float] = []
        self._command = command
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **environment: str) -> None:
        assert not self.alive
        self.started_s = time.time()
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [*self._command, "--state-dir", str(self.state)],
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={**os.environ, "FRAUD_METRICS_PORT": str(self.port), **self._environment, **environment},
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def use_state(self, directory: Path) -> None:
        """Another place for its state, before the first start."""
        self.state = directory

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> float:
        """SIGKILL; the moment."""
        at_s = time.monotonic()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        return at_s

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def terminate(self, timeout_s: float = 60.0) -> int:
        """SIGTERM; the exit code. How long it took is kept."""
        assert self._process is not None
        began_s = time.monotonic()
        with open(self.log, "a") as log:
            log.write(f"{time.strftime('%F %T')} SIGTERM is sent\n")
        self._process.terminate()
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            code = -9
        self.stop_seconds.append(round(time.monotonic() - began_s, 2))
        self.exit_codes.append(code)
        return code

    def page(self, path: str) -> str:
        """What it says of itself over HTTP; empty if it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.read().decode()
        except OSError:
            return ""

    def gauges(self, name: str) -> list[float]:
        """The values of one metric over all its labels."""
        found = re.findall(rf"^fraudstream_{name}(?:\{{[^}}]*\}})? (\S+)$", self.page("/metrics"), re.MULTILINE)
        return [float(value) for value in found]

    @property
    def settled(self) -> bool:
        """A member, and none of its partitions is still opening."""
        page = self.page("/ready")
        if not page:
            return False
        told = msgspec.json.decode(page)
        if told.get("generation", -1) < 0 or told["group_changing"]:
            return False
        return not told["opening"] and not told["waiting"]

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def count(self, pattern: str) -> int:
        return len(re.findall(pattern, self.log_text()))


@dataclass
class Moment:
    """A fault that happened, and when every record that had been taken by then was answered.

    `went_on_ms`: by the broker's clock (`at_ms` is this machine's, on which the broker is, too), when records of each
    partition of `payments`, and answers in each of `decisions`, had begun to come again.
    """

    what: str
    at_s: float
    marks: dict[int, int]
    at_ms: int = 0
    silent: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    answered_s: float | None = None
    went_on_ms: int | None = None

    def heard(self, at_ms: int, *partitions: tuple[str, int]) -> None:
        """A record was answered for the first time."""
        if self.went_on_ms is None and at_ms > self.at_ms:
            self.silent.difference_update(partitions)
            if not self.silent:
                self.went_on_ms = at_ms

    @property
    def went_on_after_s(self) -> float | None:
        """None: not yet."""
        return None if self.went_on_ms is None else round((self.went_on_ms - self.at_ms) / 1000, 1)


class Watcher(threading.Thread):
    """Reads `decisions` beside the run: which records are answered, and since when. A plain consumer."""

    def __init__(self, client: dict[str, Any], prefix: str, topic_id: bytes) -> None:
        super().__init__(daemon=True, name="watcher")
        self._client, self._topic = client, prefix + "decisions"
        self._id = topic_id.hex().encode()
        self.lock = threading.Lock()
        self.expected: dict[int, list[int]] = defaultdict(list)
        self._next: dict[int, int] = defaultdict(int)
        self._answered: dict[int, set[int]] = defaultdict(set)
        self.engines: Counter[str] = Counter()
        self.refused: dict[Place, str] = {}
        self.answers = 0
        self.moments: list[Moment] = []
        self.parts: set[tuple[str, int]] = set()  # partitions of `payments` and `decisions` that answers were seen of
        self.awake_s = 0.0  # time that this process ran: a machine that stands still fails nobody
        self._looked_s = time.monotonic()
        self.progressed_s = 0.0
        self._closing = threading.Event()
        self.ready = threading.Event()

    def run(self) -> None:
        consumer = Consumer(
            {
                **self._client,
                "group.id": "chaos-watcher",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "reconnect.backoff.max.ms": 1_000,
            },
        )
        found = consumer.list_topics(self._topic, timeout=30).topics[self._topic].partitions
        consumer.assign([TopicPartition(self._topic, partition, 0) for partition in found])
        self.ready.set()
        while not self._closing.is_set():
            self.look()
            for message in consumer.consume(2_000, 0.05):
                if message.error() is not None:
                    continue
                origin = (dict(message.headers() or []).get("origin") or b"::").split(b":")
                if origin[0] != self._id:
                    continue
                self.take(int(origin[1]), int(origin[2]), message.partition() or 0, message.timestamp()[1])
                value = message.value() or b""
                self.engines[value.partition(b'"engine":')[2][:1].decode()] += 1
                if b'"refused"' in value:
                    answer = msgspec.json.decode(value)
                    if answer["outcome"] == "refused":
                        self.refused[int(origin[1]), int(origin[2])] = answer["cause"]
            self._advance()
        consumer.close()

    def take(self, partition: int, offset: int, decided_in: int, at_ms: int) -> None:
        """An answer to a record of `payments`, in a partition of `decisions`, at the broker's time."""
        self.answers += 1
        answered = self._answered[partition]
        if offset in answered:
            return
        answered.add(offset)
        parts = (("payments", partition), ("decisions", decided_in))
        with self.lock:
            self.parts.update(parts)
            for moment in self.moments:
                if moment.went_on_ms is None:
                    moment.heard(at_ms, *parts)

    def look(self) -> None:
        """Once in a while: the clock goes on by no more than that takes."""
        now_s = time.monotonic()
        self.awake_s += min(now_s - self._looked_s, STOOD_STILL_S)
        self._looked_s = now_s

    def _advance(self) -> None:
        with self.lock:
            now_s = self.awake_s  # under the lock: no moment that is marked lies after it
            for partition, offsets in self.expected.items():
                answered, at = self._answered[partition], self._next[partition]
                start = at
                while at < len(offsets) and offsets[at] in answered:
                    at += 1
                if at != start:
                    self._next[partition] = at
                    self.progressed_s = now_s
            for moment in self.moments:
                if moment.answered_s is None and all(
                    self._next[partition] >= mark for partition, mark in moment.marks.items()
                ):
                    moment.answered_s = now_s

    def mark(self, what: str, since_s: float | None = None) -> Moment:
        """A fault happens now, or has lasted since then (`time.monotonic`): what was sent meanwhile counts, too."""
        with self.lock:
            at_s = self.awake_s - (0.0 if since_s is None else time.monotonic() - since_s)
            marks = {p: len(offsets) for p, offsets in self.expected.items()}
            moment = Moment(what, at_s, marks, time.time_ns() // 1_000_000, {*self.parts})
            self.moments.append(moment)
            return moment

    @property
    def waiting(self) -> int:
        with self.lock:
            return sum(len(offsets) - self._next[partition] for partition, offsets in self.expected.items())

    def close(self) -> None:
        self._closing.set()
        self.join(10)


class Feed(threading.Thread):
    """Sends a load at a steady rate. Payments acknowledged are told to the watcher; while `waiting_max` of them have
    no answer, nothing is sent."""

    def __init__(
        self,
        client: dict[str, Any],
        prefix: str,
        load: Iterable[Wanted],
        watcher: Watcher,
        *,
        rate: float,
        waiting_max: float = WAITING_MAX,
    ) -> None:
        super().__init__(daemon=True, name="feed")
        self.client = client
        self._producer = Producer(
            {
                **client,
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 5,
                "compression.type": "lz4",
                "message.timeout.ms": 600_000,
                "reconnect.backoff.max.ms": 1_000,  # or there would be nothing to answer when a broker is back
            }
        )
        self._prefix, self._load, self._watcher, self._rate = prefix, load, watcher, rate
        self._waiting_max = waiting_max
        self.paused = threading.Event()
        self.failure: str = ""
        self.sent = 0
        self.causes: dict[Place, Cause] = {}
        self.repeats: set[Place] = set()

    def run(self) -> None:
        due_s = time.monotonic()
        for i, wanted in enumerate(self._load):
            while self.paused.is_set():
                self._producer.poll(0.05)
                due_s += 0.05
            if i % SENT_AT_ONCE == 0:
                while self._watcher.waiting >= self._waiting_max:
                    self._producer.poll(0.05)
                    due_s = max(due_s, time.monotonic())
                ahead_s = due_s - time.monotonic()
                due_s += SENT_AT_ONCE / self._rate
                self._producer.poll(0)
                if ahead_s > 0:
                    time.sleep(ahead_s)
            self._send(wanted)
        while self._producer.flush(1.0):
            pass

    def hurry(self, rate: float) -> None:
        """From now on at that rate: the faults are over, and the rest need not last for as long."""
        self._rate = rate

    def _send(self, wanted: Wanted) -> None:
        def delivered(error: KafkaError | None, message: Any) -> None:
            if error is not None:
                self.failure = error.str()
                return
            if wanted.topic != "payments":
                return
            place = (message.partition(), message.offset())
            with self._watcher.lock:
                self._watcher.expected[place[0]].append(place[1])
            self.sent += 1
            if wanted.cause is not None:
                self.causes[place] = wanted.cause
            elif wanted.repeat:
                self.repeats.add(place)

        where: dict[str, Any] = {"partition": 0} if wanted.topic == "labels" else {}
        while True:
            try:
                self._producer.produce(
                    self._prefix + wanted.topic, wanted.value, wanted.key or None, on_delivery=delivered, **where
                )
                return
            except BufferError:
                self._producer.poll(0.1)


@dataclass
class Deployment:
    """`directory`: for states, logs and snapshots. Workers get `settings` by the environment."""

    broker: AnyBroker
    directory: Path
    prefix: str
    seed: int
    snapshots: bool = True
    times: int | None = None  # how often the fault happens; None: by the number of payments
    environment: dict[str, str] = field(default_factory=dict)
    command: list[str] = field(default_factory=lambda: [*COMMAND])
    workers: list[WorkerProcess] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.client: dict[str, Any] = {"bootstrap.servers": self.broker.bootstrap}
        self.settings = Settings(bootstrap=self.broker.bootstrap, prefix=self.prefix, group=f"{self.prefix}g")
        self.snapshot_path = self.directory / "snapshots"
        self.watcher: Watcher
        self.feeds: list[Feed] = []
        self.cleanups: list[Callable[[], object]] = []
        # Journals as they were before a fault took records away: topic and partition → topic id, records.
        self.saved: dict[tuple[str, int], tuple[bytes, list[Record]]] = {}
        self.began_s = time.monotonic()
        self.prepare_rerun: Callable[[], None] | None = None  # in processes that run the journals again
        self.held_back = 0  # records that must stay unanswered: their journal is lost, and nothing is guessed

    def begin(self) -> None:
        """Topics, settings, and the eye on the answers."""
        limits = msgspec.structs.replace(LIMITS_DEFAULT, maturity_ms=5 * DAY_MS)
        policy = msgspec.structs.replace(DEFAULT_POLICY, mode="enforce")
        deadline_s = time.monotonic() + 60
        while True:
            try:
                initialise(
                    self.settings,
                    "earliest",
                    by="chaos",
                    why="trial",
                    partitions=PARTITIONS,
                    limits=limits,
                    policy=policy,
                )
                break
            except Exception:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(1)
        self.watcher = Watcher(self.client, self.prefix, self.topic_id("payments"))
        self.watcher.start()
        assert self.watcher.ready.wait(60)

    def topic_id(self, topic: str) -> bytes:
        name = self.prefix + topic
        return id_bytes(describe_topics(self.client, [name])[name].topic_id)

    def worker(self, name: str, *, start: bool = True, **environment: str) -> WorkerProcess:
        """A worker with a state directory of its own."""
        settings = {
            "PYTHONPATH": str(ROOT),
            "FRAUD_BOOTSTRAP": self.broker.bootstrap,
            "FRAUD_PREFIX": self.prefix,
            "FRAUD_GROUP": self.settings.group,
            "FRAUD_TICK_EVERY_S": "3",
            "FRAUD_SNAPSHOT_EVERY_S": "5",
            "FRAUD_SESSION_TIMEOUT_S": "6",
        }
        if self.snapshots:
            settings["FRAUD_SNAPSHOT_URL"] = self.snapshot_path.as_uri()
        made = WorkerProcess(
            name, [*self.command, "worker"], self.directory, {**settings, **self.environment, **environment}
        )
        self.workers.append(made)
        if start:
            made.start()
        return made

    def feed(self, load: Iterable[Wanted], *, rate: float, waiting_max: float = WAITING_MAX) -> Feed:
        feed = Feed(self.client, self.prefix, load, self.watcher, rate=rate, waiting_max=waiting_max)
        self.feeds.append(feed)
        feed.start()
        return feed

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 120.0) -> float:
        """Waits; the seconds that it took. Raises `ChaosError`."""
        began_s = self.watcher.awake_s
        while not condition():
            if self.watcher.awake_s - began_s > timeout_s:
                raise ChaosError(f"not within {timeout_s:.0f} s: {what}")
            time.sleep(0.05)
        return self.watcher.awake_s - began_s

    def until_answering(self, timeout_s: float = 120.0) -> None:
        before = self.watcher.answers
        self.until(lambda: self.watcher.answers > before, "no new answers", timeout_s)

    def times_or(self, default: int) -> int:
        """How often the fault is to happen."""
        return default if self.times is None else self.times

    def say(self, text: str) -> None:
        """A line of progress."""
        sent = sum(feed.sent for feed in self.feeds)
        at_s = time.monotonic() - self.began_s
        print(f"{at_s:7.1f} s  {text}; sent {sent:,}, waiting {self.watcher.waiting:,}", file=sys.stderr, flush=True)

    def until_recovered(self, moment: Moment) -> None:
        """All that had been sent by then is answered."""
        while moment.answered_s is None:
            time.sleep(0.05)
            self._look()
        self.say(f"{moment.what}: answered after {moment.answered_s - moment.at_s:.1f} s")

    def until_going_on(self, moment: Moment) -> float:
        """Seconds from then to the first new answer of each partition, by the broker's clock."""
        while moment.went_on_after_s is None:
            if not self.watcher.waiting and not any(feed.is_alive() for feed in self.feeds):
                raise ChaosError(f"{moment.what}: nothing was left to answer, so nobody can say whether it goes on")
            time.sleep(0.05)
            self._look()
        self.say(f"{moment.what}: goes on after {moment.went_on_after_s} s")
        return moment.went_on_after_s

    def until_answered(self) -> None:
        """All that was sent is answered. Raises `ChaosError` if nothing moves for `ANSWER_S_MAX`."""
        for feed in self.feeds:
            while feed.is_alive():
                time.sleep(0.1)
                self._look()
            if feed.failure:
                raise ChaosError(f"the load could not be sent: {feed.failure}")
        while self.watcher.waiting > self.held_back:
            time.sleep(0.1)
            self._look()

    def _look(self) -> None:
        idle_s = self.watcher.awake_s - self.watcher.progressed_s
        if idle_s > ANSWER_S_MAX:
            raise ChaosError(f"{self.watcher.waiting} records wait, and none was answered for {idle_s:.0f} s")

    def recovery_seconds(self) -> float:
        """The longest time from a fault until all that had been taken by then was answered."""
        return round(
            max((m.answered_s - m.at_s for m in self.watcher.moments if m.answered_s is not None), default=0.0), 1
        )

    def longest_silence_s(self) -> float:
        """From a fault to new answers of every partition, at most. Where faults follow on each other sooner than that,
        from the first of them; a fault after which there was no load counts nothing."""
        return max((m.went_on_after_s for m in self.watcher.moments if m.went_on_after_s is not None), default=0.0)

    def settle(self) -> None:
        """Until every worker that lives has opened what it owns."""
        self.until(lambda: all(worker.settled for worker in self.workers if worker.alive), "partitions are open", 180)

    def stop_workers(self) -> list[int]:
        return [worker.terminate() for worker in self.workers if worker.alive]

    def logged(self, pattern: str) -> int:
        return sum(worker.count(pattern) for worker in self.workers)

    def reapplied(self) -> int:
        """Records that were applied again after their offset had been committed: state restored from before it."""
        total = 0
        for worker in self.workers:
            for start, group in re.findall(r"from offset (\d+) of \[\d+, \d+\), group at (\d+)", worker.log_text()):
                total += max(0, int(group) - int(start))
        return total

    def refused(self) -> int:
        return len(self.watcher.refused)

    def wrong_refusals(self) -> list[str]:
        """Records that should have been refused, for that cause, and were not; or the other way round."""
        wanted = {place: str(cause.value) for feed in self.feeds for place, cause in feed.causes.items()}
        found = self.watcher.refused
        return [
            f"payments[{place[0]}]@{place[1]}: {found.get(place)} instead of {wanted.get(place)}"
            for place in sorted(wanted.keys() | found.keys())
            if found.get(place) != wanted.get(place)
        ]

    def close(self) -> None:
        try:
            self._close()
        finally:
            for clean in self.cleanups:
                clean()

    def _close(self) -> None:
        for worker in self.workers:
            if worker.alive:
                with contextlib.suppress(ProcessLookupError):
                    worker.thaw()
                worker.kill()
        if hasattr(self, "watcher"):
            self.watcher.close()


def random_gaps(rng: random.Random, low_s: float, high_s: float) -> Iterator[float]:
    while True:
        yield rng.uniform(low_s, high_s)
