"""The account journal as plain rules read it: which of its records is new, late, known, refused, and what goes on.

Written from the contract and not from the stage: dicts that forget nothing but what the rules say, one item at a time.
What it expects is compared with what came out.
"""

import math
from typing import NamedTuple

import msgspec
from sim_contract import clean, pid_of, place_of
from sim_log import TP

from stream.stages.control import control_of
from topics.codec import Parsed, parse_label, parse_payment, parse_update
from topics.control import Engine, Rates, payload_as
from topics.journal import LABELS, PAYMENTS, Became, Clock, Item, Judged, Marker, Placed, Raw, Repeat
from topics.label import Label
from topics.limits import LIMITS_DEFAULT, Limits
from topics.payment import Payment
from topics.refusals import Refusal
from topics.truth import truth_of
from topics.update import NOT_THROUGH, Update

TERMINAL_JOURNAL = "terminal-journal"
DAY_MS = 86_400_000
CLOCK_STEP_MS = 6 * 3_600_000
LABELS_MAX = 6
FIRST, REPEAT, SILENT = "first", "repeat", "silent"
Source = tuple[bytes, int]


class Known(msgspec.Struct):
    content: bytes
    event_ms: int
    at_ms: int
    terminal: int
    test: bool


class Waits(msgspec.Struct):
    """Labels and updates that came before their payment."""

    since_ms: int
    words: list[tuple[bytes, Label | Update]]


