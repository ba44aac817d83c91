"""Payments as the rows that the windows take, and the windows in a stage's state."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.columns.combinations import NOT_COUNTED
from stream.features import NAN
from stream.stages import keys
from stream.stages.state import State
from stream.windows.entity import STORE_KEY, EntityWindows, Observations
from topics.payment import Payment

NANS = np.full(1_000, np.nan, np.float32)  # read only; the kernels' types know of no flag for that


def kept_in(state: State) -> Callable[[list[bytes]], list[bytes | None]]:
    """What `EntityWindows.slots` loads from."""
    return lambda wanted: state.get_many([key or keys.ENTITY_STORE_KEY for key in wanted])


def keep(windows: EntityWindows, state: State, slots_max: int) -> None:
    """Write what changed, and leave at most `slots_max` entities in memory."""
    changed = windows.export_dirty()
    began = changed.pop(STORE_KEY, None)
    if began is not None:
        state.put(keys.ENTITY_STORE_KEY, began)
    state.put_all(keys.TABLE_ENTITY, changed)
    windows.evict(slots_max)


def observations(
    payments: Sequence[Payment],
    *,
    amounts: Sequence[int],
    others: Sequence[int],
    payments64: NDArray[np.uint64],
    label_clocks: Sequence[int],
    minutes: NDArray[np.int32],
    payer_ratio: NDArray[np.float32] | None = None,
) -> Observations:
    """Columns of one length; `amounts` in minor units of the base currency, -1 absent; clocks in ms UTC.

    `minutes`: of the local week, as `local_minutes` gives them.
    """
    return Observations(
        event_ms=np.array([p.event_time for p in payments], np.int64),
        amount=np.array(amounts, np.int64),
        other=np.array(others, np.uint64),
        payment=payments64,
        category=np.array([category(p.mcc) for p in payments], np.int32),
        minute_of_week=minutes,
        latitude=_singles([p.latitude for p in payments]),
        longitude=_singles([p.longitude for p in payments]),
        label_clock=np.array(label_clocks, np.int64),
        counts=np.array([p.mode != "test" and p.operation not in NOT_COUNTED for p in payments], np.bool_),
        payer_ratio=payer_ratio,
    )


def _singles(values: list[Any]) -> NDArray[np.float32]:
    """float32, NaN where a value is None; most processors send none at all."""
    n = len(values)
    if values.count(None) == n:
        return absent(n)
    return np.array([NAN if value is None else value for value in values], np.float32)


def absent(n: int) -> NDArray[np.float32]:
    """n times NaN, to be read only."""
    return NANS[:n] if n <= len(NANS) else np.full(n, np.nan, np.float32)


@lru_cache(maxsize=10_000)
def category(mcc: str | None) -> int:
    """The merchant category as a number; 0: absent, or none of ISO 18245."""
    return int(mcc) if mcc is not None and mcc.isascii() and mcc.isdigit() else 0
