"""A worker joins while another works off a backlog: the group must not wait for the whole of what was fetched."""

import math
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "chaos"))  # the fault suite's deployment is used here

from chaos_deployment import Deployment
from chaos_load import Load

from stream.reconcile import reconcile

PAYMENTS = 180_000  # more than a worker answers until another has started, which takes ten seconds on two busy cores
HELD_S_MAX = 10.0  # the promise of issue 4; beyond the group's own patience a member is thrown out

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]


def test_a_member_with_a_backlog_lets_another_in(kafka, tmp_path: Path) -> None:
    deployment = Deployment(kafka.broker, tmp_path, kafka.fresh_prefix(), seed=11)
    try:
        deployment.begin()
        deployment.feed(Load(PAYMENTS, deployment.seed), rate=50_000, waiting_max=math.inf).join()
        busy = deployment.worker("a")
        deployment.until_answering()
        guest = deployment.worker("b")
        deployment.until(lambda: guest.count(r"added [1-9]") > 0, "the other is a member", 240)
        still_waiting = deployment.watcher.waiting
        deployment.until_answered()
        assert [code for code in deployment.stop_workers() if code] == []
        found = reconcile(deployment.client, deployment.prefix)
    finally:
        deployment.close()
    held_s = [float(seconds) for seconds in re.findall(r"generation \d+: .* held for (\S+) s", busy.log_text())]
    assert still_waiting > 0, "the backlog was gone before the other came"
    assert "cut short" in busy.log_text(), "no round was under way: the backlog has not bitten"
    assert max(held_s[1:]) < HELD_S_MAX, held_s
    # A timer's checkpoint may come while the group changes, after the hold's own: that one had as much.
    assert not re.search(r"fenced: (?!the group is changing)", busy.log_text())
    assert (found.missing, found.conflicting) == (0, 0)
