"""Faults of the log, of its operators and of the code: what a broker or a worker suffers without being killed."""

import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chaos_check import furthest, read_topic
from chaos_deployment import COMMAND, ROOT, ChaosError, Deployment, Feed, WorkerProcess
from chaos_faults import AGAIN, MANY, Evidence, alive, fault, one_worker, rate_for, two_workers, well_under_way
from chaos_load import Load, Mix, Wanted
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from stream.broker.topic_admin import create_topics, delete_topics
from topics.catalogue import catalogue

FAULTY = [sys.executable, str(Path(__file__).parent / "worker_with_faults.py")]
PARTITIONS = 2
RAISE_AMOUNT = 13_131_313


def fraud(deployment: Deployment, *words: str) -> str:
    """Runs a command as an operator would."""
    done = subprocess.run(
        [*COMMAND, *words, "--bootstrap", deployment.broker.bootstrap, "--prefix", deployment.prefix],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        raise ChaosError(f"fraud {' '.join(words)}: {done.stderr}")
    return done.stdout


@fault("journal-trimmed")
def journal_trimmed(deployment: Deployment, payments: int) -> Evidence:
    """An old backup of the state comes back, and the journal does not reach back to it any more."""
    deployment.snapshots = False
    worker = one_worker(deployment)
    deployment.feed(Load(payments // 3, deployment.seed), rate=rate_for(payments, 15.0))
    deployment.until_answered()
    worker.terminate()
    old, new = deployment.directory / "old", deployment.directory / "new"
    shutil.copytree(worker.state, old)
    worker.start()
    deployment.feed(Load(payments // 3, deployment.seed + 1), rate=rate_for(payments, 15.0))
    deployment.until_answered()
    worker.terminate()
    shutil.move(worker.state, new)
    shutil.copytree(old, worker.state)
    name = f"{deployment.prefix}terminal-journal"
    records = read_topic(deployment.client, name)
    best = furthest("terminal-journal", 0, [new])
    if best is None:
        raise ChaosError("no state is left of terminal-journal[0]")
    deployment.saved["terminal-journal", 0] = (deployment.topic_id("terminal-journal"), records[0])
    cut = TopicPartition(name, 0, best[0])  # what the newer state has read
    admin = AdminClient(deployment.client)  # a name of its own: without one it is gone before its futures are done
    for done in admin.delete_records([cut]).values():
        done.result(60)
    worker.start()
    deployment.until(lambda: worker.count(r"terminal-journal\[0\] STOPPED.*the log begins at") > 0, "it refuses", 60)
    before = deployment.watcher.answers
    third = Load(payments // 3, deployment.seed + 2)
    deployment.feed(third, rate=rate_for(payments, 15.0), waiting_max=math.inf).join()
    deployment.until(lambda: deployment.watcher.answers > before, "the other partition goes on", 60)
    deployment.until(lambda: worker.count(r"terminal-journal\[0\] is STOPPED") > 0, "it says so again", 60)
    held = deployment.watcher.waiting
    others = deployment.watcher.answers - before
    worker.terminate()
    # What the message tells the operator to do: a newer state.
    shutil.rmtree(worker.state / "terminal-journal" / "0")
    shutil.copytree(new / "terminal-journal" / "0", worker.state / "terminal-journal" / "0")
    deployment.watcher.mark("a newer state")
    worker.start()
    return {
        "records_trimmed": best[0],
        "held_back": held,
        "others_answered": others,
        "bit": held > 0 and others > 0,
    }


@fault("topic-recreated")
def topic_recreated(deployment: Deployment, payments: int) -> Evidence:
    """The terminal journal is deleted and made again, under a running worker: nothing is decided from it."""
    worker = one_worker(deployment)
    deployment.feed(Load(payments // 2, deployment.seed), rate=rate_for(payments, 15.0))
    deployment.until_answered()
    topic_id = deployment.topic_id("terminal-journal")
    name = f"{deployment.prefix}terminal-journal"
    for partition, records in read_topic(deployment.client, name).items():
        deployment.saved["terminal-journal", partition] = (topic_id, records)
    wanted = catalogue(deployment.prefix, PARTITIONS)["terminal-journal"]
    delete_topics(deployment.client, [name])
    deadline_s = time.monotonic() + 30
    while not create_topics(deployment.client, [wanted]).created:
        assert time.monotonic() < deadline_s
        time.sleep(0.5)
    stopped_s = deployment.until(
        lambda: worker.count(r"terminal-journal\[\d\] STOPPED") >= PARTITIONS, "both partitions stop", 90
    )
    clean = Mix(poison=0.0, repeats=0.0, disorder=0.0)
    second = Load(payments // 2, deployment.seed + 1, clean)
    feed = deployment.feed(second, rate=rate_for(payments, 15.0), waiting_max=math.inf)
    feed.join()
    worker.terminate()
    worker.start()
    deployment.until(lambda: worker.count("was deleted and made again") >= PARTITIONS, "it refuses again", 60)
    time.sleep(5)
    held = deployment.watcher.waiting
    deployment.held_back = held
    return {
        "stopped_after_s": round(stopped_s, 1),
        "held_back": held,
        "refusals": worker.count("was deleted and made again"),
        "bit": held == feed.sent,
    }


@fault("group-offsets-reset")
def group_offsets_reset(deployment: Deployment, payments: int) -> Evidence:
    """An operator sets the group's offsets to the end, then to the beginning; local state is lost as well."""
    worker = one_worker(deployment)
    evidence: Evidence = {"bit": AGAIN}
    deployment.feed(Load(payments, deployment.seed), rate=rate_for(payments, 60.0))
    deployment.until_answering()
    for where in ("end", "beginning"):
        deployment.until(lambda: any(deployment.snapshot_path.glob("terminal-journal/*/manifests/*")), "a snapshot")
        time.sleep(deployment.rng.uniform(6.0, 8.0))
        killed_s = worker.kill()
        reset(deployment, where)
        shutil.rmtree(worker.state)
        for manifests in deployment.snapshot_path.glob("*-journal/*/manifests"):
            for newer in sorted(manifests.iterdir())[1:]:  # so that much is applied again
                newer.unlink()
        moment = deployment.watcher.mark(f"reset to the {where}", killed_s)
        worker.start()
        deployment.until_recovered(moment)
        evidence[f"reset_to_the_{where}"] = True
    return evidence


def reset(deployment: Deployment, where: str) -> None:
    """What `kafka-consumer-groups --reset-offsets` does."""
    admin = AdminClient(deployment.client)
    group = deployment.settings.group
    listed = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result(60)
    wanted: list[TopicPartition] = []
    for tp in listed.topic_partitions:
        records = read_topic(deployment.client, tp.topic)[tp.partition]
        end = records[-1].offset + 1 if records else 0
        wanted.append(TopicPartition(tp.topic, tp.partition, end if where == "end" else 0))
    deadline_s = time.monotonic() + 60
    while True:  # until the group has noticed that its member is gone
        try:
            done = admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, wanted)])[group].result(60)
            assert all(tp.error is None for tp in done.topic_partitions), done
            return
        except Exception:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(1)


class TransactionalFeed(Feed):
    """Sends in transactions, each with another codec; one in three is aborted."""

    CODECS = ("lz4", "zstd", "snappy", "gzip")

    def __init__(self, *arguments: Any, size: int, **options: Any) -> None:
        """`size`: payments in a transaction."""
        super().__init__(*arguments, **options)
        self._size = size
        self.aborted = 0
        self.committed = 0

    def run(self) -> None:
        producers = [
            Producer(
                {
                    **self.client,
                    "transactional.id": f"{self._prefix}{codec}",
                    "compression.type": codec,
                    "linger.ms": 5,
                    "transaction.timeout.ms": 120_000,
                }
            )
            for codec in self.CODECS
        ]
        for producer in producers:
            producer.init_transactions(60)
        batch: list[Wanted] = []
        number = 0
        for wanted in self._load:
            if wanted.topic != "payments":
                continue
            batch.append(wanted)
            if len(batch) == self._size:
                while self._watcher.waiting >= self._waiting_max:
                    time.sleep(0.05)
                self._transact(producers[number % len(producers)], batch, abort=number % 3 == 2)
                number += 1
                time.sleep(self._size / self._rate)
                batch = []
        if batch:
            self._transact(producers[0], batch, abort=False)

    def _transact(self, producer: Producer, batch: list[Wanted], *, abort: bool) -> None:
        places: list[tuple[int, int]] = []

        def delivered(error: KafkaError | None, message: Any) -> None:
            if error is None:
                places.append((message.partition(), message.offset()))
            else:
                self.failure = error.str()

        producer.begin_transaction()
        for wanted in batch:
            producer.produce(f"{self._prefix}payments", wanted.value, wanted.key, on_delivery=delivered)
        producer.flush(60)
        if abort:
            producer.abort_transaction(60)
            self.aborted += len(places)
            return
        producer.commit_transaction(60)
        self.committed += len(places)
        self.sent += len(places)
        with self._watcher.lock:
            for partition, offset in places:
                self._watcher.expected[partition].append(offset)


def lag_records(worker: WorkerProcess) -> float:
    """The sum over all partitions, as its metrics say; infinite if they do not."""
    found = worker.gauges("lag_records")
    return sum(found) if found else float("inf")


@fault("compressions")
def compressions(deployment: Deployment, payments: int) -> Evidence:
    """Producers with transactions, committed and aborted, in lz4, zstd, snappy and gzip; a SIGKILL in between."""
    worker = one_worker(deployment)
    feed = TransactionalFeed(
        deployment.client,
        deployment.prefix,
        Load(payments, deployment.seed),
        deployment.watcher,
        rate=rate_for(payments, 20.0),
        size=1_000 if payments >= MANY else 200,
    )
    deployment.feeds.append(feed)
    feed.start()
    deployment.until_answering()
    well_under_way(deployment, payments // 2)  # a third of what is sent is aborted
    time.sleep(deployment.rng.uniform(2.0, 6.0))
    deployment.watcher.mark("kill")
    worker.kill()
    worker.start()
    deployment.until_answered()
    deployment.until(lambda: lag_records(worker) == 0, "no lag is left", 60)
    return {
        "committed": feed.committed,
        "aborted": feed.aborted,
        "codecs": list(TransactionalFeed.CODECS),
        "lag_left": 0,
        "bit": feed.aborted > 0 and feed.committed > 0,
    }


@fault("apply-raises")
def apply_raises(deployment: Deployment, payments: int) -> Evidence:
    """A payment on which the terminal stage raises: its partition stops, until an operator skips the record."""
    deployment.command = FAULTY
    worker = one_worker(deployment, CHAOS_RAISE_AMOUNT=str(RAISE_AMOUNT))
    deployment.feed(Load(payments // 2, deployment.seed), rate=rate_for(payments, 15.0))
    deployment.until_answering()
    bomb = (
        f'{{"payment_id":"bomb","event_time":1750000000001,"account_id":"a1","amount":{RAISE_AMOUNT},'
        '"currency":"EUR","terminal_id":"t1"}'
    )
    deployment.feed([Wanted("payments", b"a1", bomb.encode())], rate=100)
    deployment.until(lambda: worker.count(r"terminal-journal\[\d\] STOPPED") > 0, "the partition stops", 60)
    before = deployment.watcher.answers
    second = Load(payments // 2, deployment.seed + 1)
    deployment.feed(second, rate=rate_for(payments, 15.0), waiting_max=math.inf).join()
    deployment.until(lambda: worker.count(r"terminal-journal\[\d\] is STOPPED") > 0, "it says so again", 60)
    others = deployment.watcher.answers - before
    held = deployment.watcher.waiting
    found = re.search(r"STOPPED.*`fraud skip terminal-journal (\d) (\d+) ", worker.log_text())
    if found is None:
        raise ChaosError("the log does not say what to skip")
    worker.terminate()  # stopped it must stay, over a restart too
    stops = worker.count(r"terminal-journal\[\d\] STOPPED")
    worker.start()
    deployment.until(lambda: worker.count(r"terminal-journal\[\d\] STOPPED") > stops, "it stops again", 60)
    alive(worker)
    refused = False
    try:
        other = str(int(found[2]) - 1)
        fraud(deployment, "skip", "terminal-journal", found[1], other, "--by", "chaos", "--why", "a slip")
    except ChaosError:
        refused = True
    deployment.watcher.mark("fraud skip")
    fraud(deployment, "skip", "terminal-journal", found[1], found[2], "--by", "chaos", "--why", "trial")
    deployment.until_answered()
    skipped = sum(cause == "skipped" for cause in deployment.watcher.refused.values())
    return {
        "held_back": held,
        "others_answered": others,
        "answered_as_skipped": skipped,
        "another_skip_refused": refused,
        "bit": held > 0 and others > 0 and skipped > 0 and refused,
    }


@fault("clock-wrong")
def clock_wrong(deployment: Deployment, payments: int) -> Evidence:
    """One worker's clock is an hour ahead, then an hour behind, and partitions move between it and another."""
    deployment.command = FAULTY
    right, wrong = deployment.worker("right"), deployment.worker("wrong", start=False)
    deployment.settle()
    deployment.feed(Load(payments, deployment.seed), rate=rate_for(payments, 25.0))
    deployment.until_answering()
    off: list[int] = []
    for seconds in (3600, -3600):
        before = wrong.count(r"added [1-9]")
        wrong.start(CHAOS_CLOCK_S=str(seconds))
        deployment.until(lambda before=before: wrong.count(r"added [1-9]") > before, "a member", 60)
        time.sleep(3)
        moment = deployment.watcher.mark("kill the other")
        right.kill()  # so that all is done under the wrong clock
        deployment.until_recovered(moment)
        time.sleep(6)
        right.start()
        deployment.until(lambda: right.log_text().count("added") > 0, "a member")
        stamps = re.findall(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ ", wrong.log_text(), re.MULTILINE)
        off.append(round(time.mktime(time.strptime(stamps[-1], "%Y-%m-%d %H:%M:%S")) - time.time()))
        moment = deployment.watcher.mark("kill the wrong one")
        wrong.kill()
        deployment.until_recovered(moment)
    return {"clock_off_s": off, "bit": off[0] > 3000 and off[1] < -3000}


POINTS = (
    "step.before_apply",
    "step.after_apply",
    "checkpoint.after_freeze",
    "ack.before_count",
    "ack.after_count",
    "restore.after_read",
    "rebalance.before_start",
)
WORKER_POINTS = (
    "checkpoint.before_write",
    "checkpoint.after_write",
    "checkpoint.before_commit",
    "checkpoint.after_commit",
)


POINT_S = 25.0  # a start, and some checkpoints after it


def crash_at_points(
    deployment: Deployment, payments: int, points: list[str], *, begun: Callable[[], bool] = lambda: True
) -> Evidence:
    """Every point must be reached while the load lasts: without it nothing changes, and nothing is written.

    `begun`: what there must be before the first."""
    deployment.command = FAULTY
    worker = one_worker(deployment)
    rate = rate_for(payments, POINT_S * len(points))
    deployment.feed(Load(payments, deployment.seed), rate=rate)
    deployment.until_answering()
    deployment.until(begun, "what must come before the first crash", 300)
    fired: list[str] = []

    def ended() -> bool:
        if not deployment.feeds[-1].is_alive():
            deployment.feed(Load(int(rate * POINT_S), deployment.seed + len(deployment.feeds)), rate=rate)
        return not worker.alive

    worker.kill()
    for point in points:
        worker.start(CHAOS_CRASH=point)
        deployment.watcher.mark(point)
        try:
            deployment.until(ended, point, 60)
            fired.append(point)
            deployment.say(f"ended at {point}")
        except ChaosError:
            deployment.say(f"did not come to {point}")
            worker.kill()
    worker.start()
    missed = sorted(set(points) - set(fired))
    if missed:  # there was time, and a load to the end
        raise ChaosError(f"points that were never reached: {', '.join(missed)}")
    return {"crashed_at": len(fired), "bit": bool(fired)}


@fault("learner-kill")
def learner_kill(deployment: Deployment, payments: int) -> Evidence:
    """The process is killed at every point that the learner's partition passes; versions go on."""
    points = [f"{point}:{deployment.rng.randint(1, 3)}:examples" for point in POINTS[:5]]
    points += [f"{point}:1:examples" for point in POINTS[5:]]

    def versions() -> int:
        control = read_topic(deployment.client, f"{deployment.prefix}control")[0]
        return sum(b'"kind":"model"' in (record.value or b"") for record in control)

    def sending() -> bool:
        """Until it has bins the learner sends nothing, and there is nothing to acknowledge."""
        time.sleep(1)
        return versions() > 0

    evidence = crash_at_points(deployment, payments, points, begun=sending)
    deployment.until_answered()
    return {**evidence, "model_versions": versions(), "bit": evidence["bit"] and versions() > 0}


@fault("crash-points")
def crash_points(deployment: Deployment, payments: int) -> Evidence:
    """The process is killed at each named point of the code, in any partition."""
    points = [f"{point}:{deployment.rng.randint(1, 12)}" for point in POINTS[:5]]
    points += [f"{point}:{deployment.rng.randint(1, 4)}" for point in WORKER_POINTS]  # about once a second
    return crash_at_points(deployment, payments, points)


@fault("stop-two")
def stop_two(deployment: Deployment, payments: int) -> Evidence:
    """Both workers are frozen past the session timeout at once, and thawed one after the other."""
    workers: list[WorkerProcess] = two_workers(deployment)
    deployment.feed(Load(payments, deployment.seed), rate=rate_for(payments, 30.0))
    deployment.until_answering()
    well_under_way(deployment, payments)
    moment = deployment.watcher.mark("stop both")
    for worker in workers:
        worker.freeze()
    time.sleep(9)
    for worker in workers:
        worker.thaw()
        time.sleep(2)
    deployment.until_recovered(moment)
    lost = deployment.logged("lost [1-9]")
    return {"losses": lost, "bit": lost > 0}
