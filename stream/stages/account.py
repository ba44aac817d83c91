"""The account stage: is this payment valid, is it new, what is its account's history, where does it go on?

    Raw payment ─► parse ─► time ─► FIRST │ REPEAT │ CONTRADICTION │ TOO_OLD
                     │       │       │        │            │            │
                  refused refused  windows  Repeat      refused      refused
                                     │
                                   Placed ─► terminal journal
    Raw label  ─► its payment's road ─► truth of all its labels ─► Judged   (no payment yet: an orphan, bounded)
    Raw update ─► its payment's road ─► Became

Bounds: the ledger keeps a payment until its epoch of 45 days is behind the lowest watermark by the dedupe horizon and
behind the labels' clock by `road_ms`; orphans are at most ORPHANS_MAX a partition, dropped `orphan_ms` after the
payments' own time has passed what they were observed at; at most LABELS_MAX labels a payment.
"""

import struct
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import sub
from typing import NamedTuple, cast

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from stream.columns.combinations import UNKNOWN, Combinations
from stream.columns.hashes import digests
from stream.columns.runs import (
    AMOUNT,
    AT_MS,
    BLOCK,
    CATEGORY,
    EVENT_MS,
    FEW,
    HASH,
    LABEL_CLOCK,
    MARKS,
    MINUTES,
    NUMBER,
    OTHER,
    POSITION,
    RUN_MAX,
    TARGET,
    Checked,
    N,
    check,
    find_late,
    place,
    placed_runs,
)
from stream.columns.scan import ACCOUNT_AT, NAMES_AT, scan_joined, scan_payments
from stream.features import local_minutes
from stream.stages import keys
from stream.stages.answers import SKIPPED, Answerer, clean_traceparent
from stream.stages.control import Meaning
from stream.stages.observe import keep, kept_in, observations
from stream.stages.stage import Outbox, Step, long_pieces, origin_n, runs_of, spread
from stream.stages.state import State
from stream.windows.entity import EntityWindows, Observations
from topics.codec import Parsed, parse_label, parse_payment, parse_update
from topics.journal import (
    LABELS,
    OUTPUTS_PER_ITEM_MAX,
    PAYMENTS,
    Became,
    Clock,
    Judged,
    Marker,
    Placed,
    Raw,
    RawRun,
    Repeat,
)
from topics.label import Label
from topics.limits import Limits
from topics.payment import TIME_MS_BOUND, Payment
from topics.refusals import Cause, Refusal
from topics.truth import truth_of
from topics.update import NOT_THROUGH, Update

TERMINAL_JOURNAL = "terminal-journal"
EPOCH_MS = 45 * 86_400_000
EPOCH_MAX = TIME_MS_BOUND // EPOCH_MS
ORPHANS_MAX = 100_000
LABELS_MAX = 32
CLOCK_STEP_MS = 3_600_000


class _Entry(NamedTuple):
    """What the ledger keeps of a payment: 35 bytes under 19 of key. Its times are ms UTC."""

    fingerprint: bytes
    event_ms: int
    at_ms: int
    partition: int
    test: bool


_ENTRY = struct.Struct("<16sqqH?")
_ENTRY_ROW = np.dtype(
    [("fingerprint", "V16"), ("event_ms", "<i8"), ("at_ms", "<i8"), ("partition", "<u2"), ("test", "?")]
)
assert _ENTRY_ROW.itemsize == _ENTRY.size
_labels = msgspec.msgpack.Decoder(list[Label])
_orphans = msgspec.msgpack.Decoder(list[tuple[int, int, bytes]])  # source, observed_at in ms UTC, JSON as it came

EXPIRED_TEXT = "of a time whose payments are forgotten - at `$.event_time`"
CONTRADICTION = Refusal(Cause.CONTRADICTION, "$.payment_id", "known with other content - at `$.payment_id`")


class _Globals(Struct, array_like=True):
    """Small state, written whole. `watermarks`: per partition of `payments` the highest event time, ms UTC.

    `ledger_from_epoch`, `ledger_to_epoch`: no payment is in the ledger below the one or above the other, -1: none at
    all; `expired_epoch`: what stood below it is forgotten, and nothing is entered there again.
    """

    watermarks: list[tuple[bytes, int, int]]
    label_clock_ms: int
    forwarded_clock_ms: int
    orphans: int
    ledger_from_epoch: int
    expired_epoch: int = 0
    ledger_to_epoch: int = -1


class _First(Struct, frozen=True, gc=False):
    """A payment with an id that was not known: its features are computed with the rest of its run."""

    step: Step
    raw: Raw
    payment: Payment
    pid: bytes
    late: bool
    base_amount: int
    account: keys.Entity
    terminal: keys.Entity  # of a payment without one, its account: by that it is routed
    adopts: bool  # labels or updates are here that wait for it


