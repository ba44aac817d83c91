"""The faults. Each hurts a deployment under load, and says how it knows that the fault has bitten.

`bit` in the evidence: True, False, or `AGAIN`: it has bitten if anything was sent or applied twice.
"""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from chaos_deployment import AnyBroker, ChaosError, Deployment, Feed, WorkerProcess
from chaos_load import Load, Mix

from stream.broker.embedded import EmbeddedBroker

Evidence = dict[str, Any]
Fault = Callable[[Deployment, int], Evidence]
Brokers = AbstractContextManager[AnyBroker]
FAULTS: dict[str, Fault] = {}
BROKERS: dict[str, Callable[[Path, int], Brokers]] = {}
NOT_RUN_AGAIN: set[str] = set()
AGAIN = "again"
HELD_S_MAX = 10.0
MANY = 100_000  # payments: from there on a run is a long one


def one_broker(_directory: Path, _payments: int) -> Brokers:
    return EmbeddedBroker()


def fault(
    name: str, brokers: Callable[[Path, int], Brokers] = one_broker, *, rerun: bool = True
) -> Callable[[Fault], Fault]:
    """`brokers`: makes those on which it is tried, given a directory and the number of payments. `rerun`: the journals
    are run again off-line."""

    def register(function: Fault) -> Fault:
        FAULTS[name] = function
        BROKERS[name] = brokers
        if not rerun:
            NOT_RUN_AGAIN.add(name)
        return function

    return register


RATE_MAX = 8_000.0  # of brokers, workers and this process together, on two cores, with something to spare


def rate_for(payments: int, seconds: float, most: float = RATE_MAX) -> float:
    """Payments a second, so that the load lasts for about `seconds`, or longer."""
    return max(50.0, min(most, payments / seconds))


