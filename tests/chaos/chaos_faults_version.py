"""Faults of what decides: a model that gives NaN, another engine; and how long a start takes with much state."""

import shutil
import time

import msgspec
import numpy as np
from chaos_check import read_topic
from chaos_deployment import ChaosError, Deployment, WorkerProcess
from chaos_faults import AGAIN, Evidence, fault, one_worker, rate_for
from chaos_faults_log import FAULTY
from chaos_load import Load, Mix
from worker_with_faults import hold_engine_2

from stream.features import FEATURES_VERSION, MODEL_FEATURES
from stream.model.bins import CUTS, STRIDE
from stream.model.compiled import Compiled, build
from stream.operate import write_control
from stream.stages.control import ModelPayload
from topics.control import Engine, Refusal, parse_control, payload_as

ENGINE = 2


def spoilt(offset: int) -> Compiled:
    """A version with the right hash and a weight that is no number, as a broken learner would write it."""
    features = len(MODEL_FEATURES)
    sound = build(
        offset=offset,
        features_version=FEATURES_VERSION,
        ready=True,
        frauds=10_000,
        cuts=np.full((features, CUTS), np.inf, np.float32),
        weights=np.zeros(features * STRIDE),
        intercept=0.0,
        baseline=np.zeros(features),
    )
    weights = np.frombuffer(sound.weights, np.float64).copy()
    weights[:] = np.nan
    changed = msgspec.structs.replace(sound, weights=weights.tobytes())
    return msgspec.structs.replace(changed, version=changed.expected_version())


def publish(deployment: Deployment, model: Compiled) -> None:
    payload = ModelPayload(
        version=model.version, offset=model.offset, features=model.features_version, compiled=model.encode()
    )
    write_control(deployment.settings, "model", payload, by="chaos", why="trial")


def newest_model(deployment: Deployment) -> ModelPayload | None:
    """The latest version that the learner has published."""
    found: ModelPayload | None = None
    for record in read_topic(deployment.client, f"{deployment.prefix}control")[0]:
        parsed = parse_control(record.value)
        if not isinstance(parsed, Refusal) and parsed.kind == "model" and parsed.by == "learner":
            payload = payload_as(parsed, ModelPayload)
            found = payload if payload.held is None else found
    return found


@fault("nan-model")
def nan_model(deployment: Deployment, payments: int) -> Evidence:
    """A version whose hash is right and whose weights are NaN: rules alone decide, later the last good version."""
    worker = one_worker(deployment)
    publish(deployment, spoilt(0))
    deployment.until(lambda: worker.count("MODEL REFUSED.*rules alone decide") > 0, "it says so", 30)
    said = worker.gauges("model_refused")
    feed = deployment.feed(Load(payments, deployment.seed), rate=rate_for(payments, 60.0))
    deployment.until(lambda: newest_model(deployment) is not None, "a version is published", 120)
    deployment.until(lambda: sum(worker.gauges("model_refused")) == 0, "a good version takes its place", 30)
    for _ in range(20):  # the learner goes on, and of one place of `examples` the first version holds
        good = newest_model(deployment)
        assert good is not None
        publish(deployment, spoilt(good.offset + 1))
        time.sleep(1)
        if worker.count("MODEL REFUSED.*decides on"):
            break
    moment = deployment.watcher.mark("NaN")
    deployment.until(lambda: worker.count("MODEL REFUSED.*decides on") > 0, "it says so again", 5)
    worker.kill()  # what was refused must be known after a restart, too
    worker.start()
    deployment.until_recovered(moment)
    feed.join()
    answers = [
        msgspec.json.decode(record.value or b"")
        for records in read_topic(deployment.client, f"{deployment.prefix}decisions").values()
        for record in records
    ]
    scored = sum(answer.get("probability") is not None for answer in answers)
    return {
        "refused_by_partitions": int(sum(said)),
        "said": worker.count("MODEL REFUSED"),
        "answered_by_rules_alone": len(answers) - scored,
        "answered_with_a_score": scored,
        "bit": scored > 0 and sum(said) > 0,
    }


