"""Runs a demonstration from the first process to the last figure.

simulate ┐
kernels  ├─► topics ─► workers ─► opening ─► course, at its pace ─► held labels ─► figures
broker   ┘                                      └► tally ─► view
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Final

import msgspec
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from stream.broker.embedded import EmbeddedBroker
from stream.dataset import Event
from stream.demo.feed import Feed, build_feed
from stream.demo.kernels import compile_kernels
from stream.demo.plan import MATURITY_DAYS, OPENING, Plan
from stream.demo.quality import counted, measure, version_uses
from stream.demo.report import Latency, Report
from stream.demo.tally import Tally, Watch
from stream.demo.workers import DemoFailed, Workers
from stream.errors import OperatorError
from stream.operate import initialise
from stream.publish import Publisher, connect, publish
from stream.reconcile import Reconciled, reconcile
from stream.rules.policy import DEFAULT_POLICY
from stream.settings import Settings
from topics.catalogue import catalogue
from topics.limits import DAY_MS, LIMITS_DEFAULT

BASE_CURRENCY: Final = "EUR"
LOOK_EVERY_S: Final = 0.25
OPENING_S_MAX: Final = 240.0  # the first start on a slow machine compiles for a while
BACKLOG_S: Final = 0.4  # what may wait for its answer, in seconds of the plan's rate
PAUSE_S: Final = 0.002
SILENCE_S_MAX: Final = 30.0
INITIALISE_S_MAX: Final = 15.0
SETTLED_S: Final = 1.5
SETTLE_S_MAX: Final = 20.0
KINDS: Final = ("payment", "update", "label")
DELETE_S: Final = 20.0


class Progress(msgspec.Struct):
    """What a view shows beside the tally. `sent`: payments. `phase`: one word or two, for people."""

    plan: Plan
    phase: str = "starting"
    sent: int = 0
    labels_sent: int = 0
    began_s: float = 0.0  # of the course, by the monotonic clock


Look = Callable[[Progress, Tally | None], None]
"""Called some times a second, and whenever the phase changes."""


def run_demo(plan: Plan, settings: Settings | None, *, keep_topics: bool, look: Look) -> Report:
    """Run it all. `settings` None: with a broker of its own, which goes with everything on it.

    `keep_topics`: leave them on the broker of `settings`. Raises `OperatorError`.
    """
    began_s = time.monotonic()
    progress = Progress(plan)
    with ExitStack() as stack:
        feed, used = _prepare(stack, plan, settings, progress, look)
        _initialise(used, replication=-1 if settings is not None else 1)
        if settings is not None and not keep_topics:
            stack.callback(_delete_topics, used)
        tally = Tally(feed.frauds, feed.bad)
        watch = stack.enter_context(Watch(used, tally))
        workers = stack.enter_context(Workers(used, plan.workers, tick_s=plan.tick_s))
        stream_s = _Show(used, feed, progress, tally, watch, workers, look).run()
        progress.phase = "reckoning"
        look(progress, tally)
        found = reconcile(used.client(), used.prefix)
        return _report(plan, used, feed, tally, found, stream_s, began_s, embedded=settings is None)


def _initialise(settings: Settings, *, replication: int) -> None:
    """Topics and settings. Tried again for a while: a new partition's leader may not know yet that it leads."""
    give_up_s = time.monotonic() + INITIALISE_S_MAX
    while True:
        try:
            done = initialise(
                settings,
                "earliest",
                by="fraud demo",
                why="a demonstration",
                replication=replication,
                limits=msgspec.structs.replace(LIMITS_DEFAULT, maturity_ms=MATURITY_DAYS * DAY_MS),
                base_currency=BASE_CURRENCY,
                policy=msgspec.structs.replace(DEFAULT_POLICY, mode="enforce"),
            )
        except OperatorError:
            if time.monotonic() > give_up_s:
                raise
            time.sleep(LOOK_EVERY_S)
            continue
        if done.existed:
            raise DemoFailed(f"prefix {settings.prefix!r} is in use on {settings.bootstrap}: choose another")
        return


