"""Two workers that share no disk, one killed under load: every payment answered, every answer what the log says."""

import re
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "chaos"))  # the fault suite's deployment is used here

from chaos_check import processes, read_topic, verify
from chaos_deployment import Deployment, WorkerProcess
from chaos_load import Load
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from stream.reconcile import reconcile

PAYMENTS = 15_000
SHARED = ("payments", "account-journal", "terminal-journal")

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]


def test_a_killed_worker_loses_nothing_and_answers_nothing_twice_otherwise(kafka, tmp_path: Path) -> None:
    deployment = Deployment(kafka.broker, tmp_path, kafka.fresh_prefix(), seed=7)
    try:
        deployment.begin()
        workers = [deployment.worker("a"), deployment.worker("b")]
        deployment.until(lambda: all(worker.count(r"added [1-9]") for worker in workers), "two members")
        deployment.feed(Load(PAYMENTS, deployment.seed), rate=1_000)
        deployment.until(lambda: sum(workers[0].gauges("answers_total")) > 0, "the one to be killed has answered")
        deployment.watcher.mark("kill")
        workers[0].kill()
        deployment.until(lambda: workers[1].count(r"added [1-9]") > 1, "the other takes over")
        before = workers[0].count(r"added [1-9]")
        workers[0].start()
        deployment.until(lambda: workers[0].count(r"added [1-9]") > before, "the killed one is a member again")
        deployment.until_answered()
        assert [code for code in deployment.stop_workers() if code] == []
        found = reconcile(deployment.client, deployment.prefix)
        with processes() as pool:
            checked = verify(pool, deployment.client, deployment.prefix, [worker.state for worker in workers])
        gone = spoil_topics(deployment)
        with processes() as pool:
            spoilt = verify(pool, deployment.client, deployment.prefix)
    finally:
        deployment.close()
    assert found.payments >= PAYMENTS
    assert (found.missing, found.conflicting, found.unasked, found.dead_letters_missing) == (0, 0, 0, 0)
    assert deployment.wrong_refusals() == []
    assert checked.wrong == 0, checked.examples
    assert (checked.states, checked.answers > 2 * PAYMENTS) == (4, True)
    again = found.repeated + checked.item_copies + deployment.reapplied()
    assert again > 0, "nothing was applied or sent twice: the kill has not bitten"
    assert (spoilt.different, spoilt.absent, spoilt.intake_missing, spoilt.wrong) == (1, gone, 1, 2 + gone)
    told = {line.partition(":")[0].split("[")[0] for line in spoilt.examples}
    assert told == {"in the log, not on the topic", "on the topic, not in the log", "payments"}


def spoil_topics(deployment: Deployment) -> int:
    """One answer that nobody gave, a payment that nobody took, and answers that are gone: so many, one at least.

    The first records may stand on the topic twice, being sent again after the kill: all go up to one that stands once.
    """
    producer = Producer(deployment.client)
    producer.produce(f"{deployment.prefix}decisions", b'{"outcome":"forged"}', b"a1")
    producer.produce(f"{deployment.prefix}payments", b"{}", b"a1")
    assert producer.flush(30) == 0
    details = read_topic(deployment.client, f"{deployment.prefix}decision-details")[0]
    whole = [(record.key, record.value, record.headers) for record in details]
    copies = Counter(whole)
    end = next(n for n, record in enumerate(whole, 1) if copies[record] == 1)
    before = details[end - 1].offset + 1
    admin = AdminClient(deployment.client)  # a name of its own: without one it is gone before its futures are done
    for done in admin.delete_records([TopicPartition(f"{deployment.prefix}decision-details", 0, before)]).values():
        done.result(60)
    return len(set(whole[:end]) - set(whole[end:]))


def owned(worker: WorkerProcess) -> set[str]:
    """Its partitions of the topics that all have the same number of them."""
    found = re.findall(r"^fraudstream_partition_stopped\{(.*)\} ", worker.page("/metrics"), re.MULTILINE)
    places = [dict(re.findall(r'(\w+)="([^"]*)"', labels)) for labels in found]
    return {f"{place['topic']}[{place['partition']}]" for place in places if place["topic"] in SHARED}


def opened(worker: WorkerProcess, since: int) -> dict[str, int]:
    """Partitions that it opened in its log from there on, and from which offset."""
    found = re.findall(r"(\S+)\[(\d+)\]: from offset (\d+) of", worker.log_text()[since:])
    return {f"{topic}[{p}]": int(offset) for topic, p, offset in found if topic in SHARED}


def test_a_killed_worker_gets_back_the_partitions_whose_state_it_has(kafka, tmp_path: Path) -> None:
    """Without snapshots or a shared disk whoever else gets them reads whole journals again."""
    deployment = Deployment(kafka.broker, tmp_path, kafka.fresh_prefix(), seed=8, snapshots=False)
    try:
        deployment.begin()
        workers = [deployment.worker("a"), deployment.worker("b")]
        deployment.until(lambda: all(worker.count(r"added [1-9]") for worker in workers), "two members")
        deployment.settle()
        deployment.feed(Load(4_000, deployment.seed), rate=1_000)
        deployment.until_answered()
        for round_number, (victim, other) in enumerate((workers, workers[::-1], workers)):
            wanted = owned(victim)
            assert len(wanted) == len(SHARED), wanted
            seen, given = len(victim.log_text()), other.count(r"added [1-9]")
            victim.kill()
            deployment.until(lambda o=other, n=given: o.count(r"added [1-9]") > n, "the other takes over")
            victim.start()
            deployment.until(lambda v=victim, at=seen: bool(opened(v, at)), "the killed one is a member again")
            deployment.settle()
            back = opened(victim, seen)
            assert len(back) == len(SHARED), back
            assert min(back.values()) > 0, back
            if round_number == 0:  # later the other one has been everywhere, too
                assert set(back) == wanted
        assert [code for code in deployment.stop_workers() if code] == []
    finally:
        deployment.close()
