"""`soak`: half of saturation for half an hour: resident memory, open files and lag, a look a second.

Saturation is what the worker answers beside the load, as in `scale_saturation`.

Event time runs ahead of the clock, by `DAYS_PER_MINUTE` or more, so that the longest history (90 days) has been filled
when the warm-up ends and what leaves it makes room for what comes: else a state that is still filling would look like
a leak. Lag is what has been sent and not answered.
"""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from confluent_kafka.admin import (  # its stub hides all but the first
    AdminClient,
    AlterConfigOpType,  # pyright: ignore[reportPrivateImportUsage]
    ConfigEntry,  # pyright: ignore[reportPrivateImportUsage]
    ConfigResource,  # pyright: ignore[reportPrivateImportUsage]
    ResourceType,  # pyright: ignore[reportPrivateImportUsage]
)
from load import DAY_MS
from ours import Deployment
from scale_load import Stream
from scale_run import Running, bench, running
from scale_saturation import PAYMENTS, SEARCH_S, beside_load, of_backlog
from scale_series import WARM_SHARE, Look, judge
from scale_verdict import say

DAYS_PER_MINUTE = 20.0  # at least
FILLED_DAYS = 100.0  # after so many, what comes into the windows is no more than what leaves them
LOOK_S = 1.0
SHORT_HISTORY = {"retention.bytes": str(256 << 20), "segment.bytes": str(64 << 20)}


def open_files(pid: int) -> tuple[int, int]:
    """Open files of a process: all but RocksDB's tables, and these, whose number comes and goes with compaction."""
    files = tables = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            name = os.readlink(entry)
        except OSError:
            continue
        if name.removesuffix(" (deleted)").endswith(".sst"):
            tables += 1
        else:
            files += 1
    return files, tables


def keep_little(deployment: Deployment) -> None:
    """The broker of a long run would fill a disk: what was read long ago may go, as in production after weeks."""
    prefix = deployment.settings.prefix
    names = ("payments", "account-journal", "terminal-journal", "decisions", "decision-details")
    resources = [
        ConfigResource(
            ResourceType.TOPIC,
            prefix + name,
            incremental_configs=[
                ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
                for key, value in SHORT_HISTORY.items()
            ],
        )
        for name in names
    ]
    admin = AdminClient(deployment.settings.client())  # it must outlive its answers
    for future in admin.incremental_alter_configs(resources).values():
        future.result(30)


class Flow:
    """Open loop: payments are due by the clock, whatever the worker does; labels follow the answers."""

    def __init__(self, found: Running, rate: float) -> None:
        self._found, self._rate = found, rate
        self._stop = threading.Event()
        self.late_s = 0.0
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Flow":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        feeder = self._found.feeder
        began_s, before = time.monotonic(), feeder.sent
        try:
            while not self._stop.wait(0.01):
                due = int((time.monotonic() - began_s) * self._rate) - (feeder.sent - before)
                if due > 0:
                    feeder.offer(due)
                self.late_s = max(0.0, due / self._rate - 0.01)
        except BaseException as error:
            self.failure = error


def looks(found: Running, rate: float, seconds: float) -> list[Look]:
    series: list[Look] = []
    pid = found.processes[0].pid
    with Flow(found, rate) as flow:
        began_s = time.monotonic()
        while (at_s := time.monotonic() - began_s) < seconds:
            found.alive()
            if flow.failure is not None:
                raise flow.failure
            sent, answered = found.feeder.sent, found.answers.count()
            files, tables = open_files(pid)
            found.feeder.labels(answered)
            lag = max(0, sent - answered)
            series.append(Look(round(at_s, 2), round(found.memory_mb(), 1), files, tables, sent, lag, found.cpu_s()))
            if len(series) % 60 == 0:
                say(f"{at_s / 60:.0f} min: {series[-1]}")
            time.sleep(max(0.0, began_s + len(series) * LOOK_S - time.monotonic()))
    return series


def soak(*, minutes: float, rate: float | None, series_to: Path | None, short: bool) -> dict[str, Any]:
    if short:
        minutes, rate = 0.25, rate or 200.0
    with bench() as place:
        most = None
        if rate is None:
            most = beside_load(place, of_backlog(place, PAYMENTS), SEARCH_S)
            rate = most / 2
            say(f"saturation {most:,.0f}/s beside the load: {rate:,.0f}/s for {minutes:g} minutes")
        days_per_minute = max(DAYS_PER_MINUTE, FILLED_DAYS / (minutes * WARM_SHARE))
        ms_between = days_per_minute * DAY_MS / (60.0 * rate)
        start_ms = int(time.time() * 1000) - int((minutes + 5) * days_per_minute * DAY_MS)
        stream = Stream(seed=71, accounts=50_000, ms_between=ms_between, start_ms=start_ms)
        with running(place, stream, tick_s=60.0) as found:
            keep_little(found.deployment)
            series = looks(found, rate, minutes * 60.0)
            ended_lag = series[-1].lag
            found.await_answers(600.0)
            warnings = found.deployment.log.read_text()[-2000:]
    if series_to is not None:
        series_to.write_text(json.dumps({"columns": Look._fields, "looks": series}))
    judged = judge(series, rate)
    for line in judged["plots"]:
        say(line)
    cores = (series[-1].cpu_s - series[0].cpu_s) / (series[-1].at_s - series[0].at_s)
    return judged | {
        "minutes": minutes,
        "rate": round(rate),
        "saturation_per_s": None if most is None else round(most),
        "payments": series[-1].sent,
        "worker_cores": round(cores, 3),
        "cpu_us_per_payment": round(cores / rate * 1e6, 1),
        "lag_at_the_end": ended_lag,
        "worker_said": warnings,
    }
