"""A worker that has caught up, and whose brokers go away: it must not say that all is well."""

import time
from pathlib import Path
from typing import Any

import pytest
from live_worker import LiveWorker

from stream.operate import initialise
from stream.settings import Settings
from stream.worker.fetch import LEADER_SILENT_S_MAX

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]

SESSION_S = 6.0  # the least that a broker allows by default


def test_not_ready_and_no_member_while_the_broker_says_nothing_and_again_when_it_does(
    kafka: Any, tmp_path: Path
) -> None:
    prefix = kafka.fresh_prefix()
    initialise(
        Settings(bootstrap=kafka.bootstrap, prefix=prefix, group=prefix + "group"),
        "earliest",
        by="test",
        why="test",
        partitions=2,
    )
    worker = LiveWorker(
        tmp_path,
        {
            "FRAUD_BOOTSTRAP": kafka.bootstrap,
            "FRAUD_PREFIX": prefix,
            "FRAUD_GROUP": prefix + "group",
            "FRAUD_SESSION_TIMEOUT_S": str(SESSION_S),
        },
    )
    try:
        worker.until_ready()
        time.sleep(LEADER_SILENT_S_MAX + 5)  # idle, and all is well
        status, shown = worker.page("/ready")
        assert (status, shown["silent"]) == (200, [])
        running = shown["running"]
        before = worker.metrics()
        assert before.value("group_member") == 1
        assert len(before.labels("lag_records")) == len(before.labels("leader_silent_seconds")) == running
        kafka.broker.suspend()
        suspended_s = time.monotonic()
        shown = worker.until(
            lambda: (page := worker.page("/ready"))[0] == 503 and page[1]["status"] != "busy" and page[1],
            "it is ready without a broker",
            60,
        )
        assert time.monotonic() - suspended_s > SESSION_S - 3
        assert "coordinator has not confirmed this member" in shown["status"]
        assert "Operator" in shown["status"]
        assert worker.metrics().value("group_member") == 0
        shown = worker.until(
            lambda: len((page := worker.page("/ready")[1]).get("silent", ())) == running and page,
            "leaders seem to talk",
            90,
        )
        assert shown["running"] == 0
        assert all("Operator" in shown["failures"][name] for name in shown["silent"])
        away = worker.metrics()
        assert away.value("leader_silent_seconds") > running * LEADER_SILENT_S_MAX
        assert away.labels("lag_records") == []  # not zero: nobody knows
        assert worker.get("/health")[0] == 200  # to start it again would not help
        kafka.broker.resume()
        worker.until_ready()
        back = worker.until(
            lambda: (
                (found := worker.metrics()).value("group_member") == 1
                and len(found.labels("lag_records")) == running
                and found
            ),
            "it is no member again",
        )
        assert back.value("leader_silent_seconds") < running * LEADER_SILENT_S_MAX
        assert worker.stop() == 0
    finally:
        kafka.broker.resume()
        worker.stop()
