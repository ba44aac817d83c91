"""The latest rows of a stream, a fixed number of them."""

import msgspec
import numpy as np
from numpy.typing import NDArray


class RingState(msgspec.Struct, frozen=True, array_like=True):
    """The ring as plain bytes."""

    at: int
    rows: bytes


class Ring:
    """The latest `capacity` rows of float32 [features]."""

    def __init__(self, capacity: int, features: int) -> None:
        self.capacity = capacity
        self.features = features
        self.at = 0  # rows ever added
        self._rows = np.full((capacity, features), np.nan, np.float32)

    def add(self, row: NDArray[np.float32]) -> None:
        """One row; the oldest makes room."""
        self._rows[self.at % self.capacity] = row
        self.at += 1

    def add_all(self, rows: NDArray[np.float32]) -> None:
        """`add` of each of float32 [n, features]."""
        first = max(0, len(rows) - self.capacity)
        self._rows[np.arange(self.at + first, self.at + len(rows)) % self.capacity] = rows[first:]
        self.at += len(rows)

    @property
    def rows(self) -> NDArray[np.float32]:
        """float32 [n, features], n at most `capacity`, in no promised order."""
        return self._rows[: min(self.at, self.capacity)]

    def state(self) -> RingState:
        """All there is to it."""
        return RingState(self.at, self.rows.tobytes())

    def resume(self, state: RingState) -> None:
        """Go on where `state` was taken."""
        rows = np.frombuffer(state.rows, np.float32).reshape(-1, self.features)
        self.at = state.at
        self._rows[: len(rows)] = rows
