"""A worker as its metrics, health and readiness show it. It reads what the hosts have; work pays nothing for it.

Stages count from the moment that a partition was opened. Here the counts of those that were closed are kept, so that
a counter of the process never falls. `look` runs on the event loop, some times a second; all else in the server's
threads.
"""

import asyncio
import contextlib
import logging
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from stream.features import FEATURES_VERSION
from stream.metrics import Distribution, MetricsServer, Sample, Shown, safe_text
from stream.runner.partition import PartitionRunner
from stream.stages.account import AccountStage
from stream.stages.control import ControlStage
from stream.stages.learn import LearnStage
from stream.stages.terminal import TerminalStage
from stream.version import ENGINE_VERSION
from stream.worker.fetch import LEADER_SILENT_S_MAX, TP
from stream.worker.host import Host, Status
from topics.journal import FIRST_PREV

if TYPE_CHECKING:
    from stream.worker.app import Worker

log = logging.getLogger(__name__)

GAP_ALARM_S: Final = 60.0
STUCK_S: Final = 20.0  # the event loop did not take its turn for so long
ANSWER_S: Final = 2.0
CHECKPOINT_BOUNDS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
WAITING: Final = "waiting"  # the group gave it to us, and nothing has begun
SILENT: Final = "silent"  # it runs, and its leader says nothing
assert STUCK_S < 60.0, "health must tell before the member leaves the group (MembershipSettings.stalled_s)"

_ARRIVALS: Final = ("first", "repeat", "refused")
_VERDICTS: Final = ("approve", "challenge", "review", "decline")
_LABEL_OUTCOMES: Final = {
    "labels_joined": "joined",
    "labels_orphaned": "orphaned",
    "labels_repeated": "repeated",
    "labels_refused": "refused",
    "labels_orphan_expired": "orphan_expired",
    "labels_orphan_dropped": "orphan_dropped",
    "labels_met": "met",
    "labels_late": "late",
}
_UPDATE_OUTCOMES: Final = {"updates": "joined", "updates_refused": "refused", "updates_late": "late"}
_EXAMPLES: Final = ("frauds", "legitimate", "unlabelled")
_REFUSALS: Final = {"refused:": "payments", "labels_refused:": "labels", "updates_refused:": "updates"}


def _counts(runner: PartitionRunner) -> Counter[str]:
    """All that a partition has counted since it was opened; the runner's own under names with a dot."""
    stage = runner.stage
    counted = isinstance(stage, AccountStage | TerminalStage | LearnStage | ControlStage)
    found: Counter[str] = Counter(dict(stage.counts)) if counted else Counter()
    found["runner.applied"] = runner.steps_applied
    found["runner.gap_items"] = runner.gap_items
    found["runner.dropped"] = runner.dropped_items
    found["runner.suppressed"] = runner.suppressed
    return found


