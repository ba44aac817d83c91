"""What an evaluation is run with."""

from typing import Final

from msgspec import Struct

from topics.limits import DAY_MS, HOUR_MS, LIMITS_DEFAULT

INTAKE_PAYMENTS_MAX: Final = 500
"""Payments that share a block at most. Counted from the data, never from how a file was read: the positions of
answers, and so the model's versions, must not depend on what comes later."""

PUMP_PAYMENTS: Final = 8_000
"""Payments taken in before the stages run. It changes no answer: markers enter at ticks only."""


class Evaluation(Struct, frozen=True, kw_only=True):
    """Settings of one evaluation.

    `maturity_ms`: on the labels' clock; then a payment without a fraud label is legitimate.
    `base_currency`: in which amounts are comparable; payments in others have no amount features.
    `tick_ms`: data time between two chances of the learner to publish. `clock_ms`: between two clock records.
    `batch`: journal records that a stage applies at once. Changes no byte of any answer.
    """

    maturity_ms: int = LIMITS_DEFAULT.maturity_ms
    base_currency: str = "EUR"
    tick_ms: int = 6 * HOUR_MS
    clock_ms: int = HOUR_MS
    batch: int = 1_000
    plain: bool = False


assert Evaluation().tick_ms % Evaluation().clock_ms == 0, "a tick comes after the clock record of its instant"
assert DAY_MS % Evaluation().tick_ms == 0
