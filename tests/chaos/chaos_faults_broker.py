"""Faults of the brokers: a leader of three is killed, all of them, and one whose disk is full."""

import os
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from chaos_deployment import ChaosError, Deployment
from chaos_faults import MANY, RATE_MAX, Evidence, alive, fault, in_time, one_worker_answering, rate_for, two_workers
from chaos_load import Load
from confluent_kafka.admin import AdminClient

from stream.broker.cluster import EmbeddedCluster
from stream.broker.embedded import EmbeddedBroker

SMALL_MB = 600
LOG_BYTES = 3_000  # a payment leaves less than that on all topics
ASK_S = 2.0
COMPLAINTS = "is tried again after|fetching goes on after|topics cannot be looked at|asking for"


def THREE(directory: Path, _payments: int) -> EmbeddedCluster:  # noqa: N802  (a constant, but for its arguments)
    return EmbeddedCluster(directory / "kafka")


@contextmanager
def small_disk(directory: Path, megabytes: int) -> Generator[Path]:
    """A directory on a tmpfs of that size."""
    if os.geteuid() != 0:
        raise ChaosError("a small tmpfs needs root here")
    mount = directory / "small"
    mount.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(mount)], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=False)


def fill(filler: Path) -> None:
    """Leaves not a byte on that disk."""
    with open(filler, "wb", buffering=0) as out:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    out.write(bytes(size))
            except OSError:
                continue


@contextmanager
def on_a_small_disk(directory: Path, payments: int) -> Generator[EmbeddedBroker]:
    megabytes = SMALL_MB + payments * LOG_BYTES // 1_000_000
    with small_disk(directory, megabytes) as mount, EmbeddedBroker(mount / "kafka") as broker:
        yield broker


def leader_of(admin: AdminClient, name: str) -> int | None:
    """The node that leads partition 0; None while nobody does."""
    leader = admin.list_topics(name, timeout=ASK_S).topics[name].partitions[0].leader
    return None if leader < 0 else leader


def in_sync(admin: AdminClient, prefix: str) -> int:
    """The least number of replicas in sync, over all topics of ours."""
    topics = admin.list_topics(timeout=ASK_S).topics
    return min(len(p.isrs) for name in topics if name.startswith(prefix) for p in topics[name].partitions.values())


def quietly(look: Callable[[], bool]) -> Callable[[], bool]:
    """False where the brokers do not answer."""

    def looked() -> bool:
        try:
            return look()
        except Exception:
            return False

    return looked


@fault("leader-kill", THREE)
def leader_kill(deployment: Deployment, payments: int) -> Evidence:
    """Three brokers, replication 3, two in sync at least. SIGKILL the leader of a journal; then all three at once, for
    15 s (60 s in runs of 100,000 payments or more)."""
    cluster = deployment.broker
    assert isinstance(cluster, EmbeddedCluster)
    times = deployment.times_or(min(5, max(2, payments // 100_000)))
    workers = two_workers(deployment)
    down_s = 60.0 if payments >= MANY else 15.0
    # To the end of the last; what is left comes faster then.
    feed = deployment.feed(Load(payments, deployment.seed), rate=rate_for(payments, 75.0 * times + 90.0 + down_s))
    deployment.until_answering()
    admin = AdminClient({**deployment.client, "reconnect.backoff.max.ms": 500, "log_level": 0})
    name = f"{deployment.prefix}terminal-journal"
    whole = quietly(lambda: in_sync(admin, deployment.prefix) == len(cluster.nodes))
    led_after_s: list[float] = []
    went_on_s: list[float] = []
    for _ in range(times):
        deployment.until(whole, "all replicas in sync", 120)
        time.sleep(deployment.rng.uniform(1.0, 3.0))
        leader = leader_of(admin, name)
        if leader is None:
            raise ChaosError("nobody leads")
        moment = deployment.watcher.mark(f"kill {leader}")
        cluster.nodes[leader].kill()
        another = quietly(lambda leader=leader: leader_of(admin, name) not in (None, leader))
        led_after_s.append(round(deployment.until(another, "another leads", 120), 1))
        went_on_s.append(deployment.until_going_on(deployment.watcher.mark("another leads")))
        time.sleep(deployment.rng.uniform(5.0, 10.0))
        deployment.until_recovered(moment)  # by the two that are left
        cluster.nodes[leader].start()
    deployment.until(whole, "all replicas in sync", 120)
    began_s = time.monotonic()
    cluster.kill()
    time.sleep(down_s)
    cluster.start()
    deployment.until(quietly(lambda: leader_of(admin, name) is not None), "somebody leads", 120)
    away_s = time.monotonic() - began_s
    back = deployment.watcher.mark("a leader is back")
    went_on_s.append(deployment.until_going_on(back))
    deployment.until_recovered(back)
    feed.hurry(RATE_MAX)
    feed.join()
    for worker in workers:
        alive(worker)
    felt = deployment.logged(COMPLAINTS)
    return {
        "leaders_killed": times,
        "another_led_after_s_max": max(led_after_s),
        "goes_on_after_s_max": in_time(went_on_s),
        "all_away_s": round(away_s, 1),
        "complaints": felt,
        "bit": felt > 0,
    }


@fault("broker-disk-full", on_a_small_disk)
def broker_disk_full(deployment: Deployment, payments: int) -> Evidence:
    """The broker's disk fills up, so it halts; there is room again, and it is started."""
    broker = deployment.broker
    assert isinstance(broker, EmbeddedBroker)
    worker, feed = one_worker_answering(deployment, payments, 60.0)
    time.sleep(deployment.rng.uniform(3.0, 6.0))
    complaints = worker.count(COMPLAINTS)
    filler = broker.home.directory.parent / "filler"
    fill(filler)
    halted_s = deployment.until(lambda: not broker.running, "the broker halts", 90)
    said_s = deployment.until(lambda: worker.count(COMPLAINTS) > complaints, "the worker says so", 30)
    time.sleep(5)
    filler.unlink()
    broker.kill()  # what is left of it
    broker.start()
    back = deployment.watcher.mark("the broker is back")
    went_on_s = deployment.until_going_on(back)
    deployment.until_recovered(back)
    feed.join()
    alive(worker)
    return {
        "halted_after_s": round(halted_s, 1),
        "said_after_s": round(said_s, 1),
        "goes_on_after_s_max": in_time([went_on_s]),
        "bit": True,
    }
