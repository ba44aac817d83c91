"""Payments as the rows that the windows take."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stream.features import local_minutes
from stream.windows.entity import Observations
from topics.payment import Payment

NAN = float("nan")
NOT_COUNTED = frozenset({"refund", "payout"})


def counts(payment: Payment) -> bool:
    """Whether a payment takes a place in windows: a test and money that goes back do not."""
    return payment.mode != "test" and payment.operation not in NOT_COUNTED


def observations(
    payments: Sequence[Payment],
    *,
    amounts: Sequence[int],
    others: Sequence[int],
    payments64: Sequence[int],
    label_clocks: Sequence[int] | NDArray[np.int64],
    payer_ratio: NDArray[np.float32] | None = None,
) -> Observations:
    """Columns of one length; `amounts` in minor units of the base currency, -1 absent; clocks in ms UTC.

    Local time is UTC where a payment names no offset.
    """
    return Observations(
        event_ms=np.array([p.event_time for p in payments], np.int64),
        amount=np.array(amounts, np.int64),
        other=np.array(others, np.uint64),
        payment=np.array(payments64, np.uint64),
        category=np.array([0 if p.mcc is None else _mcc(p.mcc) for p in payments], np.int32),
        minute_of_week=local_minutes(payments),
        latitude=np.array([NAN if p.latitude is None else p.latitude for p in payments], np.float32),
        longitude=np.array([NAN if p.longitude is None else p.longitude for p in payments], np.float32),
        label_clock=np.array(label_clocks, np.int64),
        counts=np.array([counts(p) for p in payments], np.bool_),
        payer_ratio=payer_ratio,
    )


def _mcc(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0