def well_under_way(deployment: Deployment, payments: int) -> None:
    """A third of the load has been sent: there is state to lose, and more to come."""
    deployment.until(lambda: deployment.feeds[-1].sent >= payments // 3, "a third of the load", 900)


def two_workers(deployment: Deployment) -> list[WorkerProcess]:
    """Two members that share the partitions."""
    workers = [deployment.worker("a"), deployment.worker("b")]
    deployment.until(lambda: all(worker.count(r"added [1-9]\d* partitions") for worker in workers), "two members", 180)
    deployment.settle()
    return workers


def one_worker(deployment: Deployment, **environment: Any) -> WorkerProcess:
    """A member that owns everything, before the load begins."""
    worker = deployment.worker("a", **environment)
    deployment.settle()
    return worker


def one_worker_answering(deployment: Deployment, payments: int, load_s: float) -> tuple[WorkerProcess, Feed]:
    """One worker, and a load of about `load_s` seconds that it has begun to answer."""
    worker = one_worker(deployment)
    feed = deployment.feed(Load(payments, deployment.seed), rate=rate_for(payments, load_s))
    deployment.until_answering()
    return worker, feed


def alive(worker: WorkerProcess) -> None:
    if not worker.alive:
        raise ChaosError(f"worker {worker.name} ended by itself: {worker.log_text()[-2_000:]}")


KILL_S = 25.0  # at most, from one to the next: the load must outlast the last; what is left comes faster then


@fault("kill")
def kill(deployment: Deployment, payments: int) -> Evidence:
    """SIGKILL one of two workers at random moments, and start it again."""
    times = deployment.times_or(min(50, max(3, payments // 20_000)))
    workers = two_workers(deployment)
    feed = deployment.feed(Load(payments, deployment.seed), rate=rate_for(payments, KILL_S * times))
    deployment.until_answering()
    under_load = 0
    for number in range(1, times + 1):
        time.sleep(deployment.rng.uniform(1.0, 6.0))
        victim = deployment.rng.choice(workers)
        alive(victim)
        moment = deployment.watcher.mark(f"kill {number} of {times}, {victim.name}")
        victim.kill()
        time.sleep(deployment.rng.uniform(0.0, 8.0))
        victim.start()
        deployment.until_recovered(moment)
        under_load += feed.is_alive()
    feed.hurry(RATE_MAX)
    feed.join()
    return {
        "kills": times,
        "under_load": under_load,
        "goes_on_after_s_max": deployment.longest_silence_s(),
        "bit": AGAIN,
    }


@fault("stop")
def stop(deployment: Deployment, payments: int) -> Evidence:
    """SIGSTOP past the session timeout: its partitions move; then SIGCONT, and the zombie must stop."""
    times = deployment.times_or(min(20, max(2, payments // 50_000)))
    workers = two_workers(deployment)
    feed = deployment.feed(Load(payments, deployment.seed), rate=rate_for(payments, 25.0 * times))
    deployment.until_answering()
    moved = 0
    for number in range(1, times + 1):
        time.sleep(deployment.rng.uniform(1.0, 4.0))
        victim = deployment.rng.choice(workers)
        other = workers[1 - workers.index(victim)]
        alive(victim)
        before = other.count(r"added [1-9]\d* partitions")
        lost = victim.count("lost [1-9]")
        moment = deployment.watcher.mark(f"stop {number} of {times}, {victim.name}")
        victim.freeze()
        deployment.until(
            lambda other=other, before=before: other.count(r"added [1-9]\d* partitions") > before, "moved", 90
        )
        moved += 1
        time.sleep(deployment.rng.uniform(0.0, 4.0))
        victim.thaw()
        deployment.until(lambda victim=victim, lost=lost: victim.count("lost [1-9]") > lost, "the zombie stops", 60)
        deployment.until_recovered(moment)
    feed.join()
    return {
        "stops": times,
        "partitions_moved": moved,
        "goes_on_after_s_max": deployment.longest_silence_s(),
        "bit": AGAIN,
    }


GOES_ON_S_MAX = 15.0


def in_time(went_on_s: list[float]) -> float:
    """The longest time from the return of a leader to new answers of every partition, which has a bound."""
    if max(went_on_s) > GOES_ON_S_MAX:
        raise ChaosError(f"a leader is back, and new answers come only after {went_on_s} s")
    return max(went_on_s)


@fault("broker-kill")
def broker_kill(deployment: Deployment, payments: int) -> Evidence:
    """SIGKILL the only broker under load, away for 5 to 15 s (60 s in runs of 100,000 payments or more); again on the
    same data. Workers stay."""
    times = deployment.times_or(min(5, max(2, payments // 50_000)))
    workers = two_workers(deployment)
    long = payments >= MANY
    feed = deployment.feed(Load(payments, deployment.seed), rate=rate_for(payments, (80.0 if long else 30.0) * times))
    deployment.until_answering()
    away_s = 0.0
    went_on_s: list[float] = []
    for _ in range(times):
        time.sleep(deployment.rng.uniform(2.0, 5.0))
        deployment.broker.kill()
        began_s = time.monotonic()
        time.sleep(60.0 if long else deployment.rng.uniform(5.0, 15.0))
        deployment.broker.start()
        away_s += time.monotonic() - began_s
        back = deployment.watcher.mark("the broker is back")
        went_on_s.append(deployment.until_going_on(back))
        deployment.until_recovered(back)
    feed.hurry(RATE_MAX)
    feed.join()
    for worker in workers:
        alive(worker)
    felt = deployment.logged("is tried again after|fetching goes on after|topics cannot be looked at")
    return {
        "broker_kills": times,
        "away_s": round(away_s, 1),
        "goes_on_after_s_max": in_time(went_on_s),
        "complaints": felt,
        "bit": felt > 0,
    }


@fault("join-leave")
def join_leave(deployment: Deployment, payments: int) -> Evidence:
    """Workers join and leave (SIGTERM) every few seconds, in runs of 600,000 payments or more for five minutes."""
    times = deployment.times_or(min(60, max(4, payments // 10_000)))
    steady = deployment.worker("steady")
    deployment.settle()
    feed = deployment.feed(Load(payments, deployment.seed), rate=rate_for(payments, 6.0 * times))
    deployment.until_answering()
    guests = [deployment.worker("guest-1", start=False), deployment.worker("guest-2", start=False)]
    for _ in range(times):
        guest = deployment.rng.choice(guests)
        deployment.watcher.mark("join or leave")
        if guest.alive:
            code = guest.terminate()
            if code:
                raise ChaosError(f"SIGTERM ended in {code}: {guest.log_text()[-2_000:]}")
        else:
            guest.start()
        time.sleep(deployment.rng.uniform(2.0, 8.0))
    feed.join()
    alive(steady)
    moved = steady.count("lost [1-9]")
    held_s = [float(found) for found in re.findall(r"kept [1-9].* held for (\S+) s", steady.log_text())]
    if max(held_s, default=0.0) > HELD_S_MAX:
        raise ChaosError(f"partitions that stayed were held for {max(held_s)} s")
    return {
        "joins_and_leaves": times,
        "generations_with_losses": moved,
        "longest_hold_of_kept_partitions_s": max(held_s, default=0.0),
        "bit": moved > 0 and bool(held_s),
    }


@fault("state-deleted")
def state_deleted(deployment: Deployment, payments: int) -> Evidence:
    """The whole state directory of a killed worker is gone; it comes back from snapshots and journals."""
    worker, feed = one_worker_answering(deployment, payments, 40.0)
    deployment.until(lambda: any(deployment.snapshot_path.glob("terminal-journal/*/manifests/*")), "a snapshot")
    well_under_way(deployment, payments)
    time.sleep(deployment.rng.uniform(1.0, 4.0))
    killed_s = worker.kill()
    shutil.rmtree(worker.state)
    time.sleep(1)
    moment = deployment.watcher.mark("state deleted", killed_s)
    worker.start()
    deployment.until_recovered(moment)
    feed.join()
    return {"restored": worker.count("restoring the snapshot"), "bit": AGAIN}


@fault("flip")
def flip(deployment: Deployment, payments: int) -> Evidence:
    """A byte flipped in the SSTs, the write-ahead log or the manifest of stores, after a SIGKILL."""
    worker, feed = one_worker_answering(deployment, payments, 45.0)
    well_under_way(deployment, payments)
    flipped: dict[str, int] = {}
    for pattern in ("*.sst", "*.log", "MANIFEST-*"):
        deployment.until(lambda: any(deployment.snapshot_path.glob("terminal-journal/*/manifests/*")), "a snapshot")
        time.sleep(deployment.rng.uniform(2.0, 6.0))
        moment = deployment.watcher.mark(f"flip {pattern}")
        worker.kill()
        for topic in ("account-journal", "terminal-journal"):
            for path in sorted((worker.state / topic).glob(f"[0-9]/{pattern}")):
                flipped[pattern] = flipped.get(pattern, 0) + flip_bytes(path, deployment)
        worker.start()
        deployment.until_recovered(moment)
    feed.join()
    aside = worker.count("set aside at")
    return {"flipped": flipped, "set_aside": aside, "bit": aside > 0}


def flip_bytes(path: Path, deployment: Deployment) -> int:
    """Turns a bit in one place of each 4 kB; how many places."""
    content = bytearray(path.read_bytes())
    if not content:
        return 0
    places = range(0, len(content), 4096)
    for start in places:
        content[deployment.rng.randrange(start, min(start + 4096, len(content)))] ^= 1 << deployment.rng.randrange(8)
    path.write_bytes(content)
    return len(places)


STATE_BYTES = 2_000  # a payment leaves less than that behind


@fault("disk-full")
def disk_full(deployment: Deployment, payments: int) -> Evidence:
    """The state is on a small tmpfs that fills up; later there is room again."""
    if os.geteuid() != 0:
        raise ChaosError("a small tmpfs needs root here")
    mount = deployment.directory / "small"
    mount.mkdir()
    size = f"size={160 + payments * STATE_BYTES // 1_000_000}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(mount)], check=True)
    deployment.cleanups.append(lambda: subprocess.run(["umount", "-l", str(mount)], check=False))
    worker = deployment.worker("a", start=False)
    worker.use_state(mount / "state")
    worker.start()
    deployment.settle()
    feed = deployment.feed(Load(payments, deployment.seed), rate=rate_for(payments, 40.0))
    deployment.until_answering()
    well_under_way(deployment, payments)
    time.sleep(1)
    filler = mount / "filler"
    began_s = time.monotonic()
    with open(filler, "wb", buffering=0) as out:
        try:
            while True:
                out.write(bytes(1 << 16))
        except OSError:
            pass
        try:
            while True:
                out.write(b"x")
        except OSError:
            pass
    deployment.watcher.mark("disk full")
    said_s = deployment.until(lambda: worker.count("DISK FULL") > 0, "it says so", 60)
    time.sleep(8)
    alive(worker)
    filler.unlink()
    room = deployment.watcher.mark("room again")
    deployment.until(lambda: room.answered_s is not None, "resumes", 120)
    feed.join()
    return {
        "said_after_s": round(said_s, 1),
        "full_for_s": round(time.monotonic() - began_s, 1),
        "resumed_after_s": round((room.answered_s or 0.0) - room.at_s, 1),
        "bit": said_s <= 30,
    }


@fault("snapshot-unreachable")
def snapshot_unreachable(deployment: Deployment, payments: int) -> Evidence:
    """The snapshot store cannot be written for a while, nor read when a worker starts."""
    deployment.snapshot_path.parent.mkdir(exist_ok=True)
    deployment.snapshot_path.write_text("a file where a directory should be")
    worker, feed = one_worker_answering(deployment, payments, 25.0)
    deployment.until(lambda: worker.count("no snapshot of") > 0, "it says so", 60)
    well_under_way(deployment, payments)
    moment = deployment.watcher.mark("kill")
    worker.kill()
    worker.start()
    deployment.until_recovered(moment)
    deployment.snapshot_path.unlink()
    deployment.until(lambda: any(deployment.snapshot_path.glob("*/*/manifests/*")), "snapshots again", 60)
    feed.join()
    complaints = worker.count("no snapshot of")
    unread = worker.count("snapshots unavailable")
    return {"complaints": complaints, "unread_at_start": unread, "bit": complaints > 0}


@fault("snapshot-hangs")
def snapshot_hangs(deployment: Deployment, payments: int) -> Evidence:
    """The snapshot store takes connections and never answers; a worker on its own disk starts, and leaves in order."""
    worker, feed = one_worker_answering(deployment, payments, 30.0)
    well_under_way(deployment, payments)
    with socket.create_server(("127.0.0.1", 0), backlog=1_000) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/snapshots"
        moment = deployment.watcher.mark("kill")
        worker.kill()
        worker.start(FRAUD_SNAPSHOT_URL=url)
        went_on_s = deployment.until_going_on(moment)
        deployment.until_recovered(moment)
        unanswered = worker.count("snapshots unavailable, local state is used: .*no answer within")
        feed.join()
        deployment.until_answered()
        code = worker.terminate()
        if code:
            raise ChaosError(f"SIGTERM ended in {code}: {worker.log_text()[-2_000:]}")
    worker.start()
    return {"unanswered": unanswered, "goes_on_after_s_max": went_on_s, "bit": unanswered > 0}


@fault("snapshot-torn")
def snapshot_torn(deployment: Deployment, payments: int) -> Evidence:
    """Of the newest snapshots files are cut, flipped or missing; a worker without state must take older ones."""
    worker = one_worker(deployment, FRAUD_SNAPSHOT_EVERY_S="10" if payments >= MANY else "2")
    feed = deployment.feed(Load(payments, deployment.seed), rate=rate_for(payments, 60.0))
    deployment.until_answering()
    where = deployment.snapshot_path
    deployment.until(lambda: len(list(where.glob("terminal-journal/0/manifests/*"))) >= 3, "three snapshots", 120)
    well_under_way(deployment, payments)
    killed_s = worker.kill()
    torn = 0
    for partition in where.glob("*-journal/*"):
        manifests = sorted((partition / "manifests").glob("*"))
        if len(manifests) < 2:
            continue
        newest = manifests[-1]
        files = sorted((partition / "files").glob("*"), key=lambda path: path.stat().st_mtime)
        if files and deployment.rng.random() < 0.7:
            flip_bytes(files[-1], deployment)  # its size is right: found by its digest
        else:
            newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
        torn += 1
    shutil.rmtree(worker.state)
    moment = deployment.watcher.mark("torn", killed_s)
    worker.start()
    deployment.until_recovered(moment)
    feed.join()
    tried = worker.count("this snapshot is no good")
    return {"torn": torn, "refused": tried, "bit": torn > 0 and tried > 0}


@fault("poison")
def poison(deployment: Deployment, payments: int) -> Evidence:
    """1 % poison of every kind, 5 % repeats, 10 % out of order, some a month late; and a SIGKILL in between."""
    workers = two_workers(deployment)
    mix = Mix(poison=0.01, repeats=0.05, disorder=0.10, month_late=0.005)
    feed = deployment.feed(Load(payments, deployment.seed, mix), rate=rate_for(payments, 15.0))
    deployment.until_answering()
    well_under_way(deployment, payments)
    deployment.watcher.mark("kill")
    workers[0].kill()
    workers[0].start()
    deployment.until_answered()
    wrong = deployment.wrong_refusals()
    if wrong:
        raise ChaosError(f"{len(wrong)} records are not answered as they should be: {wrong[:5]}")
    return {
        "poison": len(feed.causes),
        "kinds_of_poison": len(set(feed.causes.values())),
        "repeats": len(feed.repeats),
        "refused": deployment.refused(),
        "bit": bool(feed.causes) and bool(feed.repeats),
    }
