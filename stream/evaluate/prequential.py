"""Prequential evaluation: each payment is answered by what had been observed by then, through the stages of the way.

Records come in order of data time: at one instant the clock first, then updates, labels and payments. So a label counts
for payments at its `observed_at` or later, which is what the windows say, too. The broker's time of a record is the
highest data time so far: nothing that comes later can change it.

At every multiple of `tick_ms` of data time, before the payments of that instant, all that has been taken in is applied
to the end, what is due matures, and the learner may publish. A version decides from there on.

Everything is a function of the records up to there. How a file is cut into batches, and how many journal records a
stage applies at once, changes nothing.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from operator import attrgetter

from stream.dataset import TOPIC_OF, Event, EventKind
from stream.evaluate.settings import INTAKE_PAYMENTS_MAX, PUMP_PAYMENTS, Evaluation
from stream.replay.local import Local
from stream.replay.log import LocalLog
from stream.rules.policy import DEFAULT_POLICY
from stream.stages.account import TERMINAL_JOURNAL
from stream.stages.answers import DEAD_LETTERS, DECISIONS, DETAILS
from stream.stages.control import CONTROL
from stream.stages.learn import LearnStage
from stream.stages.stage import Record
from stream.stages.terminal import EXAMPLES, TerminalStage
from stream.stages.wiring import STAGE_TOPICS, Partitions
from topics.control import Rates, encode_control
from topics.journal import tick_block
from topics.limits import Limits

BY = "fraud evaluate"
DRAIN_MAX = 1_000_000  # ticks of one instant; a bound on a loop that ends when nothing is due

_kind = attrgetter("kind")
_at_ms = attrgetter("at_ms")

Reader = Callable[[str, Sequence[Record]], None]
"""Gets what was appended to a topic, in order, once."""


class Prequential:
    """Feed events in order of time, then `finish`. `read` gets the records of `topics` before they are forgotten."""

    def __init__(self, settings: Evaluation, *, read: Reader, topics: Sequence[str] = (DECISIONS,)) -> None:
        self.settings = settings
        self.log = LocalLog()
        self.local = Local(
            self.log,
            Partitions(),
            batch=settings.batch,
            plain=settings.plain,
            details=DETAILS in topics,
            checkpoint_every=None,
        )
        self.taken: dict[str, int] = dict.fromkeys(TOPIC_OF, 0)
        self._read = read
        self._topics = tuple(topics)
        self._given: dict[str, int] = dict.fromkeys(self._topics, 0)
        self._open_topic = ""
        self._open = 0
        self._since_pump = 0
        self._next_tick_ms: int | None = None

    def feed(self, events: Iterable[Event]) -> None:
        """Take records that come after all that were fed before."""
        for kind, of_kind in groupby(events, _kind):
            run = list(of_kind)
            done = 0
            while done < len(run):
                done = self._feed_some(kind, run, done)

    def _feed_some(self, kind: EventKind, run: Sequence[Event], start: int) -> int:
        """Take records of one kind from `start` on, as many as go into a block and before the next tick; the first
        that was not taken."""
        local = self.local
        at_ms = run[start].at_ms
        if self._next_tick_ms is None:
            self._next_tick_ms = self._begin(at_ms)
        elif at_ms >= self._next_tick_ms and kind != "clock":
            self._tick(at_ms)
        topic = TOPIC_OF[kind]
        if topic != self._open_topic or self._open >= INTAKE_PAYMENTS_MAX:
            self._take(topic)
        room = 1 if kind == "clock" else min(INTAKE_PAYMENTS_MAX - self._open, PUMP_PAYMENTS - self._since_pump)
        end = bisect_left(run, self._next_tick_ms, start + 1, min(start + room, len(run)), key=_at_ms)
        now_ms = local.now_ms
        times = [event.at_ms if event.at_ms > now_ms else now_ms for event in run[start:end]]
        self.log.append_all(topic, 0, [event.value for event in run[start:end]], times)
        local.now_ms = times[-1]
        self.taken[kind] += end - start
        self._open += end - start
        self._since_pump += end - start
        if kind == "clock" and at_ms >= self._next_tick_ms:
            self._tick(at_ms)
        elif self._since_pump >= PUMP_PAYMENTS:
            self._pump()
        return end

    def finish(self) -> None:
        """Apply what is left. What was fed is answered then, and read."""
        self._pump()

    @property
    def terminal(self) -> TerminalStage:
        stage = self.local.runners[TERMINAL_JOURNAL, 0].stage
        assert isinstance(stage, TerminalStage)
        return stage

    @property
    def learn(self) -> LearnStage:
        stage = self.local.runners[EXAMPLES, 0].stage
        assert isinstance(stage, LearnStage)
        return stage

    def _begin(self, at_ms: int) -> int:
        """What an operator sets before the first payment; when the first tick is due."""
        settings, local = self.settings, self.local
        local.now_ms = at_ms
        maturity = Limits(maturity_ms=settings.maturity_ms)
        rates = Rates(base=settings.base_currency, nano_base_per_minor={})
        for value in (
            encode_control(kind="settings", by=BY, why="maturity horizon of the evaluation", payload=maturity),
            encode_control(kind="rates", by=BY, why="base currency of the evaluation", payload=rates),
            encode_control(kind="policy", by=BY, why="the default policy", payload=DEFAULT_POLICY),
        ):
            self.log.append(CONTROL, 0, value, at_ms=at_ms)
        self._pump()
        return (at_ms // settings.tick_ms + 1) * settings.tick_ms

    def _take(self, topic: str) -> None:
        """Pass on what was gathered of one topic, as one round of its intake."""
        if self._open:
            self.local.take(self._open_topic, 0)
        self._open_topic = topic
        self._open = 0

    def _pump(self) -> None:
        self._take("")
        self.local.pump()
        self._since_pump = 0
        for topic in self._topics:
            self._give(topic)
        self._forget()
        self.terminal.answered_at_ms.clear()

    def _tick(self, at_ms: int) -> None:
        """All data before this instant is in: let what is due mature, and the learner publish."""
        local = self.local
        self._next_tick_ms = (at_ms // self.settings.tick_ms + 1) * self.settings.tick_ms
        local.now_ms = max(local.now_ms, at_ms)
        self._take("")
        local.pump()
        for _ in range(DRAIN_MAX):
            if not self.terminal.due_left:
                break
            self.log.append(TERMINAL_JOURNAL, 0, tick_block(at_ms), at_ms=local.now_ms)
            local.pump()
        self.log.append(EXAMPLES, 0, tick_block(at_ms), at_ms=local.now_ms)
        self._pump()

    def _give(self, topic: str) -> None:
        end = self.log.end(topic, 0)
        given = self._given[topic]
        if end > given:
            self._read(topic, self.log.read(topic, 0, given, end - given))
            self._given[topic] = end

    def _forget(self) -> None:
        """Everything has been read by its stage, and given to whoever asked."""
        for topic in (*STAGE_TOPICS, DECISIONS, DETAILS, DEAD_LETTERS):
            self.log.forget_before(topic, 0, self.log.end(topic, 0))