class _Identified(NamedTuple):
    """The plain payments `start` to `end` of a run. `hashes` uint64 (2, n): `other64` of their accounts and terminals,
    of a payment without a terminal its account's; `digests` uint64 (n, 2): their `pids`."""

    start: int
    end: int
    digests: NDArray[np.uint64]
    pids: list[bytes]
    account_keys: list[bytes]
    hashes: NDArray[np.uint64]

    def part(self, first: int, end: int) -> "_Identified":
        """Those from `first` on, up to `end`."""
        if end - first == len(self.pids):
            return self
        hashes = np.ascontiguousarray(self.hashes[:, first:end])
        return _Identified(
            self.start + first,
            self.start + end,
            self.digests[first:end],
            self.pids[first:end],
            self.account_keys[first:end],
            hashes,
        )


def _width(step: Step) -> int:
    """For how many records it stands."""
    return step.item.count if type(step.item) is RawRun else 1


def _batches(steps: Sequence[Step]) -> Iterator[tuple[int, list[Step]]]:
    """Steps that stand for RUN_MAX records at most, and for how many; or one step: no run is longer than a block."""
    size, some = 0, list[Step]()
    for step in steps:
        width = _width(step)
        if some and size + width > RUN_MAX:
            yield size, some
            size, some = 0, []
        size += width
        some.append(step)
    if some:
        yield size, some


class _Payments:
    """Payments as they came, of some blocks, in columns.

    `marks`: see `stream.columns.runs`, without the combinations' numbers; `blocks`: a step of each one's block;
    `traceparents`: empty if there are none.
    """

    def __init__(self, steps: Sequence[Step], limits: Limits) -> None:
        """`steps`: of runs, or of single records."""
        self._steps = steps
        self.traceparents: list[str | None] = []
        items = [step.item for step in steps]
        if type(items[0]) is RawRun:
            self._of_runs(cast("list[RawRun]", items), limits)
        else:
            self._of_records(cast("list[Raw]", items), limits)

    def _of_runs(self, runs: Sequence[RawRun], limits: Limits) -> None:
        steps = self._steps
        counts = [run.count for run in runs]
        self.size = sum(counts)
        self.firsts = [0, *accumulate(counts)]
        lengths = np.frombuffer(b"".join([run.lengths for run in runs]), np.int32).astype(np.int64)
        self.scanned = scan_joined(bytearray().join([run.values for run in runs]), lengths, limits)
        self.marks = np.empty((MARKS, self.size), np.int64)
        self.marks[AT_MS] = np.frombuffer(b"".join([run.at_ms for run in runs]), np.int64)
        self.marks[POSITION] = np.frombuffer(b"".join([run.offsets for run in runs]), np.int64)
        self.marks[BLOCK] = np.repeat(np.array([step.offset for step in steps], np.int64), counts)
        places = np.repeat(np.array([step.place for step in steps], np.int64) - self.firsts[:-1], counts)
        self.marks[N] = places + np.arange(self.size) << 8
        self.blocks = [step for step, count in zip(steps, counts, strict=True) for _ in range(count)]
        if any(run.traceparents for run in runs):
            for run in runs:
                self.traceparents += run.traceparents or [None] * run.count

    def _of_records(self, raws: Sequence[Raw], limits: Limits) -> None:
        steps = self._steps
        self.size = len(raws)
        self.firsts = list(range(self.size + 1))
        values = [raw.value if raw.oversize is None else b"" for raw in raws]
        self.scanned = scan_payments(values, limits)
        self.marks = np.empty((MARKS, self.size), np.int64)
        self.marks[:NUMBER] = [
            [raw.at_ms for raw in raws],
            [raw.offset for raw in raws],
            [step.offset for step in steps],
            [origin_n(step, 0) for step in steps],
        ]
        self.blocks = steps
        if any(raw.traceparent is not None for raw in raws):
            self.traceparents = [raw.traceparent for raw in raws]

    def steps(self, start: int, end: int) -> list[Step]:
        """One for each payment, of single records."""
        found: list[Step] = []
        while start < end:
            i = bisect_right(self.firsts, start) - 1
            first, stop = start - self.firsts[i], min(end, self.firsts[i + 1]) - self.firsts[i]
            step = self._steps[i]
            if type(step.item) is RawRun:
                parts = enumerate(step.item.spread(first, stop), step.place + first)
                found += [Step(step.offset, place, step.at_ms, step.sender, raw) for place, raw in parts]
            else:
                found.append(step)
            start = self.firsts[i] + stop
        return found

    def value_of(self, i: int) -> bytes:
        raw = self.steps(i, i + 1)[0].item
        assert type(raw) is Raw
        return raw.value

    def identified(self, start: int, end: int) -> _Identified:
        blob, spans = self.scanned.blob, self.scanned.spans[start:end]
        keys_at = spans[:, ACCOUNT_AT:NAMES_AT].tolist()
        hashed = digests(self.scanned.texts, spans[:, ACCOUNT_AT] + np.int32(1), spans[:, ACCOUNT_AT + 2])
        return _Identified(
            start,
            end,
            hashed,
            keys.pids_of(hashed),
            [blob[a:b] for a, b, _, _, _ in keys_at],
            np.array(
                [
                    [xxh3_64_intdigest(blob[a + 1 : b]) for a, b, _, _, _ in keys_at],
                    [xxh3_64_intdigest(blob[a + 1 : b]) for _, _, _, a, b in keys_at],
                ],
                np.uint64,
            ),
        )


