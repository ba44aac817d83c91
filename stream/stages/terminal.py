"""The terminal stage: the terminal's windows, and the decision with all that the payment has collected.

    Placed ─► terminal windows ─► features ─► rules, model ─► verdict ─► decision, details
                                      │                                     └► kept, for repeats
                                      └► pending row: the features as they were
    Repeat ─► the first's answer, again
    Judged ─► pending row + truth ─► example ─► learner          Became ─► did the money move?
    Clock  ─► what silence says by now ─► examples                Marker ─► model, rules, policy, settings from here on

Bounds: whole answers for `answer_ttl_ms` of broker time and a day; pending rows for `road_ms` on the labels' clock.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, cast

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from stream.columns.pending_rows import pending_rows
from stream.columns.runs import FEW, Columns, columns_of
from stream.errors import InternalError
from stream.features import ENTITY_FEATURES, ENTITY_INDEX, local_minutes
from stream.model.sampling import NOTABLE_PROBABILITY, percent_known
from stream.rules.policy import VERDICTS
from stream.stages import keys, pending
from stream.stages.account import TERMINAL_JOURNAL
from stream.stages.answers import EXPIRED, SKIPPED, Answerer, delivery_of, first_headers
from stream.stages.control import Meaning
from stream.stages.decide import Decided, Decider, Origins, finite
from stream.stages.kept import Said, answer_of, decode_shared, encode_shared, pack, shared_of
from stream.stages.observe import keep, kept_in, observations
from stream.stages.stage import Outbox, Step, long_pieces, origin_n, runs_of, spread
from stream.stages.state import State
from stream.windows.entity import EntityWindows, Observations
from topics.journal import (
    EXAMPLE_CORRECTED,
    EXAMPLE_LABELLED,
    EXAMPLE_MATURED,
    EXAMPLE_UNLABELLED,
    RUN_BACKFILL,
    RUN_MODES,
    RUN_TEST,
    Became,
    Clock,
    Example,
    Judged,
    Marker,
    Placed,
    PlacedRun,
    Repeat,
    Tick,
)
from topics.limits import DAY_MS
from topics.payment import Mode

EXAMPLES = "examples"
MATURED_MAX = 100
DUE_ROWS_MAX = 400  # one legitimate payment in four teaches, so about MATURED_MAX of these do
UNLABELLED_ONE_IN = 100
PAYMENTS = (Placed, PlacedRun)
SHARED_MAX = 100_000  # as many versions as that are not made in the days for which answers are kept
PAYER_RATIO_AT = ENTITY_INDEX["amount_ratio"]
assert MATURED_MAX < 200, "the outputs of one step must be numbered within its item"


class _Globals(Struct, array_like=True):
    """Small state, written whole. Clocks in ms UTC, one per account partition; `cursor`: the silence about pending rows
    below it has taught; `answers_from_ms`: answers first asked for before it are gone; `latest_at_ms`: the broker's;
    `told`: payments that a label called fraud; `told_soon`: before the silence about their day taught;
    `forgot_to_ms`: pending rows of event times before it are gone, whatever the settings say later.
    """

    clocks: list[int]
    cursor: bytes
    due_left: bool
    answers_from_ms: int
    latest_at_ms: int
    told: int = 0
    told_soon: int = 0
    forgot_to_ms: int = 0


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
        self._kept = kept_in(state)
        self.meaning = Meaning(state)
        self.decider = Decider(state, self.meaning, partition=partition)
        self._decision_partitions = decision_partitions
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
        self._shared_known = b""

    # ---- the stage ----

    def apply(self, steps: Sequence[Step], out: Outbox) -> None:
        for of_payments, start, end in runs_of([type(step.item) in PAYMENTS for step in steps]):
            if of_payments:
                self._payments(steps[start:end], out)
            else:
                for step in steps[start:end]:
                    self._other(step, out)

    def _payments(self, steps: Sequence[Step], out: Outbox) -> None:
        """Runs in columns, the others one by one; all of them where the runs are few and short."""
        widths = [step.item.count if type(step.item) is PlacedRun else 1 for step in steps]
        for of_runs, start, end in long_pieces([type(step.item) is PlacedRun for step in steps], FEW, widths):
            if of_runs:
                self._decide_runs(steps[start:end], out)
            else:
                self._decide(list(spread(steps[start:end])), out)

    def skip(self, steps: Sequence[Step], out: Outbox) -> None:
        for step in spread(steps):
            item = step.item
            if isinstance(item, Placed | Repeat):
                self.counts[f"refused:{SKIPPED.cause}"] += isinstance(item, Repeat) or item.payment.mode != "backfill"
                self._answers.refuse_skipped(step, item, out)
            elif isinstance(item, Clock):
                self._advance(item)

    def settle(self) -> None:
        keep(self.windows, self._state, self._slots_max)
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
        placed = cast("list[Placed]", [step.item for step in run])
        pids = [item.pid for item in placed]
        accounts = np.frombuffer(b"".join([item.entities[0] for item in placed]), np.float32).reshape(len(run), -1)
        payments = [item.payment for item in placed]
        tenants = [p.tenant_id for p in payments]
        payers = keys.entities_of(tenants, [p.account_id for p in payments], self._decision_partitions)
        terminals = keys.entities_of(tenants, [p.terminal_id or p.account_id for p in payments], 1)
        minutes = local_minutes(payments)
        rows = observations(
            payments,
            amounts=[item.base_amount for item in placed],
            others=[payer.number for payer in payers],
            payments64=keys.pids64(pids),
            label_clocks=[self._label_clock_ms] * len(run),
            minutes=minutes,
            payer_ratio=accounts[:, PAYER_RATIO_AT].copy(),  # a view of one row is contiguous, and of bytes read-only
        )
        at_terminal = [payment.terminal_id is not None for payment in payments]
        entities = [terminal.key for terminal in terminals]
        features = self._observe(entities, at_terminal, rows)
        decided = self.decider.decide(payments, accounts, features, rows.amount, minutes)
        self._answer(run, placed, payers, decided, out)
        modes: list[Mode] = [payment.mode for payment in payments]
        self._await_truth(
            [payment.event_time for payment in payments],
            modes,
            pids,
            [key if names else b"" for key, names in zip(entities, at_terminal, strict=True)],
            decided,
        )
        for i in _unlabelled(rows.payment):
            if modes[i] != "test":
                self._show(run[i], origin_n(run[i], 0), pids[i], payments[i].event_time, decided.rows[i], out)
        self._count([RUN_MODES.index(mode) for mode in modes], decided)
        self._passed(max([item.at_ms for item in placed]))

    def _decide_runs(self, blocks: Sequence[Step], out: Outbox) -> None:
        """`_decide`, of runs in columns. `blocks`: steps whose items are runs."""
        runs = cast("list[PlacedRun]", [step.item for step in blocks])
        if sum([run.count for run in runs]) < FEW:
            self._decide(list(spread(blocks)), out)
            return
        columns = columns_of(runs, PAYER_RATIO_AT)
        texts, n = columns.texts, columns.size
        counts = [run.count for run in runs]
        firsts = [0, *accumulate(counts[:-1])]
        entities = [texts[a:b] for a, b in columns.terminals.tolist()]
        at_terminal = columns.names_terminal.tolist()
        rows = Observations(
            event_ms=columns.event_ms,
            amount=columns.base_amounts,
            other=columns.payers,
            payment=columns.hashes,
            category=columns.categories,
            minute_of_week=columns.minutes,
            latitude=columns.latitude,
            longitude=columns.longitude,
            label_clock=np.full(n, self._label_clock_ms, np.int64),
            counts=columns.counts,
            payer_ratio=columns.ratios,
        )
        features = self._observe(entities, at_terminal, rows)
        decided = self.decider.judge(columns.features, features, columns.own)
        origins = Origins(
            np.repeat(np.array([run.partition for run in runs]), counts),
            np.repeat(np.array([step.offset for step in blocks]), counts),
            np.repeat(np.array([step.place for step in blocks]) - np.array(firsts), counts) + np.arange(n) << 8,
        )
        self._answer_runs(blocks, runs, columns, origins, decided, out)
        self._await_truth_of(columns, decided)
        for i in _unlabelled(rows.payment):
            step = blocks[bisect_right(firsts, i) - 1]
            number, pid, event_ms = int(origins.numbers[i]), columns.pids[i].tobytes(), int(columns.event_ms[i])
            if columns.modes[i] != RUN_TEST:
                self._show(step, number, pid, event_ms, decided.rows[i], out)
        self._count(columns.modes.tolist(), decided)
        self._passed(int(columns.at_ms.max()))

    def _answer_runs(
        self,
        blocks: Sequence[Step],
        runs: Sequence[PlacedRun],
        columns: Columns,
        origins: Origins,
        decided: Decided,
        out: Outbox,
    ) -> None:
        at = np.flatnonzero(columns.modes != RUN_BACKFILL)
        if not len(at):
            return
        answers, details, reasons = self.decider.texts(columns, origins, decided, at.tolist(), details=self._details)
        positions, ends = columns.positions.tolist(), accumulate([run.count for run in runs])
        headers = [
            header
            for run, end in zip(runs, ends, strict=True)
            for header in first_headers(run, positions[end - run.count : end])
        ]
        said = Said(
            np.array(decided.verdict),
            columns.modes,
            origins.partitions,
            columns.positions,
            origins.offsets,
            origins.numbers,
            columns.event_ms,
            columns.respond_by,
            None if self.decider.model is None else decided.probabilities,
            reasons,
        )
        steps = [step for step, run in zip(blocks, runs, strict=True) for _ in range(run.count)]
        partitions = (columns.payers % np.uint64(self._decision_partitions)).tolist()
        texts = columns.texts
        accounts = [texts[a:b] for a, b in columns.names[:, 4:].tolist()]
        at_ms, pids = columns.at_ms, columns.pids
        if len(at) < columns.size:
            rows = at.tolist()
            steps, headers = [steps[i] for i in rows], [headers[i] for i in rows]
            partitions, accounts = [partitions[i] for i in rows], [accounts[i] for i in rows]
            at_ms, pids, said = at_ms[at], pids[at], said.at(rows)
        self._keep_answers(at_ms.tolist(), keys.time_keys_of(keys.TABLE_ANSWER, at_ms, pids), said)
        values = answers.values()
        described = None if details is None else details.values()
        self._answers.send_firsts(steps, partitions, accounts, values, headers, described, out)

    def _passed(self, at_ms: int) -> None:
        """The broker's clock has come to `at_ms`, which is the latest of a run."""
        g = self._globals
        g.latest_at_ms = max(g.latest_at_ms, at_ms)
        self._forget_answers()

    def _count(self, modes: Iterable[int], decided: Decided) -> None:
        """Payments that were decided, and their verdicts by mode. `modes`: places in RUN_MODES."""
        self.counts["decided"] += len(decided.verdict)
        for (mode, code), n in Counter(zip(modes, decided.verdict, strict=True)).items():
            if mode != RUN_BACKFILL:
                self.counts[VERDICTS[code] if mode != RUN_TEST else f"test:{VERDICTS[code]}"] += n

    def _observe(
        self, terminals: Sequence[bytes], at_terminal: Sequence[bool], rows: Observations
    ) -> NDArray[np.float32]:
        """The terminals' features; a row of NaN where a payment names none."""
        maturity_ms = self.meaning.limits.maturity_ms
        if all(at_terminal):
            slots = self.windows.slots(terminals, self._kept)
            return self.windows.observe(slots, rows, maturity_ms=maturity_ms)
        block = np.full((len(terminals), len(ENTITY_FEATURES)), np.nan, np.float32)
        named = np.flatnonzero(at_terminal)
        if len(named):
            slots = self.windows.slots([terminals[i] for i in named.tolist()], self._kept)
            some = Observations(*[cast("NDArray[Any]", column)[named] for column in rows])
            block[named] = self.windows.observe(slots, some, maturity_ms=maturity_ms)
        return block

    def _answer(
        self,
        run: Sequence[Step],
        placed: Sequence[Placed],
        payers: Sequence[keys.Entity],
        decided: Decided,
        out: Outbox,
    ) -> None:
        """Answer all but backfills, and keep the answers for repeats."""
        at = [i for i, item in enumerate(placed) if item.payment.mode != "backfill"]
        answers = self.decider.answers(run, placed, decided, at)
        details = self.decider.details(placed, decided, at, answers) if self._details else None
        if len(at) < len(run):
            run, placed, payers = [run[i] for i in at], [placed[i] for i in at], [payers[i] for i in at]
        if at:
            at_ms = [item.at_ms for item in placed]
            said = Said(
                [decided.verdict[i] for i in at],
                [RUN_MODES.index(item.payment.mode) for item in placed],
                [item.partition for item in placed],
                [item.position for item in placed],
                [step.offset for step in run],
                [origin_n(step, 0) for step in run],
                [item.payment.event_time for item in placed],
                [-1 if item.payment.respond_by is None else item.payment.respond_by for item in placed],
                finite(decided.probability, at),
                answers.reasons,
            )
            self._keep_answers(at_ms, keys.time_keys(keys.TABLE_ANSWER, at_ms, [item.pid for item in placed]), said)
            self._answers.send_decided(run, placed, payers, answers.values, details, out)

    def _keep_answers(self, at_ms: list[int], row_keys: Sequence[bytes], said: Said) -> None:
        """For repeats. `at_ms`: the broker's time of each payment, `row_keys`: under which its answer stands."""
        kept = dict(zip(row_keys, pack(said, self._shared()), strict=True))
        keep_from = self._globals.answers_from_ms
        if min(at_ms) < keep_from:  # these are forgotten already, wherever a run is cut
            low = keys.time_key(keys.TABLE_ANSWER, keep_from)
            kept = {key: value for key, value in kept.items() if key >= low}
        self._state.put_all(keys.TABLE_ANSWER, kept)
        self.answered_at_ms += at_ms

    def _shared(self) -> bytes:
        """The key of what answers have in common from here on; it is kept once one refers to it."""
        key = self.decider.shared_key
        if key != self._shared_known:
            found = self._state.get(keys.TABLE_SHARED + key)
            if found is None or decode_shared(found).until_ms is not None:
                self._state.put(keys.TABLE_SHARED + key, encode_shared(self.decider.shared))
            self._shared_known = key
        return key

    def _take_marker(self, marker: Marker) -> None:
        before = self.decider.shared_key
        self.meaning.apply(marker)
        self.decider.apply(marker)
        if self.decider.shared_key != before:
            self._shared_known = b""
            found = self._state.get(keys.TABLE_SHARED + before)
            if found is not None:
                ended = msgspec.structs.replace(decode_shared(found), until_ms=self._globals.latest_at_ms)
                self._state.put(keys.TABLE_SHARED + before, encode_shared(ended))
        self._forget()

    def _await_truth(
        self,
        event_ms: Sequence[int],
        modes: Sequence[Mode],
        pids: Sequence[bytes],
        entities: Sequence[bytes],
        decided: Decided,
    ) -> None:
        """Keep the features as they were, until labels or silence say what they led to."""
        flags = [
            (pending.NOTABLE if probability is not None and probability >= NOTABLE_PROBABILITY else 0)
            | (pending.ANSWERED_DECLINE if declines and mode != "backfill" else 0)
            for mode, declines, probability in zip(modes, decided.declines, decided.probability, strict=True)
        ]
        row_keys = keys.time_keys(keys.TABLE_PENDING, event_ms, pids)
        packed = pending.pack_new(flags, entities, decided.rows)
        self._wait({key: row for key, row, mode in zip(row_keys, packed, modes, strict=True) if mode != "test"})

    def _await_truth_of(self, columns: Columns, decided: Decided) -> None:
        """`_await_truth`, of payments in columns."""
        flags = (decided.probabilities >= NOTABLE_PROBABILITY) * np.uint8(pending.NOTABLE)
        flags[np.array(decided.declines) & (columns.modes != RUN_BACKFILL)] |= pending.ANSWERED_DECLINE
        row_keys = keys.time_keys_of(keys.TABLE_PENDING, columns.event_ms, columns.pids)
        packed = pending_rows(flags, columns.blob, columns.terminals, columns.names_terminal, decided.seen)
        rows = dict(zip(row_keys, packed, strict=True))
        for i in np.flatnonzero(columns.modes == RUN_TEST).tolist():
            del rows[row_keys[i]]
        self._wait(rows)

    def _wait(self, rows: dict[bytes, bytes]) -> None:
        """Pending rows, from here on. Those behind the cursor have missed their time, and are noted for it."""
        self._state.put_all(keys.TABLE_PENDING, rows)
        cursor = self._globals.cursor
        if rows and min(rows) < cursor:
            behind = [key for key in rows if key < cursor]
            self._state.put_all(keys.TABLE_LATE_DUE, {keys.TABLE_LATE_DUE + key[1:]: b"" for key in behind})
            self._globals.due_left = True

    def _show(self, step: Step, n: int, pid: bytes, event_ms: int, features: bytes, out: Outbox) -> None:
        """One payment in a hundred goes to the learner without a label, for its bins."""
        example = Example(step.offset, n, EXAMPLE_UNLABELLED, pid, event_ms, 0, False, 0.0, features)
        out.journal(step, EXAMPLES, 0, example)

    def _forget_answers(self) -> None:
        """Whole days only, so that it does not matter at which payment of a run this is asked."""
        g = self._globals
        keep_from = (g.latest_at_ms - self.meaning.limits.answer_ttl_ms) // DAY_MS * DAY_MS
        if keep_from > g.answers_from_ms:
            g.answers_from_ms = keep_from
            self._state.drop_range(keys.TABLE_ANSWER, keys.time_key(keys.TABLE_ANSWER, keep_from))
            for key, value in self._state.scan(keys.TABLE_SHARED, keys.TABLE_SHARED + b"\xff" * 9, SHARED_MAX):
                until_ms = decode_shared(value).until_ms
                if until_ms is not None and until_ms < keep_from:
                    self._state.delete(key)

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
            value = self._whole(value, item)
            self._answers.send(step, delivery_of(item), item.tenant_id, item.account_id, value, repeat=True, out=out)

    def _whole(self, value: bytes, item: Repeat) -> bytes:
        """The answer of which `value` is kept."""
        shared = shared_of(value)
        if shared is None:
            return value
        found = self._state.get(keys.TABLE_SHARED + shared)
        if found is None:
            raise InternalError(f"an answer is kept, and what it shares with others ({shared.hex()}) is not")
        return answer_of(value, decode_shared(found), item)

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
            self._take_marker(item)
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
            truth == pending.TAUGHT_PROVISIONAL,
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
        slot = int(self.windows.slots([row.entity], self._kept)[0])
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
        self._forget()
        return True

    def _forget(self) -> None:
        """Pending rows go when their road ends, in whole days of the labels' clock, and for good: a label that they
        have missed under a short road must not be missing under a longer one."""
        g = self._globals
        forget_to = (self._label_clock_ms - self.meaning.limits.road_ms) // DAY_MS * DAY_MS
        if forget_to > g.forgot_to_ms:
            g.forgot_to_ms = forget_to
            low = keys.time_key(keys.TABLE_PENDING, forget_to)
            self._state.drop_range(keys.TABLE_PENDING, low)
            self._state.drop_range(keys.TABLE_UNSURE, keys.time_key(keys.TABLE_UNSURE, forget_to))
            g.cursor = max(g.cursor, low)

    def _forgotten(self, event_ms: int) -> bool:
        return event_ms < self._globals.forgot_to_ms

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
        done = 0
        for i in pending.teaching(due.rows):
            if taught == MATURED_MAX:
                break
            taught += self._teach(step, *due.rows[i], taught, out)
            done = i + 1
        if taught == MATURED_MAX and done < len(due.rows):
            g.cursor = due.rows[done - 1][0] + b"\0" if done else g.cursor
            g.due_left = True
            return
        g.cursor = due.cursor
        g.due_left = due.more

    @property
    def _soon_ms(self) -> int:
        """After so long silence begins to teach."""
        return min(self.meaning.limits.maturity_ms, pending.PROVISIONAL_MS)

    def _unsure_due(self) -> list[bytes]:
        """Keys of notable payments whose silence has taught in part, and is mature; at most MATURED_MAX of them."""
        low = keys.time_key(keys.TABLE_UNSURE, self._globals.forgot_to_ms)
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
        event_ms = _event_ms(key)
        if value is None or self._forgotten(event_ms):
            return False
        row = pending.unpack(value)
        if row.truth != pending.TAUGHT_NOTHING:
            self._learned(step, key, row, row.truth, 1.0, j, out)
            return True
        weight = pending.weight_of_silence(row, key[9:])
        if not row.went_through or not weight:
            return False
        if row.flags & pending.NOTABLE and event_ms > self._label_clock_ms - self.meaning.limits.maturity_ms:
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
        self._state.put(key, pending.pack_taught(row, taught))
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


def _unlabelled(payments64: NDArray[np.uint64]) -> list[int]:
    """Which are the one in a hundred that the learner is shown without a label."""
    return np.flatnonzero(payments64 % np.uint64(UNLABELLED_ONE_IN) == 0).tolist()


def _event_ms(key: bytes) -> int:
    """The event time in the key of a pending row."""
    return int.from_bytes(key[1:9], "big")
