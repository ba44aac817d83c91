"""Bounds made small, so that two hundred payments reach what takes millions in production."""

import importlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from zlib import crc32

import msgspec
import numpy as np

from stream.columns.scan import Scanned, scan_payments
from stream.features import FEATURES_VERSION, MODEL_FEATURES
from stream.model.gam import Gam
from stream.model.learner import Learner
from stream.model.learner import Settings as LearnerSettings
from stream.rules.policy import CHALLENGE
from stream.stages.decide import Decider
from stream.stages.stage import Outbox, Step
from stream.stages.terminal import TerminalStage
from stream.windows.entity import EntityWindows
from topics import codec
from topics.codec import Parsed
from topics.journal import RUN_MODES, Clock
from topics.limits import Limits
from topics.payment import Payment
from topics.refusals import Refusal

DAY_MS = 86_400_000
KEEP_ONE_IN = 2
UNLABELLED_ONE_IN = 2
PROVISIONAL_MS = DAY_MS // 2
CLOCK_STEP_MS = 6 * 3_600_000
BLOCK_ITEMS_MAX, BLOCK_BYTES_MAX = 4, 4_000
FEW_ENTRIES = 8  # an entity's ring in some runs: what came before them is folded


def keep_legitimate(payment_hash: int) -> float:
    return float(KEEP_ONE_IN) if (payment_hash >> 32) * KEEP_ONE_IN >> 32 == 0 else 0.0


NEVER = -1


BOMB_AMOUNT = 13_131_313  # the account stage fails on it
LATE_BOMB_AMOUNT = 13_131_314  # the terminal stage does
BAD_CLOCK, BAD_CLOCK_ONE_IN = 77, 500  # of clocks by their time in ms, on which the terminal stage fails
ACCOUNT_BOMB = "a programmer's error in the account stage"
TERMINAL_BOMB = "a programmer's error in the terminal stage, half-way through a run"
CLOCK_BOMB = "a programmer's error on a clock"
ENGINE = 2  # what this test's release holds beside engine 1
parse_payment = codec.parse_payment


def exploding_parse(raw: bytes | None, limits: Limits) -> Parsed | Refusal:
    if raw is not None and b'"amount":%d,' % BOMB_AMOUNT in raw:
        raise ArithmeticError(ACCOUNT_BOMB)
    return parse_payment(raw, limits)


def some_plain(values: Sequence[bytes], limits: Limits, *, whole: bool = True) -> Scanned:
    """One payment in four, another one in each call, goes the road of payments that are not plain: it must not matter
    which of the two it takes, not even when it comes again."""
    scanned = scan_payments(values, limits, whole=whole)
    scanned.plain[:] &= np.array([crc32(value) % 4 != len(values) % 4 for value in values], np.bool_)
    return scanned


def exploding_scan(values: Sequence[bytes], limits: Limits) -> Scanned:
    for value in values:
        exploding_parse(value if b'"amount":%d,' % BOMB_AMOUNT in value else None, limits)
    return some_plain(values, limits)


def exploding_joined(raw: bytearray, lengths: Any, limits: Limits) -> Scanned:
    ends = np.cumsum(lengths + 1).tolist()
    return exploding_scan([bytes(raw[a : b - 1]) for a, b in zip([0, *ends], ends, strict=False)], limits)


class SmallDecider(Decider):
    """Under engine 2 it asks for a challenge where 7 divides the amount; and there is a payment that it fails on."""

    def answers(self, steps: Any, placed: Any, decided: Any, at: Any) -> Any:
        self._decide_otherwise([item.payment.amount for item in placed], decided, at)
        return super().answers(steps, placed, decided, at)

    def texts(self, columns: Any, origins: Any, decided: Any, at: Any, **others: Any) -> Any:
        self._decide_otherwise(amounts_of(columns), decided, at)
        return super().texts(columns, origins, decided, at, **others)

    def _decide_otherwise(self, amounts: Sequence[int], decided: Any, at: Sequence[int]) -> None:
        for i in at:
            if amounts[i] == LATE_BOMB_AMOUNT:
                raise ArithmeticError(TERMINAL_BOMB)
            if self._meaning.engine == ENGINE and amounts[i] % 7 == 0:
                decided.verdict[i] = max(decided.verdict[i], CHALLENGE)


def amounts_of(columns: Any) -> list[int]:
    """What the payments of a run name as their amounts."""
    amounts: list[int] = []
    start = 0
    for names, terminal, mode, named in zip(
        columns.names.tolist(), columns.terminals.tolist(), columns.modes.tolist(), columns.names_terminal, strict=True
    ):
        canonical = columns.texts[start : names[0] - 1]
        amounts.append(msgspec.msgpack.decode(canonical, type=Payment).amount)
        start = terminal[1] if named else names[3] + (5 if RUN_MODES[mode] == "test" else 0)
    return amounts