class _Repeated(Struct, frozen=True, gc=False):
    """A payment that is known with the same business content."""

    step: Step
    raw: Raw
    payment: Payment
    pid: bytes
    entry: _Entry


def _oversize(raw: Raw, limits: Limits) -> Refusal:
    assert raw.oversize is not None
    message = f"{raw.oversize.length} bytes, at most {limits.payload_bytes_max} - at `$`"
    return Refusal(Cause.PAYLOAD_TOO_LARGE, "$", message)


def _parse_word(source: int, value: bytes, limits: Limits) -> Label | Update | Refusal:
    if source == LABELS:
        label = parse_label(value, limits)
        return label if isinstance(label, Refusal) else label.label
    update = parse_update(value, limits)
    return update if isinstance(update, Refusal) else update.update


class AccountStage:
    """`partitions`: of the account journal; `terminal_partitions`: of the terminal journal.

    `slots_max`: accounts kept in memory; `plain`: no numba, for proof that nothing depends on it.
    """

    def __init__(
        self,
        state: State,
        *,
        partition: int,
        partitions: int,
        terminal_partitions: int,
        decision_partitions: int,
        slots_max: int = 200_000,
        plain: bool = False,
    ) -> None:
        assert terminal_partitions < OUTPUTS_PER_ITEM_MAX, "a clock goes to every partition in one step"
        self._state = state
        self._partition = partition
        self._partitions = partitions
        self._terminal_partitions = terminal_partitions
        self._slots_max = slots_max
        self.windows = EntityWindows(plain=plain)
        self._kept = kept_in(state)
        self.meaning = Meaning(state)
        self._answers = Answerer(self.meaning, partition=partition, decision_partitions=decision_partitions)
        self.counts: Counter[str] = Counter()
        kept = state.get(keys.TABLE_GLOBALS)
        self._globals = _Globals([], 0, 0, 0, -1) if kept is None else msgspec.msgpack.decode(kept, type=_Globals)
        if self._globals.ledger_to_epoch < 0 <= self._globals.ledger_from_epoch:
            self._globals.ledger_to_epoch = EPOCH_MAX  # a state of before it was kept
        self._watermarks = {(topic, part): ms for topic, part, ms in self._globals.watermarks}
        self._ledger: dict[bytes, bytes] = {}
        self._combinations = Combinations()

    # ---- the stage ----

    def apply(self, steps: Sequence[Step], out: Outbox) -> None:
        of_payments = [
            (type(step.item) is Raw or type(step.item) is RawRun) and step.item.source == PAYMENTS for step in steps
        ]
        for payments, start, end in runs_of(of_payments):
            if payments:
                self._take(steps[start:end], out)
            else:
                for step in steps[start:end]:
                    self._other(step, step.item, out)

    def skip(self, steps: Sequence[Step], out: Outbox) -> None:
        for step in spread(steps):
            if isinstance(step.item, Raw) and step.item.source == PAYMENTS:
                self._count_refusal("", SKIPPED)
                self._answers.refuse(step, step.item, step.sender, None, SKIPPED, out)

    def settle(self) -> None:
        keep(self.windows, self._state, self._slots_max)
        self._globals.watermarks = [(*source, ms) for source, ms in sorted(self._watermarks.items())]
        self._state.put(keys.TABLE_GLOBALS, msgspec.msgpack.encode(self._globals))

    def _count_refusal(self, kind: str, refusal: Refusal) -> None:
        """In all, and by cause. `kind`: what goes before the counters' names."""
        self.counts[f"{kind}refused"] += 1
        self.counts[f"{kind}refused:{refusal.cause}"] += 1

    @property
    def newest_event_ms(self) -> int:
        """The highest event time of a payment that has come through this partition; ms UTC, 0: none yet."""
        return max(self._watermarks.values(), default=0)

    @property
    def label_clock_ms(self) -> int:
        """Labels observed before this have come through this partition; ms UTC, 0: none yet."""
        return self._globals.label_clock_ms

    # ---- payments in columns: plain ones, which are nearly all ----

    def _take(self, steps: Sequence[Step], out: Outbox) -> None:
        """Payments as they came. What is not plain, not surely in time or not surely new goes one by one; few do, too,
        for which columns would take longer."""
        widths = [_width(step) for step in steps]
        for of_runs, start, end in long_pieces([type(step.item) is RawRun for step in steps], FEW, widths):
            for size, some in _batches(steps[start:end] if of_runs else list(spread(steps[start:end]))):
                if size < FEW:
                    self._one_by_one(list(spread(some)), out)
                else:
                    self._take_columns(_Payments(some, self.meaning.limits), out)

    def _take_columns(self, payments: "_Payments", out: Outbox) -> None:
        numbers = self._combinations.numbers_of(payments.scanned, payments.value_of, self.meaning.limits)
        payments.marks[NUMBER] = numbers
        for is_plain, start, end in long_pieces([number != UNKNOWN for number in numbers], FEW):
            if is_plain:
                self._new_or_known(payments, start, end, out)
            else:
                self._one_by_one(payments.steps(start, end), out)

    def _new_or_known(self, plain: "_Payments", start: int, end: int, out: Outbox) -> None:
        found = plain.identified(start, end)
        checked = check(plain.scanned, plain.marks, found.hashes, start, self._partitions, self._partition)
        if not self._all_timely(checked):
            self._one_by_one(plain.steps(start, end), out)
            return
        oldest, newest = checked.oldest // EPOCH_MS, checked.newest // EPOCH_MS
        one = oldest == newest
        epochs = [oldest] * (end - start) if one else (plain.scanned.event_ms[start:end] // EPOCH_MS).tolist()
        known = self._known_ids(epochs, found.pids)
        for is_new, first, last in long_pieces([pid not in known for pid in found.pids], FEW):
            if is_new:
                self._enter(plain, found.part(first, last), epochs[first:last], out)
            else:
                self._one_by_one(plain.steps(start + first, start + last), out)

    def _all_timely(self, checked: Checked) -> bool:
        """`_surely_timely`, of columns."""
        limits = self.meaning.limits
        return (
            checked.here
            and checked.oldest // EPOCH_MS >= self._globals.expired_epoch
            and checked.oldest >= max([checked.newest, *self._watermarks.values()]) - limits.dedupe_horizon_ms
            and checked.ahead_ms <= limits.skew_ms
        )

    def _enter(self, plain: "_Payments", found: "_Identified", epochs: Sequence[int], out: Outbox) -> None:
        """Payments that are new: into the ledger and the windows, and on to the terminals."""
        g, scanned, start, end = self._globals, plain.scanned, found.start, found.end
        blocks, combinations = plain.blocks[start:end], self._combinations
        base_amounts = self.meaning.base_amounts(
            scanned.amount[start:end],
            scanned.billing_amount[start:end],
            [combinations.currencies[number] for number in plain.marks[NUMBER, start:end].tolist()],
        )
        senders = [step.sender for step in blocks]
        late = self._late(senders, scanned.event_ms[start:end], scanned.test[start:end])
        placing = place(
            scanned,
            start,
            plain.marks,
            combinations,
            base_amounts,
            late,
            found.hashes,
            found.digests.reshape(-1),
            self._terminal_partitions,
            g.label_clock_ms,
        )
        self._write_down(plain, found, epochs, placing.longs[TARGET])
        g.ledger_from_epoch = min(epochs) if g.ledger_from_epoch < 0 else min(g.ledger_from_epoch, *epochs)
        g.ledger_to_epoch = max(g.ledger_to_epoch, *epochs)
        longs, ints = placing.longs, placing.ints
        features = self.windows.observe(
            self.windows.slots(found.account_keys, self._kept),
            Observations(
                event_ms=longs[EVENT_MS],
                amount=longs[AMOUNT],
                other=longs[OTHER].view(np.uint64),
                payment=longs[HASH].view(np.uint64),
                category=ints[CATEGORY],
                minute_of_week=ints[MINUTES],
                latitude=scanned.latitude[start:end],
                longitude=scanned.longitude[start:end],
                label_clock=longs[LABEL_CLOCK],
                counts=placing.counts,
            ),
            maturity_ms=self.meaning.limits.maturity_ms,
        )
        traces = [clean_traceparent(text) for text in plain.traceparents[start:end]]
        for first, partition, run in placed_runs(placing, features, scanned, start, plain.marks, senders, traces):
            out.journal(blocks[first], TERMINAL_JOURNAL, partition, run)
        self.counts["first"] += end - start
        self.counts["late"] += int(np.count_nonzero(late))

    def _late(
        self, senders: Sequence[tuple[bytes, int]], event_ms: NDArray[np.int64], test: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Which are behind their partition's watermark by more than the lateness; the watermarks move on."""
        late = np.zeros(len(senders), np.bool_)
        lateness_ms = self.meaning.limits.lateness_ms
        some = set(senders)
        for sender in some:
            of_sender = [other == sender for other in senders] if len(some) > 1 else [True] * len(senders)
            watermark = self._watermarks.get(sender, -1)
            highest = find_late(event_ms, test, np.array(of_sender, np.bool_), watermark, lateness_ms, late)
            if highest >= 0:
                self._watermarks[sender] = int(highest)
        return late

    def _write_down(
        self, plain: "_Payments", found: "_Identified", epochs: Sequence[int], targets: NDArray[np.int64]
    ) -> None:
        """Their entries in the ledger. `targets`: partitions of the terminal journal."""
        scanned, rows = plain.scanned, slice(found.start, found.end)
        entries = np.empty(len(found.pids), _ENTRY_ROW)
        prints = digests(scanned.texts, *scanned.print_at[rows].T)
        entries["fingerprint"] = prints.view(entries.dtype["fingerprint"])[:, 0]
        entries["event_ms"], entries["at_ms"] = scanned.event_ms[rows], plain.marks[AT_MS, rows]
        entries["partition"], entries["test"] = targets, scanned.test[rows]
        prefixes = {epoch: keys.epoch_key(keys.TABLE_LEDGER, epoch) for epoch in set(epochs)}
        ledger_keys = [prefixes[epoch] + pid for epoch, pid in zip(epochs, found.pids, strict=True)]
        values = keys.pieces(entries.tobytes(), _ENTRY.size)
        self._state.put_all(keys.TABLE_LEDGER, dict(zip(ledger_keys, values, strict=True)))

    # ---- payments one by one ----

    def _one_by_one(self, run: Sequence[Step], out: Outbox) -> None:
        """Refuse what is no payment, and take the others."""
        limits = self.meaning.limits
        steps: list[Step] = []
        payments: list[Parsed] = []
        refused: list[tuple[Step, Refusal]] = []
        for step in run:
            raw = step.item
            assert type(raw) is Raw
            parsed = parse_payment(raw.value, limits) if raw.oversize is None else _oversize(raw, limits)
            if type(parsed) is Parsed:
                steps.append(step)
                payments.append(parsed)
            else:
                assert type(parsed) is Refusal
                refused.append((step, parsed))
        refused.reverse()
        self._payments(steps, payments, refused, out)
        self._refuse_up_to(None, refused, out)

    def _refuse_up_to(self, step: Step | None, refused: list[tuple[Step, Refusal]], out: Outbox) -> None:
        """Refuse what stands before `step` (None: all that is left), so that answers go out in the log's order however
        a run is cut. `refused`: the first one last."""
        while refused:
            first, refusal = refused[-1]
            if step is not None and (first.offset, first.place) > (step.offset, step.place):
                return
            refused.pop()
            self._refuse(first, None, refusal, out)

    def _refuse(self, step: Step, payment: Payment | None, refusal: Refusal, out: Outbox) -> None:
        assert type(step.item) is Raw
        self._count_refusal("", refusal)
        self._answers.refuse(step, step.item, step.sender, payment, refusal, out)

    def _payments(
        self,
        steps: Sequence[Step],
        parsed: Sequence[Parsed],
        refused: list[tuple[Step, Refusal]],
        out: Outbox,
    ) -> None:
        """Which are first, which come again, which are refused. In one piece: calls are most of its cost. `refused`:
        see `_refuse_up_to`."""
        if not steps:
            return
        g, limits, state = self._globals, self.meaning.limits, self._state
        payments = [found.payment for found in parsed]
        pids = keys.payment_hashes(payments)
        tenants = [p.tenant_id for p in payments]
        accounts = keys.entities_of(tenants, [p.account_id for p in payments], self._partitions)
        terminals = keys.entities_of(
            tenants, [p.terminal_id or p.account_id for p in payments], self._terminal_partitions
        )
        known = self._known_ids([payment.event_time // EPOCH_MS for payment in payments], pids)
        prints = keys.fingerprints([found.fingerprint_source for found in parsed])
        raws = cast("list[Raw]", [step.item for step in steps])
        base_amounts = list(map(self.meaning.base_amount, payments))
        timely = self._surely_timely(raws, payments, accounts)
        watermarks, lateness_ms = self._watermarks, limits.lateness_ms
        waiting: list[_First | _Repeated] = []
        entries: dict[bytes, bytes] = {}
        epoch, prefix = -1, b""
        for step, raw, payment, pid, print_, account, terminal, base_amount in zip(
            steps, raws, payments, pids, prints, accounts, terminals, base_amounts, strict=True
        ):
            event_ms, test = payment.event_time, payment.mode == "test"
            if refused:
                self._refuse_up_to(step, refused, out)
            if not timely:
                refusal = self._untimely(step, raw, payment, account)
                if refusal is not None:
                    self._refuse(step, payment, refusal, out)
                    continue
            adopts = False
            if pid in known:
                entry = self._known(pid, event_ms // EPOCH_MS)
                if entry is not None and entry.fingerprint != print_:
                    self._refuse(step, payment, CONTRADICTION, out)
                    continue
                if entry is not None:
                    waiting.append(_Repeated(step, raw, payment, pid, entry))
                    continue
                adopts = keys.TABLE_ORPHAN + pid in self._ledger
            late = False
            if not test:
                watermark = watermarks.get(step.sender)
                if watermark is None or event_ms > watermark:
                    watermarks[step.sender] = event_ms
                else:
                    late = event_ms < watermark - lateness_ms
            if event_ms // EPOCH_MS != epoch:
                epoch = event_ms // EPOCH_MS
                prefix = keys.epoch_key(keys.TABLE_LEDGER, epoch)
                g.ledger_from_epoch = epoch if g.ledger_from_epoch < 0 else min(g.ledger_from_epoch, epoch)
                g.ledger_to_epoch = max(g.ledger_to_epoch, epoch)
            key = prefix + pid
            entries[key] = packed = _ENTRY.pack(print_, event_ms, raw.at_ms, terminal.partition, test)
            if pid in known:
                self._ledger[key] = packed
            waiting.append(_First(step, raw, payment, pid, late, base_amount, account, terminal, adopts))
            if adopts:
                self._flush(waiting, out)  # its labels must be in the window before the account's next payment is
                waiting = []
        state.put_all(keys.TABLE_LEDGER, entries)
        self._flush(waiting, out)
        self.counts["unknown_fields"] += sum([found.unknown_fields for found in parsed])

    def _known_ids(self, epochs: Sequence[int], pids: Sequence[bytes]) -> set[bytes]:
        """Ids that stand in the ledger, or twice in this run, or that labels wait for. The ledger is asked once.
        `epochs`: of the payments."""
        prefixes = {epoch: self._prefixes(epoch) for epoch in set(epochs)}
        wanted = [prefix + pid for epoch, pid in zip(epochs, pids, strict=True) for prefix in prefixes[epoch]]
        found = self._state.get_many(wanted) if wanted else []
        self._ledger = {}
        if found.count(None) < len(found):
            self._ledger = {key: value for key, value in zip(wanted, found, strict=True) if value is not None}
        known = {key[-keys.PID_BYTES :] for key in self._ledger}
        if len(set(pids)) < len(pids):
            known.update(pid for pid, times in Counter(pids).items() if times > 1)
        return known

    def _prefixes(self, epoch: int) -> list[bytes]:
        """Of the keys under which a payment of this epoch, or what waits for it, may stand."""
        g = self._globals
        epochs = self._epochs(epoch, self._ledger_from(), g.ledger_to_epoch)
        ledger = [keys.epoch_key(keys.TABLE_LEDGER, e) for e in epochs]
        return [*ledger, keys.TABLE_ORPHAN] if g.orphans else ledger

    def _epochs(self, epoch: int, first: int, last: int) -> range:
        """The ledger's epochs in which an equal payment id may stand: the horizon to both sides, within first..last."""
        reach = -(-self.meaning.limits.dedupe_horizon_ms // EPOCH_MS)
        return range(max(epoch - reach, first), min(epoch + reach, last) + 1)

    def _ledger_from(self) -> int:
        """The first epoch that may hold a payment which is not forgotten."""
        return max(self._globals.ledger_from_epoch, self._globals.expired_epoch)

    def _surely_timely(self, raws: Sequence[Raw], payments: Sequence[Payment], accounts: Sequence[keys.Entity]) -> bool:
        """Whether `_untimely` would refuse none of them; False: they must be looked at one by one."""
        limits = self.meaning.limits
        events = [payment.event_time for payment in payments]
        oldest, newest = min(events), max([*events, *self._watermarks.values()])
        return (
            oldest // EPOCH_MS >= self._globals.expired_epoch
            and oldest >= newest - limits.dedupe_horizon_ms
            and {account.partition for account in accounts} == {self._partition}
            and max(map(sub, events, [raw.at_ms for raw in raws])) <= limits.skew_ms
        )

    def _untimely(self, step: Step, raw: Raw, payment: Payment, account: keys.Entity) -> Refusal | None:
        limits = self.meaning.limits
        if account.partition != self._partition:
            return Refusal(Cause.ACCOUNT_MISMATCH, "$.account_id", "not the account by which the record was routed")
        if payment.event_time > raw.at_ms + limits.skew_ms:
            ahead_s = (payment.event_time - raw.at_ms) // 1000
            message = f"expected a time up to {limits.skew_ms // 1000} s after the broker's, got {ahead_s} s"
            return Refusal(Cause.FUTURE_TIME, "$.event_time", f"{message} - at `$.event_time`")
        if payment.event_time // EPOCH_MS < self._globals.expired_epoch:
            return Refusal(Cause.TOO_OLD, "$.event_time", EXPIRED_TEXT)  # a backfill, too: it could be a repeat
        if payment.mode != "backfill":
            watermark = self._watermarks.get(step.sender)
            if watermark is None:
                watermark = self._lowest_watermark()
            if payment.event_time < watermark - limits.dedupe_horizon_ms:
                behind_days = (watermark - payment.event_time) // 86_400_000
                message = f"{behind_days} days behind its partition's watermark - at `$.event_time`"
                return Refusal(Cause.TOO_OLD, "$.event_time", message)
        return None

    def _lowest_watermark(self) -> int:
        return min(self._watermarks.values(), default=0)

    def _known(self, pid: bytes, epoch: int) -> _Entry | None:
        """What the ledger holds of this id, entries of this very run included."""
        g = self._globals
        for e in self._epochs(epoch, self._ledger_from(), g.ledger_to_epoch):
            packed = self._ledger.get(keys.epoch_key(keys.TABLE_LEDGER, e, pid))
            if packed is not None:
                return _Entry(*_ENTRY.unpack(packed))
        return None

    def _flush(self, waiting: Sequence[_First | _Repeated], out: Outbox) -> None:
        """Compute the features of the waiting payments at once, then emit in the order of arrival."""
        firsts = [w for w in waiting if type(w) is _First]
        blocks = iter(self._observe(firsts) if firsts else ())
        for w in waiting:
            if type(w) is _Repeated:
                self._emit_repeat(w, out)
                continue
            assert type(w) is _First
            step, raw = w.step, w.raw
            placed = Placed(
                step.offset,
                origin_n(step, 0),
                raw.at_ms,
                *step.sender,
                raw.offset,
                w.pid,
                w.late,
                w.base_amount,
                w.payment,
                [next(blocks)],
                None if raw.traceparent is None else clean_traceparent(raw.traceparent),
            )
            out.journal(step, TERMINAL_JOURNAL, w.terminal.partition, placed)
            if w.adopts:
                self._adopt(w, out)
        self.counts["first"] += len(firsts)
        self.counts["late"] += sum([w.late for w in firsts])

    def _observe(self, firsts: Sequence[_First]) -> list[bytes]:
        """One block of float32 features per payment, in order."""
        payments = [w.payment for w in firsts]
        slots = self.windows.slots([w.account.key for w in firsts], self._kept)
        rows = observations(
            payments,
            amounts=[w.base_amount for w in firsts],
            others=[0 if w.payment.terminal_id is None else w.terminal.number for w in firsts],
            payments64=keys.pids64([w.pid for w in firsts]),
            label_clocks=[self._globals.label_clock_ms] * len(firsts),
            minutes=local_minutes(payments),
        )
        matrix = self.windows.observe(slots, rows, maturity_ms=self.meaning.limits.maturity_ms)
        flat = np.ascontiguousarray(matrix, dtype=np.float32).tobytes()
        width = len(flat) // len(firsts)
        return [flat[i * width : (i + 1) * width] for i in range(len(firsts))]

    def _emit_repeat(self, w: _Repeated, out: Outbox) -> None:
        step, raw, payment = w.step, w.raw, w.payment
        if payment.mode == "backfill":
            return
        self.counts["repeat"] += 1
        repeat = Repeat(
            step.offset,
            origin_n(step, 0),
            raw.at_ms,
            *step.sender,
            raw.offset,
            w.pid,
            w.entry.at_ms,
            payment.tenant_id,
            payment.account_id,
            payment.payment_id,
            w.entry.test,
            clean_traceparent(raw.traceparent),
        )
        out.journal(step, TERMINAL_JOURNAL, w.entry.partition, repeat)

    # ---- labels, updates, clocks, markers ----

    def _other(self, step: Step, item: object, out: Outbox) -> None:
        if isinstance(item, Raw):
            self._late_word(step, item, out)
        elif isinstance(item, Marker):
            self.meaning.apply(item)
        # A tick has nothing to drain here.

    def _late_word(self, step: Step, raw: Raw, out: Outbox) -> None:
        """A label or an update: it takes the road of its payment."""
        parsed = self._parse_late_word(raw)
        if isinstance(parsed, Refusal):
            topic = "labels" if raw.source == LABELS else "updates"
            self._count_refusal(f"{topic}_", parsed)
            self._answers.bury(step, raw, step.sender, topic, parsed, out)
            return
        if isinstance(parsed, Label):
            if parsed.kind == "clock":
                self._advance_clock(step, parsed.observed_at, out, forward=True)
                return
            assert parsed.payment_id is not None
            assert parsed.account_id is not None
        pid = keys.payment_hash(parsed.tenant_id, parsed.account_id or "", parsed.payment_id or "")
        epochs = range(self._ledger_from(), self._newest_epoch() + 1)
        ledger = [keys.epoch_key(keys.TABLE_LEDGER, epoch, pid) for epoch in epochs]
        packed = next((found for found in self._state.get_many(ledger) if found is not None), None)
        if packed is None:
            self._wait_for_payment(pid, parsed, raw)
        else:
            self._send_after(step, 0, pid, _Entry(*_ENTRY.unpack(packed)), parsed, out)
        if isinstance(parsed, Label):
            self._advance_clock(step, parsed.observed_at, out, forward=False)

    def _parse_late_word(self, raw: Raw) -> Label | Update | Refusal:
        limits = self.meaning.limits
        if raw.oversize is not None:
            return _oversize(raw, limits)
        parsed = _parse_word(raw.source, raw.value, limits)
        if isinstance(parsed, Refusal):
            return parsed
        if parsed.observed_at > raw.at_ms + limits.skew_ms:
            message = "observed after the broker's time of its record, beyond the skew - at `$.observed_at`"
            return Refusal(Cause.FUTURE_TIME, "$.observed_at", message)
        return parsed

    def _newest_epoch(self) -> int:
        newest = max(self._watermarks.values(), default=0)
        return newest // EPOCH_MS

    def _send_after(self, step: Step, j: int, pid: bytes, entry: _Entry, word: Label | Update, out: Outbox) -> bool:
        """Emit what a label or update says of a payment that is known; whether something was emitted as output `j`."""
        if isinstance(word, Update):
            self.counts["updates"] += 1
            became = Became(step.offset, origin_n(step, j), pid, entry.event_ms, word.kind not in NOT_THROUGH)
            out.journal(step, TERMINAL_JOURNAL, entry.partition, became)
            return True
        self.counts["labels_joined"] += 1
        key = keys.epoch_key(keys.TABLE_TRUTH, entry.event_ms // EPOCH_MS, pid)
        kept = self._state.get(key)
        labels = [] if kept is None else _labels.decode(kept)
        if word in labels or len(labels) >= LABELS_MAX:
            self.counts["labels_repeated"] += 1
            return False
        before = truth_of(labels)
        labels.append(word)
        self._state.put(key, msgspec.msgpack.encode(labels))
        truth = truth_of(labels)
        if labels[1:] and (truth.fraud, truth.weight) == (before.fraud, before.weight):
            return False
        assert word.account_id is not None
        slot = int(self.windows.slots([keys.entity_key(word.tenant_id, word.account_id)], self._kept)[0])
        observed_ms = word.observed_at if truth.fraud else 0
        self.windows.label(
            slot,
            payment=keys.pid64(pid),
            event_ms=entry.event_ms,
            observed_ms=observed_ms,
            fraud=bool(truth.fraud),
        )
        judged = Judged(
            step.offset,
            origin_n(step, j),
            pid,
            entry.event_ms,
            word.observed_at,
            truth.fraud,
            truth.weight == "provisional",
            word.source,
        )
        out.journal(step, TERMINAL_JOURNAL, entry.partition, judged)
        return True

    def _advance_clock(self, step: Step, observed_ms: int, out: Outbox, *, forward: bool) -> None:
        """The labels' clock moves on; told to every terminal partition by clock records, and once an hour of it."""
        g = self._globals
        if observed_ms <= g.label_clock_ms:
            return
        g.label_clock_ms = observed_ms
        if not forward and observed_ms < g.forwarded_clock_ms + CLOCK_STEP_MS:
            return
        g.forwarded_clock_ms = observed_ms
        for terminal in range(self._terminal_partitions):
            clock = Clock(step.offset, origin_n(step, 1), self._partition, observed_ms)
            out.journal(step, TERMINAL_JOURNAL, terminal, clock)
        self._expire()

    def _expire(self) -> None:
        """Forget what no later step may look for. Called when the labels' clock moves: a moment that the log sets."""
        g, limits = self._globals, self.meaning.limits
        low = self._lowest_watermark()
        behind = min(low - limits.dedupe_horizon_ms, g.label_clock_ms - limits.road_ms)
        epoch = behind // EPOCH_MS
        if epoch > self._ledger_from() and g.ledger_from_epoch >= 0:
            g.expired_epoch = epoch
            for table in (keys.TABLE_LEDGER, keys.TABLE_TRUTH):
                self._state.drop_range(table, keys.epoch_key(table, epoch, b""))
        if g.orphans and low > limits.orphan_ms:
            high = keys.time_key(keys.TABLE_ORPHAN_DUE, low - limits.orphan_ms)
            for key, _ in self._state.scan(keys.TABLE_ORPHAN_DUE, high, 1000):
                self._drop_orphan(key)
                self.counts["labels_orphan_expired"] += 1

    # ---- orphans: labels and updates before their payment ----

    def _wait_for_payment(self, pid: bytes, word: Label | Update, raw: Raw) -> None:
        self.counts["labels_orphaned"] += 1
        if self._globals.orphans >= ORPHANS_MAX:
            self.counts["labels_orphan_dropped"] += 1
            return
        key = keys.TABLE_ORPHAN + pid
        kept = self._state.get(key)
        words = [] if kept is None else _orphans.decode(kept)
        if len(words) >= LABELS_MAX or any(value == raw.value for _, _, value in words):
            return
        words.append((raw.source, word.observed_at, raw.value))
        self._state.put(key, msgspec.msgpack.encode(words))
        if kept is None:
            self._globals.orphans += 1
            self._state.put(keys.time_key(keys.TABLE_ORPHAN_DUE, word.observed_at, pid), b"")

    def _adopt(self, w: _First, out: Outbox) -> None:
        """A payment has come whose labels or updates were here before it."""
        key = keys.TABLE_ORPHAN + w.pid
        kept = self._state.get(key)
        if kept is None:
            return
        entry = _Entry(b"", w.payment.event_time, w.raw.at_ms, w.terminal.partition, False)
        words = _orphans.decode(kept)
        j = 1
        for source, _, value in words:
            # Its time was measured when it came, by its own broker's time: the payment's may lie days before that.
            word = _parse_word(source, value, self.meaning.limits)
            if not isinstance(word, Refusal) and self._send_after(w.step, j, w.pid, entry, word, out):
                j += 1
        self._drop_orphan(keys.time_key(keys.TABLE_ORPHAN_DUE, words[0][1], w.pid))

    def _drop_orphan(self, due_key: bytes) -> None:
        self._state.delete(due_key)
        self._state.delete(keys.TABLE_ORPHAN + due_key[9:])
        self._globals.orphans -= 1
