"""A worker joins while another works off a backlog: the group must not wait for the whole of what was fetched."""

import re
import sys
import threading
from itertools import takewhile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "chaos"))  # the fault suite's deployment is used here

from chaos_deployment import Deployment
from chaos_load import Load

from stream.reconcile import reconcile

PAYMENTS = 5_000_000  # more than are ever sent: the load ends when the other has joined
BACKLOG = 60_000  # of payments without an answer; when it is worked off, more are sent
VISITS_MAX = 6  # a hold may fall between two rounds, and then cuts nothing short
JOINED = r"added [1-9]"
HELD_S_MAX = 10.0  # the promise of issue 4; beyond the group's own patience a member is thrown out

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]


def test_a_member_with_a_backlog_lets_another_in(kafka, tmp_path: Path) -> None:
    deployment = Deployment(kafka.broker, tmp_path, kafka.fresh_prefix(), seed=11)
    seen = threading.Event()
    load = takewhile(lambda _: not seen.is_set(), Load(PAYMENTS, deployment.seed))
    try:
        deployment.begin()
        deployment.feed(load, rate=50_000, waiting_max=BACKLOG)
        deployment.until(lambda: deployment.watcher.waiting >= BACKLOG, "a backlog")
        busy = deployment.worker("a")
        deployment.until_answering()
        guest = deployment.worker("b")
        joined = 0
        for _ in range(VISITS_MAX):
            deployment.until(lambda before=joined: guest.count(JOINED) > before, "the other is a member", 240)
            assert deployment.watcher.waiting > 0, "the backlog was gone before the other came"
            if busy.count("cut short"):
                break
            assert guest.terminate() == 0
            joined = guest.count(JOINED)
            guest.start()
        else:
            pytest.fail("no round was ever under way: the backlog has not bitten")
        seen.set()
        deployment.until_answered()
        assert [code for code in deployment.stop_workers() if code] == []
        found = reconcile(deployment.client, deployment.prefix)
    finally:
        seen.set()
        deployment.close()
    held_s = [float(seconds) for seconds in re.findall(r"generation \d+: .* held for (\S+) s", busy.log_text())]
    assert max(held_s[1:]) < HELD_S_MAX, held_s
    # A timer's checkpoint may come while the group changes, after the hold's own: that one had as much.
    assert not re.search(r"fenced: (?!the group is changing)", busy.log_text())
    assert (found.missing, found.conflicting) == (0, 0)
