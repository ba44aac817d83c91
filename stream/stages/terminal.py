"""The terminal stage: the terminal's windows, and the decision with all that the payment has collected.

    Placed ─► terminal windows ─► features ─► rules, model ─► verdict ─► decision, details
                                      │                                     └► kept, for repeats
                                      └► pending row: the features as they were
    Repeat ─► the first's answer, again
    Judged ─► pending row + truth ─► example ─► learner          Became ─► did the money move?
    Clock  ─► what silence says by now ─► examples                Marker ─► model, rules, policy, settings from here on

Bounds: whole answers for `answer_ttl_ms` of broker time and a day; pending rows for `road_ms` on the labels' clock.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import cast

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from stream.errors import InternalError
from stream.features import ENTITY_FEATURES, ENTITY_INDEX, local_minutes
from stream.model.sampling import NOTABLE_PROBABILITY, percent_known
from stream.rules.policy import VERDICTS
from stream.stages import keys, pending
from stream.stages.account import TERMINAL_JOURNAL
from stream.stages.answers import EXPIRED, SKIPPED, Answerer, delivery_of
from stream.stages.control import Meaning
from stream.stages.decide import Decided, Decider
from stream.stages.observe import observations
from stream.stages.stage import Outbox, Step, origin_n
from stream.stages.state import State
from stream.windows.entity import EntityWindows
from topics.journal import (
    EXAMPLE_CORRECTED,
    EXAMPLE_LABELLED,
    EXAMPLE_MATURED,
    EXAMPLE_UNLABELLED,
    Became,
    Clock,
    Example,
    Judged,
    Marker,
    Placed,
    Repeat,
    Tick,
)
from topics.limits import DAY_MS

EXAMPLES = "examples"
MATURED_MAX = 100
DUE_ROWS_MAX = 400  # one legitimate payment in four teaches, so about MATURED_MAX of these do
UNLABELLED_ONE_IN = 100
PAYER_RATIO_AT = ENTITY_INDEX["amount_ratio"]
assert MATURED_MAX < 200, "the outputs of one step must be numbered within its item"


class _Globals(Struct, array_like=True):
    """Small state, written whole. Clocks in ms UTC, one per account partition; `cursor`: the silence about pending rows
    below it has taught; `answers_from_ms`: answers first asked for before it are gone; `latest_at_ms`: the broker's;
    `told`: payments that a label called fraud; `told_soon`: before the silence about their day taught.
    """

    clocks: list[int]
    cursor: bytes
    due_left: bool
    answers_from_ms: int
    latest_at_ms: int
    told: int = 0
    told_soon: int = 0


class TerminalStage:
    """`account_partitions`: of the account journal, whose clocks this stage waits for; `decision_partitions`.

    `details`: False where nobody reads them, as in an evaluation. Nothing else changes.
    """

    def __init__(
        self,
        state: State,
        *,
        partition: int,
        account_partitions: int,
        decision_partitions: int,
        slots_max: int = 200_000,
        plain: bool = False,
        details: bool = True,
    ) -> None:
        self._state = state
        self._slots_max = slots_max
        self._details = details
        self.windows = EntityWindows(plain=plain)
        self.meaning = Meaning(state)
        self.decider = Decider(state, self.meaning, partition=partition)
        self._answers = Answerer(self.meaning, partition=partition, decision_partitions=decision_partitions)
        self.counts: Counter[str] = Counter()
        self.answered_at_ms: list[int] = []
        kept = state.get(keys.TABLE_GLOBALS)
        self._globals = (
            _Globals([0] * account_partitions, keys.TABLE_PENDING, False, 0, 0)
            if kept is None
            else msgspec.msgpack.decode(kept, type=_Globals)
        )
        self._label_clock_ms = min(self._globals.clocks)
        self._forgot_to_ms = 0

    # ---- the stage ----

    def apply(self, steps: Sequence[Step], out: Outbox) -> None:
        for run in _runs(steps):
            if isinstance(run[0].item, Placed):
                self._decide(run, out)
            else:
                for step in run:
                    self._other(step, out)

    def skip(self, steps: Sequence[Step], out: Outbox) -> None:
        for step in steps:
            item = step.item
            if isinstance(item, Placed | Repeat):
                self.counts[f"refused:{SKIPPED.cause}"] += isinstance(item, Repeat) or item.payment.mode != "backfill"
                self._answers.refuse_skipped(step, item, out)
            elif isinstance(item, Clock):
                self._advance(item)

    def settle(self) -> None:
        for key, value in self.windows.export_dirty():
            self._state.put(key or keys.ENTITY_STORE_KEY, value)
        self.windows.evict(self._slots_max)
        self._state.put(keys.TABLE_GLOBALS, msgspec.msgpack.encode(self._globals))

    @property
    def due_left(self) -> bool:
        """Rows are due that no step has drained yet: a tick would help."""
        return self._globals.due_left

    @property
    def label_clock_ms(self) -> int:
        """The least of the account partitions' labels' clocks, ms UTC; 0: one has not been heard of."""
        return self._label_clock_ms

    # ---- payments ----

    def _decide(self, run: Sequence[Step], out: Outbox) -> None:
        placed = [cast(Placed, step.item) for step in run]
        accounts = np.frombuffer(b"".join([item.entities[0] for item in placed]), np.float32).reshape(len(run), -1)
        payments = [item.payment for item in placed]
        minutes = local_minutes(payments)
        terminals = self._observe(placed, accounts, minutes)
        amounts = [item.base_amount for item in placed]
        decided = self.decider.decide(payments, accounts, terminals, amounts, minutes)
        pids64 = keys.pids64([item.pid for item in placed])
        unlabelled = (pids64 % UNLABELLED_ONE_IN == 0).tolist()
        for i, (step, item) in enumerate(zip(run, placed, strict=True)):
            mode = item.payment.mode
            if mode != "backfill":
                self._answer(step, item, decided, i, out)
            if mode != "test":
                self._await_truth(item, decided, i)
                if unlabelled[i]:
                    self._show(step, item, decided.rows[i], out)
        self._count(placed, decided)
        self.answered_at_ms += [item.at_ms for item in placed if item.payment.mode != "backfill"]
        g = self._globals
        g.latest_at_ms = max(g.latest_at_ms, max([item.at_ms for item in placed]))
        self._forget_answers()

    def _count(self, placed: Sequence[Placed], decided: Decided) -> None:
        """Payments that were decided, and their verdicts by mode."""
        self.counts["decided"] += len(placed)
        modes = [item.payment.mode for item in placed]
        for (mode, code), n in Counter(zip(modes, decided.verdict, strict=True)).items():
            if mode != "backfill":
                self.counts[VERDICTS[code] if mode == "live" else f"test:{VERDICTS[code]}"] += n

    def _observe(
        self, placed: Sequence[Placed], accounts: NDArray[np.float32], minutes: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """The terminals' features; a row of NaN where a payment names none."""
        rows = [i for i, item in enumerate(placed) if item.payment.terminal_id is not None]
        if len(rows) == len(placed):
            return self._observe_rows(placed, accounts[:, PAYER_RATIO_AT], minutes)
        block = np.full((len(placed), len(ENTITY_FEATURES)), np.nan, np.float32)
        if rows:
            block[rows] = self._observe_rows([placed[i] for i in rows], accounts[rows, PAYER_RATIO_AT], minutes[rows])
        return block

    def _observe_rows(
        self, placed: Sequence[Placed], payer_ratio: NDArray[np.float32], minutes: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """The terminals' features of payments that all name one."""
        payments = [item.payment for item in placed]
        entity_keys = [keys.entity_key(p.tenant_id, p.terminal_id or "") for p in payments]
        observed = observations(
            payments,
            amounts=[item.base_amount for item in placed],
            others=[keys.other64(p.tenant_id, p.account_id) for p in payments],
            payments64=keys.pids64([item.pid for item in placed]),
            label_clocks=np.full(len(placed), self._label_clock_ms, np.int64),
            minutes=minutes,
            payer_ratio=payer_ratio.copy(),  # a view of one row is contiguous, and of bytes that nobody may write
        )
        slots = self.windows.slots(entity_keys, self._load)
        return self.windows.observe(slots, observed, maturity_ms=self.meaning.limits.maturity_ms)

    def _load(self, wanted: list[bytes]) -> list[bytes | None]:
        return self._state.get_many([key or keys.ENTITY_STORE_KEY for key in wanted])

    def _answer(self, step: Step, item: Placed, decided: Decided, i: int, out: Outbox) -> None:
        value, details = self.decider.answer(step, item, decided, i, details=self._details)
        if item.at_ms >= self._globals.answers_from_ms:  # else it is forgotten already, wherever a run is cut
            self._state.put(keys.time_key(keys.TABLE_ANSWER, item.at_ms, item.pid), value)
        self._answers.send_decided(step, item, value, details, out)

    def _await_truth(self, item: Placed, decided: Decided, i: int) -> None:
        """Keep the features as they were, until labels or silence say what they led to."""
        payment = item.payment
        key = pending.pending_key(payment.event_time, item.pid)
        flags = pending.ANSWERED_DECLINE if decided.declines(i) and payment.mode != "backfill" else 0
        if (decided.probability[i] or 0.0) >= NOTABLE_PROBABILITY:
            flags |= pending.NOTABLE
        entity = b"" if payment.terminal_id is None else keys.entity_key(payment.tenant_id, payment.terminal_id)
        features = decided.rows[i]
        self._state.put(key, pending.pack_new(flags, entity, features))
        if key < self._globals.cursor:
            self._state.put(keys.TABLE_LATE_DUE + key[1:], b"")
            self._globals.due_left = True

    def _show(self, step: Step, item: Placed, features: bytes, out: Outbox) -> None:
        """One payment in a hundred goes to the learner without a label, for its bins."""
        event_ms = item.payment.event_time
        n = origin_n(step, 0)
        out.journal(
            step,
            EXAMPLES,
            0,
            Example(step.offset, n, EXAMPLE_UNLABELLED, item.pid, event_ms, 0, False, 0.0, features),
        )

    def _forget_answers(self) -> None:
        """Whole days only, so that it does not matter at which payment of a run this is asked."""
        g = self._globals
        keep_from = (g.latest_at_ms - self.meaning.limits.answer_ttl_ms) // DAY_MS * DAY_MS
        if keep_from > g.answers_from_ms:
            g.answers_from_ms = keep_from
            self._state.drop_range(keys.TABLE_ANSWER, keys.time_key(keys.TABLE_ANSWER, keep_from))

    def _repeat(self, step: Step, item: Repeat, out: Outbox) -> None:
        value = None
        young = item.at_ms - item.first_at_ms <= self.meaning.limits.answer_ttl_ms
        if young and item.first_at_ms >= self._globals.answers_from_ms:
            value = self._state.get(keys.time_key(keys.TABLE_ANSWER, item.first_at_ms, item.pid))
        if value is None:
            self.counts[f"refused:{EXPIRED.cause}"] += 1
            self._answers.refuse_expired(step, item, out)
        else:
            self.counts["repeated"] += 1
            self._answers.send(step, delivery_of(item), item.tenant_id, item.account_id, value, repeat=True, out=out)

    # ---- labels, updates, clocks, markers ----

    def _other(self, step: Step, out: Outbox) -> None:
        item = step.item
        if isinstance(item, Repeat):
            self._repeat(step, item, out)
        elif isinstance(item, Judged):
            self._join(step, item, out)
        elif isinstance(item, Became):
            self._became(item)
        elif isinstance(item, Clock):
            if self._advance(item):
                self._mature(step, out)
        elif isinstance(item, Tick):
            self._mature(step, out)
        elif isinstance(item, Marker):
            self.meaning.apply(item)
            self.decider.apply(item)
        else:
            raise InternalError(f"a {type(item).__name__} does not belong on {TERMINAL_JOURNAL}")

    def _join(self, step: Step, judged: Judged, out: Outbox) -> None:
        """The truth meets the features as they were. It teaches at once, but not before silence does."""
        key = pending.pending_key(judged.event_ms, judged.pid)
        kept = self._state.get(key)
        if kept is None or self._forgotten(judged.event_ms):
            self.counts["labels_late"] += 1
            return
        self.counts["labels_met"] += 1
        row = pending.unpack(kept)
        self._mark_terminal(row, judged)
        truth = pending.truth_of(judged)
        if judged.fraud and row.truth == pending.TAUGHT_NOTHING:
            self._globals.told += 1
            self._globals.told_soon += judged.observed_ms - judged.event_ms <= self._soon_ms
        if not self._had_its_time(key):
            label = (judged.observed_ms, judged.source)
            self._state.put(key, pending.pack(row._replace(truth=truth, label=label)))
            return
        was_fraud, was_weight = pending.what_was_taught(row)
        if truth == pending.TAUGHT_NOTHING:  # its labels say nothing of fraud any more
            truth = pending.TAUGHT_LEGITIMATE if was_fraud else row.taught
        fraud = truth in (pending.TAUGHT_FRAUD, pending.TAUGHT_PROVISIONAL)
        known = row.taught != pending.TAUGHT_NOTHING
        confirms = known and was_fraud == fraud and truth != pending.TAUGHT_FRAUD
        if confirms or truth == row.taught:
            return
        self._state.put(key, pending.pack(row._replace(truth=truth, taught=truth)))
        example = Example(
            step.offset,
            origin_n(step, 0),
            EXAMPLE_CORRECTED if was_weight else EXAMPLE_LABELLED,
            judged.pid,
            judged.event_ms,
            judged.observed_ms,
            fraud,
            1.0,
            row.features,
            judged.provisional,
            judged.source,
            was_fraud,
            was_weight,
            row.taught == pending.TAUGHT_PROVISIONAL,
        )
        out.journal(step, EXAMPLES, 0, example)

    def _had_its_time(self, key: bytes) -> bool:
        """Whether this row was asked what it teaches."""
        return key < self._globals.cursor and self._state.get(keys.TABLE_LATE_DUE + key[1:]) is None

    def _mark_terminal(self, row: pending.Row, judged: Judged) -> None:
        if not row.entity:
            return
        slot = int(self.windows.slots([row.entity], self._load)[0])
        fraud = bool(judged.fraud)
        self.windows.label(
            slot,
            payment=keys.pid64(judged.pid),
            event_ms=judged.event_ms,
            observed_ms=judged.observed_ms if fraud else 0,
            fraud=fraud,
        )

    def _became(self, became: Became) -> None:
        key = pending.pending_key(became.event_ms, became.pid)
        kept = self._state.get(key)
        if kept is None or self._forgotten(became.event_ms):
            self.counts["updates_late"] += 1
            return
        row = pending.unpack(kept)
        clear = row.flags & ~(pending.THROUGH_NO | pending.THROUGH_YES)
        flag = pending.THROUGH_YES if became.through else pending.THROUGH_NO
        self._state.put(key, pending.pack(row._replace(flags=clear | flag)))

    def _advance(self, clock: Clock) -> bool:
        """Whether the least of the clocks moved."""
        clocks = self._globals.clocks
        clocks[clock.account_partition] = max(clocks[clock.account_partition], clock.clock_ms)
        before, self._label_clock_ms = self._label_clock_ms, min(clocks)
        if self._label_clock_ms == before:
            return False
        forget_to = self._forget_before_ms()
        if forget_to > self._forgot_to_ms:  # not kept: to drop a range again is harmless
            self._forgot_to_ms = forget_to
            low = keys.time_key(keys.TABLE_PENDING, forget_to)
            self._state.drop_range(keys.TABLE_PENDING, low)
            self._state.drop_range(keys.TABLE_UNSURE, keys.time_key(keys.TABLE_UNSURE, forget_to))
            self._globals.cursor = max(self._globals.cursor, low)
        return True

    def _forget_before_ms(self) -> int:
        """Pending rows of event times before this are gone; whole days of the labels' clock."""
        return (self._label_clock_ms - self.meaning.limits.road_ms) // DAY_MS * DAY_MS

    def _forgotten(self, event_ms: int) -> bool:
        return event_ms < self._forget_before_ms()

    def _mature(self, step: Step, out: Outbox) -> None:
        """Silence teaches, by the labels' clock alone; a bounded number of examples a step."""
        g = self._globals
        soon_ms = self._label_clock_ms - self._soon_ms
        if soon_ms <= 0:
            return
        unsure = self._unsure_due()
        taught = self._settle(step, unsure, out)
        if len(unsure) == MATURED_MAX:
            g.due_left = True
            return
        due = pending.due(self._state, g.cursor, soon_ms, DUE_ROWS_MAX)
        for key, value in due.late:
            if taught == MATURED_MAX:
                g.due_left = True
                return
            taught += self._teach(step, key, value, taught, out)
            self._state.delete(keys.TABLE_LATE_DUE + key[1:])
        for key, value in due.rows:
            if taught == MATURED_MAX:
                g.due_left = True
                return
            taught += self._teach(step, key, value, taught, out)
            g.cursor = key + b"\0"
        g.cursor = due.cursor
        g.due_left = due.more

    @property
    def _soon_ms(self) -> int:
        """After so long silence begins to teach."""
        return min(self.meaning.limits.maturity_ms, pending.PROVISIONAL_MS)

    def _unsure_due(self) -> list[bytes]:
        """Keys of notable payments whose silence has taught in part, and is mature; at most MATURED_MAX of them."""
        low = keys.time_key(keys.TABLE_UNSURE, self._forget_before_ms())
        high = keys.time_key(keys.TABLE_UNSURE, self._label_clock_ms - self.meaning.limits.maturity_ms + 1)
        return [key for key, _ in self._state.scan(low, high, MATURED_MAX)] if low < high else []

    def _settle(self, step: Step, unsure: list[bytes], out: Outbox) -> int:
        """The silence about these teaches what is left of it; how many did, for a label may have spoken since."""
        pending_keys = [keys.TABLE_PENDING + key[1:] for key in unsure]
        taught = 0
        for key, value in zip(pending_keys, self._state.get_many(pending_keys), strict=True):
            self._state.delete(keys.TABLE_UNSURE + key[1:])
            row = None if value is None else pending.unpack(value)
            if row is not None and row.taught == pending.TAUGHT_UNSURE and row.went_through:
                self._learned(step, key, row, pending.TAUGHT_BY_SILENCE, 1.0 - row.part / 100, taught, out)
                taught += 1
        return taught

    def _teach(self, step: Step, key: bytes, value: bytes | None, j: int, out: Outbox) -> bool:
        """One row whose time has come; whether it teaches."""
        pid = key[9:]
        if value is None or self._forgotten(_event_ms(key)) or pending.is_passed_over(value, pid):
            return False
        row = pending.unpack(value)
        if row.truth != pending.TAUGHT_NOTHING:
            self._learned(step, key, row, row.truth, 1.0, j, out)
            return True
        weight = pending.weight_of_silence(row, pid)
        if not row.went_through or not weight:
            return False
        mature = _event_ms(key) <= self._label_clock_ms - self.meaning.limits.maturity_ms
        if row.flags & pending.NOTABLE and not mature:
            self._state.put(keys.TABLE_UNSURE + key[1:], b"")
            part = percent_known(self._globals.told_soon, self._globals.told)
            row = row._replace(part=part)
            if not part:
                self._state.put(key, pending.pack(row._replace(taught=pending.TAUGHT_UNSURE)))
                return False
            self._learned(step, key, row, pending.TAUGHT_UNSURE, part / 100, j, out)
        else:
            self._learned(step, key, row, pending.TAUGHT_BY_SILENCE, weight, j, out)
        return True

    def _learned(
        self, step: Step, key: bytes, row: pending.Row, taught: int, weight: float, j: int, out: Outbox
    ) -> None:
        """An example of what a label said that waited, or of silence."""
        self.counts["matured"] += 1
        self._state.put(key, pending.pack(row._replace(taught=taught, label=None)))
        silent = taught in (pending.TAUGHT_BY_SILENCE, pending.TAUGHT_UNSURE)
        observed_ms, source = (None if silent else row.label) or (self._label_clock_ms, None)
        example = Example(
            step.offset,
            origin_n(step, j),
            EXAMPLE_MATURED if silent else EXAMPLE_LABELLED,
            key[9:],
            _event_ms(key),
            observed_ms,
            taught in (pending.TAUGHT_FRAUD, pending.TAUGHT_PROVISIONAL),
            weight,
            row.features,
            taught == pending.TAUGHT_PROVISIONAL,
            source,
        )
        out.journal(step, EXAMPLES, 0, example)


def _event_ms(key: bytes) -> int:
    """The event time in the key of a pending row."""
    return int.from_bytes(key[1:9], "big")


def _runs(steps: Sequence[Step]) -> Iterator[Sequence[Step]]:
    """Cut into runs of payments, which are decided at once, and runs of all else."""
    start = 0
    for i in range(1, len(steps) + 1):
        if i == len(steps) or isinstance(steps[i].item, Placed) != isinstance(steps[start].item, Placed):
            yield steps[start:i]
            start = i