class SmallTerminal(TerminalStage):
    """It fails on some clocks."""

    def _other(self, step: Step, out: Outbox) -> None:
        if isinstance(step.item, Clock) and step.item.clock_ms % BAD_CLOCK_ONE_IN == BAD_CLOCK:
            raise ArithmeticError(CLOCK_BOMB)
        super()._other(step, out)


class BreakingGam(Gam):
    """Its weights become NaN at its `breaks_at`-th step, as by an overflow; at every learner of a run, and again when
    it is restored and repeats that step."""

    breaks_at = NEVER
    broken = 0

    def correct(self, keys: Any, was_fraud: bool, was_weight: float, fraud: bool, weight: float) -> float:
        logit = super().correct(keys, was_fraud, was_weight, fraud, weight)
        self._break()
        return logit

    def learn_legitimate(self, x: Any, weight: Any, *more: Any) -> None:
        sound = max(0, BreakingGam.breaks_at - self.steps)
        super().learn_legitimate(x[:sound], weight[:sound], *more)
        self._break()
        super().learn_legitimate(x[sound:], weight[sound:], *more)

    def _break(self) -> None:
        if self.steps == BreakingGam.breaks_at:
            self.weights[:] = self.mean[:] = math.nan
            BreakingGam.broken += 1


SMALL: tuple[tuple[str, str, Any], ...] = (
    ("stream.runner.partition", "BLOCK_ITEMS_MAX", BLOCK_ITEMS_MAX),
    ("stream.runner.partition", "BLOCK_BYTES_MAX", BLOCK_BYTES_MAX),
    ("stream.stages.account", "EPOCH_MS", DAY_MS),
    ("stream.stages.account", "LABELS_MAX", 6),
    ("stream.stages.account", "CLOCK_STEP_MS", CLOCK_STEP_MS),
    ("stream.stages.terminal", "UNLABELLED_ONE_IN", UNLABELLED_ONE_IN),
    ("stream.stages.terminal", "MATURED_MAX", 2),
    ("stream.stages.terminal", "DUE_ROWS_MAX", 5),
    ("stream.stages.pending", "keep_legitimate", keep_legitimate),
    ("stream.stages.pending", "PROVISIONAL_MS", PROVISIONAL_MS),
    ("stream.model.learner", "RENEWAL_ROWS", (3, 10, 30, 100)),
    ("stream.model.learner", "Gam", BreakingGam),
    ("stream.model.gate", "EXAMPLES_MIN", 2),
    ("stream.model.gate", "DEVIATIONS", 0.0),
    ("stream.model.gate", "LOSS_SLACK", 0.0),
    ("stream.stages.account", "parse_payment", exploding_parse),
    ("stream.stages.account", "scan_payments", exploding_scan),
    ("stream.stages.account", "scan_joined", exploding_joined),
    ("stream.stages.intake", "scan_payments", some_plain),
    ("stream.stages.intake", "FEW", 0),
    ("stream.stages.account", "FEW", 0),
    ("stream.stages.terminal", "FEW", 1),
    ("stream.stages.terminal", "Decider", SmallDecider),
    ("stream.stages.wiring", "TerminalStage", SmallTerminal),
    ("stream.stages.control", "ENGINE_VERSION", ENGINE),
)


OVERFLOWING: tuple[tuple[str, str, Any], ...] = tuple(
    (module, "EntityWindows", partial(EntityWindows, entries_max=FEW_ENTRIES))
    for module in ("stream.stages.account", "stream.stages.terminal")
)

LATE_BINS: tuple[tuple[str, str, Any], ...] = (("stream.model.learner", "RENEWAL_ROWS", (40, 60)),)


@contextmanager
def small_bounds(breaks_at: int = NEVER, *, few_entries: bool = False, late_bins: bool = False) -> Iterator[None]:
    """Production's constants are replaced while this lasts. `breaks_at`: see `BreakingGam`; `few_entries`: windows
    that overflow; `late_bins`: examples wait for the learner's first bins."""
    BreakingGam.breaks_at, BreakingGam.broken = breaks_at, 0
    small = [*SMALL, *(OVERFLOWING if few_entries else ()), *(LATE_BINS if late_bins else ())]
    before = [(importlib.import_module(module), name) for module, name, _ in small]
    kept = [(module, name, getattr(module, name)) for module, name in before]
    for (module, name), (_, _, value) in zip(before, small, strict=True):
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in kept:
            setattr(module, name, value)


def small_learner() -> Learner:
    return Learner(LearnerSettings(features=len(MODEL_FEATURES), features_version=FEATURES_VERSION, frauds_min=2))