class Observer:
    """Reads one worker. `serving` shows it over HTTP, if settings say where."""

    def __init__(self, worker: "Worker", stages: Mapping[str, str], latency_bounds_s: Sequence[float]) -> None:
        """`stages`: topic, without the deployment's prefix → stage; the bounds: of `worker.latency_counts`."""
        self._worker = worker
        self._stages = stages
        self._latency_bounds_s = latency_bounds_s
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._beat_s = time.monotonic()
        self._runners: dict[TP, PartitionRunner] = {}
        self._past: dict[TP, Counter[str]] = {}
        self._gaps: dict[TP, dict[tuple[bytes, int], tuple[tuple[int, int], float]]] = {}
        self._alarmed: set[tuple[TP, tuple[bytes, int]]] = set()
        self._caught_up_s: dict[TP, float] = {}
        self._checkpoints_seen = 0
        self._checkpoint_counts = [0] * (len(CHECKPOINT_BOUNDS_S) + 1)
        self._checkpoint_sum_s = 0.0
        self._checkpointed_at_s = 0.0
        self.port: int | None = None

    @contextlib.contextmanager
    def serving(self) -> Generator[None]:
        """Serves while the block lasts. Raises `ConfigurationError` if the port is taken."""
        settings = self._worker.settings
        if settings.metrics_port is None:
            yield
            return
        server = MetricsServer(
            settings.metrics_host, settings.metrics_port, gather=self.gather, health=self.health, ready=self.ready
        )
        self.port = server.port
        try:
            yield
        finally:
            server.close()

    # ---- on the event loop

    def look(self) -> None:
        """Notes what would be gone by the next scrape. A few µs."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self._beat_s = time.monotonic()
        with self._lock:
            self._note_runners()
            self._note_checkpoints()
            for tp, host in self._worker.hosts.items():
                self._note_gaps(tp, host)

    def _note_runners(self) -> None:
        hosts = self._worker.hosts
        for tp, runner in list(self._runners.items()):
            host = hosts.get(tp)
            if host is None or host.runner is not runner:
                self._past.setdefault(tp, Counter()).update(_counts(runner))
                del self._runners[tp]
                self._gaps.pop(tp, None)
        for tp, host in hosts.items():
            if host.runner is not None:
                self._runners[tp] = host.runner

    def _note_checkpoints(self) -> None:
        worker = self._worker
        new = worker.checkpoints - self._checkpoints_seen
        if not new:
            return
        self._checkpoints_seen = worker.checkpoints
        self._checkpointed_at_s = time.time()
        for seconds in worker.checkpoint_seconds[-new:]:
            self._checkpoint_counts[bisect_left(CHECKPOINT_BOUNDS_S, seconds)] += 1
            self._checkpoint_sum_s += seconds

    def _note_gaps(self, tp: TP, host: Host) -> None:
        runner = host.runner
        if runner is None or (not runner.open_gaps and tp not in self._gaps):
            return
        now_s = time.monotonic()
        known = self._gaps.get(tp, {})
        still: dict[tuple[bytes, int], tuple[tuple[int, int], float]] = {}
        for sender, last in runner.open_gaps.items():
            was = known.get(sender)
            still[sender] = was if was is not None and was[0] == last else (last, now_s)
            if now_s - still[sender][1] > GAP_ALARM_S and (tp, sender) not in self._alarmed:
                self._alarmed.add((tp, sender))
                offset, n = last
                after = "its first item" if last == FIRST_PREV else f"item ({offset}, {n})"
                log.critical(
                    "%s[%d]: a gap has been open for %.0f s: nothing of sender %s[%d] after %s is applied. Operator: "
                    "is that sender's worker down?",
                    *host.tp,
                    GAP_ALARM_S,
                    self._topic_named(sender[0]),
                    sender[1],
                    after,
                )
        self._alarmed -= {(tp, sender) for sender in known if sender not in still}
        if still:
            self._gaps[tp] = still
        else:
            self._gaps.pop(tp, None)

    def _topic_named(self, topic_id: bytes) -> str:
        """A topic as operators know it; one that was deleted since has only its id."""
        known = {of: topic for topic, of in self._worker.topology.ids.items()}
        return known.get(topic_id) or f"topic id {topic_id.hex()}"

    # ---- health and readiness

    def health(self) -> tuple[bool, Shown]:
        """Alive, not failed, and the event loop takes its turns."""
        failure = self._worker.membership.failure
        if failure is not None:
            return False, {"status": "failed", "failure": safe_text(f"{type(failure).__name__}: {failure}")}
        if self._loop is None:
            return True, {"status": "starting"}
        delay_s = time.monotonic() - self._beat_s
        if delay_s > STUCK_S:
            return False, {"status": "stuck", "loop_delay_s": round(delay_s, 1)}
        return True, {"status": "ok"}

    def ready(self) -> tuple[bool, Shown]:
        """Asked on the event loop, so that what is said was true at one moment."""
        healthy, shown = self.health()
        loop = self._loop
        if not healthy or loop is None:
            return False, {"ready": False, **shown}

        async def look() -> tuple[bool, Shown]:
            return self._ready()

        answer = asyncio.run_coroutine_threadsafe(look(), loop)
        try:
            return answer.result(ANSWER_S)
        except Exception:
            answer.cancel()
            return False, {"ready": False, "status": "busy"}

    def _ready(self) -> tuple[bool, Shown]:
        membership = self._worker.membership
        by_status: dict[str, list[str]] = {status: [] for status in (Status.OPENING.value, "stopped", WAITING, SILENT)}
        running = 0
        failures: dict[str, str] = {}
        for tp, status in self._statuses():
            name = f"{tp.topic}[{tp.partition}]"
            if status == Status.RUNNING.value:
                silent_s = self._leader_silent_s(tp) or 0.0
                if silent_s > LEADER_SILENT_S_MAX:
                    by_status[SILENT].append(name)
                    failures[name] = (
                        f"no word of its leader for {silent_s:.0f} s: what is sent to it is not seen here. Operator: "
                        f"is that broker up, can this worker reach it, and have its credentials expired?"
                    )
                else:
                    running += 1
                continue
            by_status.setdefault(status, []).append(name)
            host = self._worker.hosts.get(tp)
            if host is not None and host.failure:
                failures[name] = safe_text(host.failure)
        good = membership.member and not any(by_status.values())
        return good, {
            "ready": good,
            "status": "ok" if good else self._why_not(by_status),
            "generation": membership.generation,
            "group_changing": not membership.settled,
            "running": running,
            **by_status,
            "failures": failures,
        }

    def _why_not(self, by_status: Mapping[str, list[str]]) -> str:
        membership = self._worker.membership
        if membership.generation < 0:
            return "not a member of the group yet"
        if not membership.member:
            return (
                f"the group's coordinator has not confirmed this member for {membership.unconfirmed_s or 0.0:.0f} s, "
                f"and others may have its partitions. Operator: are the brokers up, can this worker reach them, and "
                f"have its credentials expired?"
            )
        return "leaders are silent" if by_status[SILENT] else "restoring"

    def _leader_silent_s(self, tp: TP) -> float | None:
        """None while it is not read, and when the consumer is not there yet."""
        with contextlib.suppress(AssertionError):
            return self._worker.membership.fetcher.leader_silent_s(tp)
        return None

    def _statuses(self) -> list[tuple[TP, str]]:
        """How each partition stands that the group has given us, or that is still open here."""
        hosts = dict(self._worker.hosts)
        owned = self._worker.membership.owned
        found = [(tp, host.status.value) for tp, host in hosts.items() if host.status is not Status.CLOSED]
        return sorted([*found, *((tp, WAITING) for tp in owned if tp not in hosts)])

    # ---- metrics

    def gather(self) -> Iterator[Sample]:
        """Everything at this moment."""
        yield Sample("build", 1, (str(ENGINE_VERSION), FEATURES_VERSION))
        with self._lock:
            runners = dict(self._runners)
            past = {tp: Counter(counts) for tp, counts in self._past.items()}
            gaps = {tp: dict(found) for tp, found in self._gaps.items()}
        by_place = {tp: Counter(counts) for tp, counts in past.items()}
        for tp, runner in runners.items():
            by_place.setdefault(tp, Counter()).update(_counts(runner))
        totals: Counter[str] = Counter()
        for tp, counts in by_place.items():
            # Both stages refuse under one name, and every refusal is one answer or letter.
            totals.update(counts)
            place = self._place(tp)
            yield Sample("records_applied", counts["runner.applied"], place)
            yield Sample("prev_gap_items", counts["runner.gap_items"], place)
            yield Sample("items_repeated", counts["runner.dropped"], place)
        account = self._sum(by_place, "account")
        terminal = self._sum(by_place, "terminal")
        yield from _business(totals, account, terminal)
        yield from self._partitions(gaps)
        yield from self._meaning()
        yield from self._process()

    def _place(self, tp: TP) -> tuple[str, str, str]:
        topic = self._topic(tp)
        return (self._stages[topic], topic, str(tp.partition))

    def _topic(self, tp: TP) -> str:
        return tp.topic[len(self._worker.settings.prefix) :]

    def _sum(self, by_place: dict[TP, Counter[str]], stage: str) -> Counter[str]:
        total: Counter[str] = Counter()
        for tp, counts in by_place.items():
            if self._stages[self._topic(tp)] == stage:
                total.update(counts)
        return total

    def _partitions(self, gaps: dict[TP, dict[tuple[bytes, int], tuple[tuple[int, int], float]]]) -> Iterator[Sample]:
        statuses: Counter[tuple[str, str]] = Counter()
        for stage in dict.fromkeys(self._stages.values()):
            for status in (Status.OPENING.value, Status.RUNNING.value, Status.STOPPED.value, WAITING):
                statuses[stage, status] = 0
        now_s, mono_s = time.time(), time.monotonic()
        for tp, status in self._statuses():
            place = self._place(tp)
            statuses[place[0], status] += 1
            yield Sample("partition_stopped", status == Status.STOPPED.value, place)
            open_gaps = gaps.get(tp, {})
            yield Sample("prev_gaps_open", len(open_gaps), place)
            yield Sample("prev_gap_open_seconds", max((mono_s - at for _, at in open_gaps.values()), default=0), place)
            silent_s = self._leader_silent_s(tp)
            if silent_s is not None:
                yield Sample("leader_silent_seconds", silent_s, place)
            host = self._worker.hosts.get(tp)
            if host is not None and host.runner is not None:
                yield from self._lag(tp, host, host.runner, place, now_s)
        for labels, count in statuses.items():
            yield Sample("partitions", count, labels)

    def _lag(
        self, tp: TP, host: Host, runner: PartitionRunner, place: tuple[str, str, str], now_s: float
    ) -> Iterator[Sample]:
        lag = None
        if host.status is Status.RUNNING:
            # A consumer that was closed meanwhile raises.
            with contextlib.suppress(RuntimeError, AssertionError):
                lag = self._worker.membership.fetcher.lag(tp, runner.next_offset)
        if lag is not None:
            yield Sample("lag_records", lag, place)
        if lag == 0:
            self._caught_up_s[tp] = now_s
            yield Sample("lag_seconds", 0, place)
            return
        # What was applied last may be old because nothing came; what came since we had all of it is younger.
        since_s = max(host.last_at_ms / 1000, self._caught_up_s.get(tp, 0.0))
        if since_s and (lag is not None or host.status is Status.STOPPED):
            yield Sample("lag_seconds", max(0.0, now_s - since_s), place)

    def _meaning(self) -> Iterator[Sample]:
        for tp, host in list(self._worker.hosts.items()):
            runner = host.runner
            partition = str(tp.partition)
            if runner is None or host.status is Status.CLOSED:
                continue
            stage = runner.stage
            if isinstance(stage, AccountStage):
                clock_ms, newest_ms = stage.label_clock_ms, stage.newest_event_ms
                if clock_ms:
                    yield Sample("label_clock_timestamp_seconds", clock_ms / 1000, ("account", partition))
                if newest_ms:
                    yield Sample("newest_payment_timestamp_seconds", newest_ms / 1000, (partition,))
                if clock_ms and newest_ms:
                    yield Sample("maturity_lag_seconds", (newest_ms - clock_ms) / 1000, (partition,))
            elif isinstance(stage, TerminalStage):
                yield from self._decides(stage, partition)
            elif isinstance(stage, LearnStage):
                yield Sample("model_refused", bool(stage.broken), ("learner",))

    def _decides(self, stage: TerminalStage, partition: str) -> Iterator[Sample]:
        if stage.label_clock_ms:
            yield Sample("label_clock_timestamp_seconds", stage.label_clock_ms / 1000, ("terminal", partition))
        decider = stage.decider
        yield Sample("policy_enforced", decider.policy.mode == "enforce", (partition,))
        yield Sample("model_decides", decider.model_has_say, (partition,))
        yield Sample("model_refused", bool(decider.refused_model), (partition,))
        yield Sample("engine", stage.meaning.engine, (partition,))
        model = decider.model
        if model is None:
            return
        yield Sample("model", 1, (partition, model.version))
        made_ms = self._worker.control_log.published_ms(model.version)
        if made_ms is not None:
            yield Sample("model_age_seconds", max(0.0, time.time() - made_ms / 1000), (partition,))

    def _process(self) -> Iterator[Sample]:
        worker = self._worker
        membership = worker.membership
        counts = worker.latency_counts.copy()
        yield Sample("answer_latency_seconds", Distribution(self._latency_bounds_s, counts, worker.latency_sum_s))
        with self._lock:
            checkpoints = Distribution(CHECKPOINT_BOUNDS_S, list(self._checkpoint_counts), self._checkpoint_sum_s)
        yield Sample("checkpoint_duration_seconds", checkpoints)
        yield Sample("last_checkpoint_timestamp_seconds", self._checkpointed_at_s)
        yield Sample("group_member", membership.member)
        yield Sample("group_generation", membership.generation)
        yield Sample("disk_full", worker.disk_full)
        yield Sample("snapshot_failing", bool(worker.snapshots_failing))
        yield Sample("producer_queue_records", worker.producer.queued)
        yield Sample("producer_waits", worker.producer.waits)
        if self._loop is None:
            return
        yield Sample("loop_delay_seconds", max(0.0, time.monotonic() - self._beat_s))
        with contextlib.suppress(AssertionError):
            fetched = membership.fetcher.stats()
            yield Sample("fetched_records", fetched.records)
            yield Sample("fetch_blocked_seconds", fetched.blocked_s)
            for error, count in fetched.transient_errors.items():
                yield Sample("fetch_errors", count, (error,))


def _business(totals: Counter[str], account: Counter[str], terminal: Counter[str]) -> Iterator[Sample]:
    for arrival in _ARRIVALS:
        yield Sample("payments", account[arrival], (arrival,))
    yield Sample("payments_late", account["late"])
    yield Sample("unknown_fields", account["unknown_fields"])
    refused_late = sum(count for name, count in terminal.items() if name.startswith("refused:"))
    first = sum(terminal[name] for verdict in _VERDICTS for name in (verdict, f"test:{verdict}"))
    yield Sample("answers", first, ("first",))
    yield Sample("answers", terminal["repeated"], ("repeat",))
    yield Sample("answers", account["refused"] + refused_late, ("refused",))
    for verdict in _VERDICTS:
        yield Sample("verdicts", terminal[verdict], (verdict, "live"))
        yield Sample("verdicts", terminal[f"test:{verdict}"], (verdict, "test"))
    for start, topic in _REFUSALS.items():
        for name, count in sorted(totals.items()):
            if name.startswith(start):
                yield Sample("refusals", count, (topic, name.removeprefix(start)))
    yield Sample("answers_suppressed", terminal["runner.suppressed"])
    for name, outcome in _LABEL_OUTCOMES.items():
        yield Sample("labels", totals[name], (outcome,))
    for name, outcome in _UPDATE_OUTCOMES.items():
        yield Sample("updates", totals[name], (outcome,))
    for kind in _EXAMPLES:
        yield Sample("examples", totals[kind], (kind,))
    yield Sample("examples_matured", terminal["matured"])
    for outcome in ("published", "held"):
        yield Sample("model_versions", totals[outcome], (outcome,))