@fault("rolling-upgrade")
def rolling_upgrade(deployment: Deployment, payments: int) -> Evidence:
    """Two workers go from engine 1 to a test engine 2 and back, one after the other; some are killed on the way."""
    deployment.prepare_rerun = hold_engine_2  # the journals are run again with the release that holds both
    deployment.command = FAULTY
    workers = [deployment.worker("a"), deployment.worker("b")]
    deployment.settle()
    feed = deployment.feed(Load(payments, deployment.seed), rate=rate_for(payments, 120.0))
    deployment.until_answering()
    _roll(deployment, workers, CHAOS_ENGINE=str(ENGINE))
    _set_engine(deployment, workers, ENGINE)
    deployment.until(lambda: deployment.watcher.engines["2"] > 200, "answers of engine 2", 60)
    _kill_one(deployment, workers, CHAOS_ENGINE=str(ENGINE))
    _set_engine(deployment, workers, 1)
    _kill_one(deployment, workers, CHAOS_ENGINE=str(ENGINE))
    deployment.settle()
    _roll(deployment, workers)
    feed.join()
    by_engine = dict(deployment.watcher.engines)
    return {"answers_by_engine": by_engine, "bit": AGAIN if by_engine.get("2") and by_engine.get("1") else False}


def _roll(deployment: Deployment, workers: list[WorkerProcess], **environment: str) -> None:
    """Another release, one worker at a time: the first in order, the second by SIGKILL."""
    for worker in workers:
        moment = deployment.watcher.mark(f"roll {worker.name}")
        if worker is workers[0]:
            worker.terminate()
        else:
            worker.kill()
        worker.start(**environment)
        deployment.settle()
        deployment.until_recovered(moment)


def _kill_one(deployment: Deployment, workers: list[WorkerProcess], **environment: str) -> None:
    victim = deployment.rng.choice(workers)
    moment = deployment.watcher.mark(f"kill {victim.name}")
    victim.kill()
    victim.start(**environment)
    deployment.until_recovered(moment)


def _set_engine(deployment: Deployment, workers: list[WorkerProcess], engine: int) -> None:
    write_control(deployment.settings, "engine", Engine(engine=engine), by="chaos", why="trial")

    def everywhere() -> bool:
        found = [value for worker in workers for value in worker.gauges("engine")]
        return bool(found) and set(found) == {float(engine)}

    deployment.until(everywhere, f"engine {engine} decides everywhere", 60)


SLOWEST_START_S = 15.0
SLOWEST_RESTORE_S = 60.0
NOTHING_BAD = Mix(poison=0.0, repeats=0.0, disorder=0.0, frauds=0.0)


@fault("restore", rerun=False)
def restore(deployment: Deployment, payments: int) -> Evidence:
    """As many accounts as payments. SIGKILL to the first answer on the same disk; and without it, from a snapshot.

    Answers are compared among themselves only: to run so much again would take longer than all else.
    """
    worker = one_worker(deployment, FRAUD_SNAPSHOT_EVERY_S="20", FRAUD_SESSION_TIMEOUT_S="10")
    load = Load(payments, deployment.seed, NOTHING_BAD, accounts=payments)
    deployment.feed(load, rate=8_000.0)
    deployment.until_answered()
    time.sleep(2)
    same_disk_s = _kill_to_first_answer(deployment, worker, deployment.seed + 1)
    deployment.until(lambda: _snapshots_are_new(deployment, worker), "a snapshot of all accounts", 300)
    restored_s = _kill_to_first_answer(deployment, worker, deployment.seed + 2, delete=True)
    if same_disk_s > SLOWEST_START_S or restored_s > SLOWEST_RESTORE_S:
        raise ChaosError(f"first answer after {same_disk_s:.1f} s on the same disk, {restored_s:.1f} s without it")
    return {
        "accounts": payments,
        "first_answer_same_disk_s": round(same_disk_s, 1),
        "first_answer_restored_s": round(restored_s, 1),
        "restored": worker.count("restoring the snapshot"),
        "bit": worker.count("restoring the snapshot") > 0,
    }


def _snapshots_are_new(deployment: Deployment, worker: WorkerProcess) -> bool:
    """Every partition of the journals has a snapshot from after this was first asked; idle ones never will."""
    newest = [
        max((path.stat().st_mtime for path in (partition / "manifests").glob("*")), default=0.0)
        for partition in deployment.snapshot_path.glob("*-journal/*")
    ]
    return bool(newest) and min(newest) > worker.started_s


def _kill_to_first_answer(deployment: Deployment, worker: WorkerProcess, seed: int, *, delete: bool = False) -> float:
    began_s = time.monotonic()
    worker.kill()
    if delete:
        shutil.rmtree(worker.state)
    worker.start()
    before = deployment.watcher.answers
    deployment.feed(Load(400, seed, NOTHING_BAD), rate=20.0)
    deployment.until(lambda: deployment.watcher.answers > before, "a first answer", 300)
    taken_s = time.monotonic() - began_s
    deployment.until_answered()
    deployment.settle()
    return taken_s