def _prepare(
    stack: ExitStack, plan: Plan, settings: Settings | None, progress: Progress, look: Look
) -> tuple[Feed, Settings]:
    """The feed, and where the broker is; the broker boots while payments are simulated."""
    pool = stack.enter_context(ThreadPoolExecutor(1))
    broker = None if settings is not None else EmbeddedBroker()
    booted = None
    if broker is not None:
        stack.callback(broker.stop)
        booted = pool.submit(broker.start)
    progress.phase = "simulating payments"
    look(progress, None)
    feed = build_feed(plan)
    progress.phase = "compiling kernels"
    look(progress, None)
    compile_kernels()
    progress.phase = "starting the broker" if broker is not None else "creating topics"
    look(progress, None)
    if settings is not None:
        return feed, settings
    assert booted is not None
    # Else the environment of another deployment would reach into this one.
    given: dict[str, Any] = {"bootstrap": booted.result().bootstrap, "prefix": "", "group": "fraudstream-demo"}
    return feed, Settings(**given)


class _Show:
    """The part that is worth watching."""

    def __init__(
        self,
        settings: Settings,
        feed: Feed,
        progress: Progress,
        tally: Tally,
        watch: Watch,
        workers: Workers,
        look: Look,
    ) -> None:
        self._feed = feed
        self._progress = progress
        self._tally = tally
        self._watch = watch
        self._workers = workers
        self._look = look
        self._publisher = Publisher(connect(settings.client()), prefix=settings.prefix)
        self._stop = threading.Event()

    def run(self) -> float:
        """Sends everything and waits for its answers. Seconds from the first measured payment to the last answer."""
        progress, tally = self._progress, self._tally
        self._publisher.require_topics(KINDS)
        try:
            progress.phase = "starting workers"
            publish(self._feed.opening, self._publisher)
            self._wait(lambda: len(tally.latencies_ms) >= OPENING, OPENING_S_MAX)
            tally.begin_measuring()
            progress.phase = "streaming"
            progress.began_s = time.monotonic()
            self._send(self._paced(self._feed.course))
            self._until_answered()
            stream_s = time.monotonic() - progress.began_s
            progress.phase = "the tail's chargebacks"
            self._send(self._feed.held)
            self._settle()
        except BaseException:
            self._publisher.abandon()
            raise
        return stream_s

    def _paced(self, events: Iterable[Event]) -> Iterator[Event]:
        """At the plan's rate; slower where answers fall behind, and then time that was lost is not made up for."""
        progress, tally = self._progress, self._tally
        every_s = 1.0 / progress.plan.rate
        backlog_max = BACKLOG_S * progress.plan.rate
        due_s = time.monotonic()
        sent = OPENING
        for event in events:
            if event.kind == "payment":
                while sent - tally.answered > backlog_max and not self._stop.is_set():
                    time.sleep(PAUSE_S)
                now_s = time.monotonic()
                if due_s - now_s > PAUSE_S:
                    time.sleep(due_s - now_s)
                due_s = max(due_s, now_s) + every_s
                sent += 1
            if self._stop.is_set():
                return
            yield event

    def _send(self, events: Iterable[Event]) -> None:
        """Send in a thread of its own, so that looking never delays a payment."""
        with ThreadPoolExecutor(1, thread_name_prefix="demo-send") as pool:
            sent = pool.submit(publish, events, self._publisher)
            try:
                before, since_s = -1, time.monotonic()
                while not sent.done():
                    if self._tally.answered != before:
                        before, since_s = self._tally.answered, time.monotonic()
                    elif before < self._progress.plan.payments and time.monotonic() - since_s > SILENCE_S_MAX:
                        raise DemoFailed(f"no answers for {SILENCE_S_MAX:.0f} s; {self._workers.log_ends()}")
                    self._watch_once()
            except BaseException:
                # Else the thread would wait for answers, or for a broker, that are gone.
                self._stop.set()
                self._publisher.abandon()
                raise
            sent.result()

    def _watch_once(self) -> None:
        self._watch.check()
        self._workers.check()
        counts = self._publisher.counts
        self._progress.sent = counts.get("payment", 0)
        self._progress.labels_sent = counts.get("label", 0)
        self._look(self._progress, self._tally)
        time.sleep(LOOK_EVERY_S)

    def _wait(self, until: Callable[[], bool], seconds: float) -> None:
        """Raises `DemoFailed` if it does not come."""
        end_s = time.monotonic() + seconds
        while not until():
            self._watch_once()
            if time.monotonic() > end_s:
                raise DemoFailed(f"no answers for {seconds:.0f} s; {self._workers.log_ends()}")

    def _until_answered(self) -> None:
        """Until every payment is, or nothing comes any more: what is missing then, the reckoning will say."""
        before, since_s = -1, time.monotonic()
        while self._tally.answered < self._progress.plan.payments and time.monotonic() - since_s < SILENCE_S_MAX:
            if self._tally.answered != before:
                before, since_s = self._tally.answered, time.monotonic()
            self._watch_once()

    def _settle(self) -> None:
        """Until the last labels have become examples."""
        end_s = time.monotonic() + SETTLE_S_MAX
        before, since_s = -1, time.monotonic()
        while time.monotonic() - since_s < SETTLED_S and time.monotonic() < end_s:
            if self._tally.examples_in_all != before:
                before, since_s = self._tally.examples_in_all, time.monotonic()
            self._watch_once()


