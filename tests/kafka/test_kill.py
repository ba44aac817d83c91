"""Two workers that share no disk, one killed under load: every payment answered, every answer what the log says."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "chaos"))  # the fault suite's deployment is used here

from chaos_check import verify
from chaos_deployment import Deployment
from chaos_load import Load

from stream.reconcile import reconcile

PAYMENTS = 15_000

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]


def test_a_killed_worker_loses_nothing_and_answers_nothing_twice_otherwise(kafka, tmp_path: Path) -> None:
    deployment = Deployment(kafka.broker, tmp_path, kafka.fresh_prefix(), seed=7)
    try:
        deployment.begin()
        workers = [deployment.worker("a"), deployment.worker("b")]
        deployment.until(lambda: all(worker.count(r"added [1-9]") for worker in workers), "two members")
        deployment.feed(Load(PAYMENTS, deployment.seed), rate=1_000)
        deployment.until_answering()
        deployment.watcher.mark("kill")
        workers[0].kill()
        deployment.until(lambda: workers[1].count(r"added [1-9]") > 1, "the other takes over")
        before = workers[0].count(r"added [1-9]")
        workers[0].start()
        deployment.until(lambda: workers[0].count(r"added [1-9]") > before, "the killed one is a member again")
        deployment.until_answered()
        assert [code for code in deployment.stop_workers() if code] == []
        found = reconcile(deployment.client, deployment.prefix)
        checked = verify(deployment.client, deployment.prefix, [worker.state for worker in workers])
    finally:
        deployment.close()
    assert found.payments >= PAYMENTS
    assert (found.missing, found.conflicting, found.unasked, found.dead_letters_missing) == (0, 0, 0, 0)
    assert deployment.wrong_refusals() == []
    assert checked.wrong == 0, checked.examples
    assert (checked.states, checked.answers > 2 * PAYMENTS) == (4, True)
    again = found.repeated + checked.item_copies + deployment.reapplied()
    assert again > 0, "nothing was applied or sent twice: the kill has not bitten"