class AccountReading:
    """`expected`: what becomes of each payment record: FIRST, REPEAT, SILENT (no answer) or why it is refused.
    `items`: what goes to each terminal partition, in order; of payments without their features."""

    def __init__(self, partition: int, accounts: int, terminals: int, skips: set[int]) -> None:
        self.partition, self.accounts, self.terminals = partition, accounts, terminals
        self.skips = skips
        self.expected: dict[tuple[int, int], str] = {}
        self.items: dict[TP, list[Item]] = {(TERMINAL_JOURNAL, p): [] for p in range(terminals)}
        self.limits = LIMITS_DEFAULT
        self.rates = Rates(base="EUR", nano_base_per_minor={})
        self.watermarks: dict[Source, int] = {}
        self.known: dict[bytes, Known] = {}
        self.labels: dict[bytes, list[Label]] = {}
        self.waiting: dict[bytes, Waits] = {}
        self.engine = 1
        self.engines: dict[tuple[int, int], int] = {}  # in force at each payment record
        self.refused: set[tuple[int, Source, int]] = set()  # labels and updates that are none: (source, sender, offset)
        self.lapsed: set[bytes] = set()  # labels of these waited in vain for `orphan_ms`; their payment may still come
        self.clock_ms = self.forwarded_ms = 0
        self.oldest_day = self.forgotten_day = 0
        self.n = self.offset = 0
        self.counting = Counting()
        # COUNTED of each payment's account, by (offset, n): one that was forgotten may come again.
        self.features: dict[tuple[int, int], list[float]] = {}

    def read(self, items: list[tuple[int, int, Source, Item]]) -> None:
        for offset, place, sender, item in items:
            self.offset, self.n = offset, place << 8
            if offset in self.skips:
                if isinstance(item, Raw) and item.source == PAYMENTS:
                    self.expected[sender[1], item.offset] = "skipped"
                    self.engines[sender[1], item.offset] = self.engine
            elif isinstance(item, Marker):
                self._mark(item)
            elif isinstance(item, Raw) and item.source == PAYMENTS:
                self.expected[sender[1], item.offset] = self._payment(item, sender)
                self.engines[sender[1], item.offset] = self.engine
            elif isinstance(item, Raw):
                self._word(item, sender)

    def _mark(self, marker: Marker) -> None:
        control = control_of(marker)
        if marker.kind == "settings":
            self.limits = payload_as(control, Limits)
        elif marker.kind == "engine":
            self.engine = payload_as(control, Engine).engine
        elif marker.kind == "rates":
            self.rates = payload_as(control, Rates)

    def _payment(self, raw: Raw, sender: Source) -> str:
        limits = self.limits
        parsed = None if raw.oversize is not None else parse_payment(raw.value, limits)
        if parsed is None:
            return "payload_too_large"
        if isinstance(parsed, Refusal):
            return parsed.cause
        payment = parsed.payment
        event_ms = payment.event_time
        if place_of(payment.tenant_id, payment.account_id, self.accounts) != self.partition:
            return "account_mismatch"
        if event_ms - raw.at_ms > limits.skew_ms:
            return "future_time"
        if event_ms // DAY_MS < self.forgotten_day:
            return "too_old"
        own = self.watermarks.get(sender, min(self.watermarks.values(), default=0))
        if payment.mode != "backfill" and own - event_ms > limits.dedupe_horizon_ms:
            return "too_old"
        pid = pid_of(payment.tenant_id, payment.account_id, payment.payment_id, test=payment.mode == "test")
        known = self.known.get(pid)
        if known is not None:
            if known.content != parsed.fingerprint_source:
                return "contradiction"
            if payment.mode == "backfill":
                return SILENT
            repeat = Repeat(
                self.offset, self.n, raw.at_ms, *sender, raw.offset, pid, known.at_ms, payment.tenant_id,
                payment.account_id, payment.payment_id, known.test, clean(raw.traceparent),
            )  # fmt: skip
            self.items[TERMINAL_JOURNAL, known.terminal].append(repeat)
            return REPEAT
        self._first(raw, parsed, pid, sender)
        return SILENT if payment.mode == "backfill" else FIRST

    def _first(self, raw: Raw, parsed: Parsed, pid: bytes, sender: Source) -> None:
        payment = parsed.payment
        event_ms = payment.event_time
        watermark = self.watermarks.get(sender)
        late = False
        if payment.mode != "test":
            late = watermark is not None and watermark - event_ms > self.limits.lateness_ms
            self.watermarks[sender] = event_ms if watermark is None else max(watermark, event_ms)
        terminal = place_of(payment.tenant_id, payment.terminal_id or payment.account_id, self.terminals)
        day = event_ms // DAY_MS
        self.oldest_day = min(self.oldest_day or day, day)
        self.known[pid] = Known(parsed.fingerprint_source, event_ms, raw.at_ms, terminal, payment.mode == "test")
        placed = Placed(
            self.offset, self.n, raw.at_ms, *sender, raw.offset, pid, late, self._base(payment), payment, [],
            clean(raw.traceparent),
        )  # fmt: skip
        self.items[TERMINAL_JOURNAL, terminal].append(placed)
        self.features[self.offset, self.n] = self.counting.place(
            placed, payment.account_id, payment.terminal_id, self.clock_ms, self.limits.maturity_ms
        )
        waiting = self.waiting.pop(pid, None)
        for _, word in [] if waiting is None else waiting.words:
            self.n += self._send(pid, word, self.n + 1)

    def _base(self, payment: Payment) -> int:
        if payment.currency == self.rates.base:
            return payment.amount
        if payment.billing_currency == self.rates.base and payment.billing_amount is not None:
            return payment.billing_amount
        rate = self.rates.nano_base_per_minor.get(payment.currency)
        return -1 if rate is None else payment.amount * rate // 10**9

    def _word(self, raw: Raw, sender: Source) -> None:
        """A label, a clock or an update."""
        if raw.oversize is not None:
            self.refused.add((raw.source, sender, raw.offset))
            return
        if raw.source == LABELS:
            parsed = parse_label(raw.value, self.limits)
            word = parsed if isinstance(parsed, Refusal) else parsed.label
        else:
            parsed = parse_update(raw.value, self.limits)
            word = parsed if isinstance(parsed, Refusal) else parsed.update
        if isinstance(word, Refusal) or word.observed_at - raw.at_ms > self.limits.skew_ms:
            self.refused.add((raw.source, sender, raw.offset))
            return
        is_clock = isinstance(word, Label) and word.kind == "clock"
        if not is_clock:
            pid = pid_of(word.tenant_id, word.account_id or "", word.payment_id or "")
            known = self.known.get(pid)
            if known is not None and known.event_ms // DAY_MS >= self.forgotten_day:
                self._send(pid, word, self.n)
            else:
                waiting = self.waiting.setdefault(pid, Waits(word.observed_at, []))
                if len(waiting.words) < LABELS_MAX and all(value != raw.value for value, _ in waiting.words):
                    waiting.words.append((raw.value, word))
        if isinstance(word, Label) and word.observed_at > self.clock_ms:
            self.clock_ms = word.observed_at
            if is_clock or self.clock_ms - self.forwarded_ms >= CLOCK_STEP_MS:
                self._forward()

    def _send(self, pid: bytes, word: Label | Update, n: int) -> bool:
        known = self.known[pid]
        out = self.items[TERMINAL_JOURNAL, known.terminal]
        if isinstance(word, Update):
            out.append(Became(self.offset, n, pid, known.event_ms, word.kind not in NOT_THROUGH))
            return True
        labels = self.labels.setdefault(pid, [])
        if word in labels or len(labels) == LABELS_MAX:
            return False
        before = truth_of(labels)
        labels.append(word)
        truth = truth_of(labels)
        if len(labels) > 1 and (before.fraud, before.weight) == (truth.fraud, truth.weight):
            return False
        provisional = truth.weight == "provisional"
        self.counting.judge(pid, word.observed_at, bool(truth.fraud))
        out.append(Judged(self.offset, n, pid, known.event_ms, word.observed_at, truth.fraud, provisional, word.source))
        return True

    def _forward(self) -> None:
        self.forwarded_ms = self.clock_ms
        for terminal in range(self.terminals):
            clock = Clock(self.offset, (self.n >> 8 << 8) + 1, self.partition, self.clock_ms)
            self.items[TERMINAL_JOURNAL, terminal].append(clock)
        low_ms = min(self.watermarks.values(), default=0)
        behind_ms = min(low_ms - self.limits.dedupe_horizon_ms, self.clock_ms - self.limits.road_ms)
        if self.known and behind_ms // DAY_MS > max(self.oldest_day, self.forgotten_day):
            self.forgotten_day = behind_ms // DAY_MS
            for pid in [pid for pid, known in self.known.items() if known.event_ms // DAY_MS < self.forgotten_day]:
                del self.known[pid]
                self.labels.pop(pid, None)
        due_ms = low_ms - self.limits.orphan_ms
        for pid in [pid for pid, waiting in self.waiting.items() if waiting.since_ms < due_ms]:
            del self.waiting[pid]
            self.lapsed.add(pid)


def without_features(items: list[Item]) -> list[Item]:
    """Blocks of features are checked against an own count, see `Counting`."""
    return [msgspec.structs.replace(item, entities=[]) if isinstance(item, Placed) else item for item in items]


WINDOWS_MS = {"5m": 300_000, "1h": 3_600_000, "1d": DAY_MS, "7d": 7 * DAY_MS, "30d": 30 * DAY_MS}
HISTORY_MS = 90 * DAY_MS  # before the newest payment of an entity: what is older is not held
COUNTED = (
    *(f"payments_{window}_count" for window in WINDOWS_MS),
    *(f"amount_{window}_sum" for window in WINDOWS_MS),
    *(f"others_{window}_distinct" for window in ("1d", "7d", "30d")),
    "frauds_known_30d_count",
    "frauds_28d_count",
    "fraud_28d_share",
    "since_last_s",
    "pair_count",
)


class Seen(NamedTuple):
    """A payment that left a trace at an entity. `other`: the terminal, or the account; None: none is named."""

    pid: bytes
    at_ms: int
    amount: int
    other: str | None


class Counting:
    """Some features of an entity counted plainly over all of its payments that were placed up to now: of windows
    (t - width, t] how many there are, the sum of their known amounts, how many others; how many are known at t to be
    fraud, of all and of those that the labels' clock calls mature."""

    def __init__(self) -> None:
        self.placed: dict[tuple[str, str], list[Seen]] = {}
        self.frauds: dict[bytes, int] = {}

    def place(
        self, item: Placed, entity_id: str, other: str | None, label_clock_ms: int, maturity_ms: int
    ) -> list[float]:
        """`COUNTED` of this payment. A test, or money that goes back, counts itself and leaves no trace."""
        payment = item.payment
        event_ms = payment.event_time
        placed = self.placed.setdefault((payment.tenant_id, entity_id), [])
        this = Seen(item.pid, event_ms, item.base_amount, other)
        held_from_ms = max((seen.at_ms for seen in placed), default=event_ms) - HISTORY_MS
        before = [seen for seen in placed if held_from_ms < seen.at_ms <= event_ms]
        held = [seen for seen in (*before, this) if seen.at_ms > event_ms - WINDOWS_MS["30d"]]
        if payment.mode != "test" and payment.operation not in ("refund", "payout"):
            placed.append(this)
        windows = {name: [seen for seen in held if seen.at_ms > event_ms - width] for name, width in WINDOWS_MS.items()}
        known = {name: [seen.amount for seen in window if seen.amount >= 0] for name, window in windows.items()}
        fraud = [seen for seen in held if self.frauds.get(seen.pid, event_ms + 1) <= event_ms]
        mature_ms = min(event_ms, label_clock_ms) - maturity_ms
        mature_from_ms = max(mature_ms - 28 * DAY_MS, event_ms - HISTORY_MS)
        mature = [seen for seen in before if mature_from_ms < seen.at_ms <= mature_ms]
        mature_frauds = sum(self.frauds.get(seen.pid, event_ms + 1) <= event_ms for seen in mature)
        pairs = [seen for seen in before if seen.other == other and seen.at_ms > event_ms - HISTORY_MS]
        return [
            *(len(window) for window in windows.values()),
            *(sum(amounts) if amounts else math.nan for amounts in known.values()),
            *(len({seen.other for seen in windows[name]} - {None}) for name in ("1d", "7d", "30d")),
            len(fraud),
            mature_frauds,
            (mature_frauds + 0.1) / (len(mature) + 10.0),
            (event_ms - max(seen.at_ms for seen in before)) / 1000.0 if before else math.nan,
            math.nan if other is None else len(pairs),
        ]

    def judge(self, pid: bytes, observed_ms: int, fraud: bool) -> None:
        if fraud:
            self.frauds[pid] = observed_ms
        else:
            self.frauds.pop(pid, None)