def _delete_topics(settings: Settings) -> None:
    """A broker that is not ours gets back what it had."""
    admin = AdminClient(settings.client())
    futures: dict[str, Any] = admin.delete_topics([topic.name for topic in catalogue(settings.prefix).values()])
    for future in futures.values():
        try:
            future.result(DELETE_S)
        except (KafkaException, TimeoutError):
            continue  # what is left has a prefix of its own, and harms nobody


def _report(
    plan: Plan,
    settings: Settings,
    feed: Feed,
    tally: Tally,
    found: Reconciled,
    stream_s: float,
    began_s: float,
    *,
    embedded: bool,
) -> Report:
    uses = version_uses(tally)
    quality = measure(settings, tally, feed.frauds)
    return Report(
        payments=found.payments,
        decisions=found.answers,
        missing=found.missing,
        conflicting=found.conflicting,
        repeated=found.repeated,
        dead_letters=found.dead_letters,
        bad_injected=len(tally.expected),
        bad_refused=tally.bad_refused,
        wrongly_refused=tally.wrongly_refused,
        repeats_sent=feed.repeats,
        repeats_answered=tally.repeats,
        labels=feed.labels,
        labels_joined=tally.labels_joined,
        examples=tally.examples_in_all,
        model_versions=len(counted(uses)),
        model_versions_held=tally.held_versions,
        versions=uses,
        average_precision=None if quality is None else quality.as_decided,
        average_precision_first_version=None if quality is None else quality.first,
        average_precision_amount_only=None if quality is None else quality.amount_only,
        average_precision_rules_only=None if quality is None else quality.rules_only,
        rescored_equal=quality is None or quality.rescored_equal,
        compared_payments=0 if quality is None else quality.payments,
        compared_frauds=0 if quality is None else quality.frauds,
        outcomes=dict(sorted(tally.outcomes.items())),
        payments_per_second=round((plan.payments - OPENING) / stream_s, 1),
        latency_ms=Latency.of(tally.latencies_ms),
        stream_seconds=round(stream_s, 1),
        seconds=round(time.monotonic() - began_s, 1),
        workers=plan.workers,
        seed=plan.seed,
        bootstrap=settings.bootstrap or "",
        prefix=settings.prefix,
        embedded_broker=embedded,
    )
