"""At start: does this machine compute the same bits as the one on which the engine's version was recorded?

A processor or a compiler that contracts, reorders or approximates would give other answers for the same journal. Such
a worker must not begin.
"""

from hashlib import blake2b
from typing import Final

import numpy as np

from stream import bits
from stream.errors import OperatorError
from stream.features import FEATURES_VERSION
from stream.model import compiled
from stream.windows.entity import EntityWindows, Observations

ROWS: Final = 10_000
ENTITIES: Final = 300

RECORDED: Final = "304dcc5e0abf19198a885833c10cccd3"
"""What `fingerprint` gives for engine 1. It changes with the kernels, and then with ENGINE_VERSION."""


class OtherBits(OperatorError):
    """This machine's arithmetic is not the engine's."""


def fingerprint() -> str:
    """128 bits in hex over what scores: exp and log, the model's kernel, the windows' kernel, the table of features."""
    parts = (bits.kernel_hash(), compiled.kernel_hash(), _windows_hash(), FEATURES_VERSION)
    return blake2b("|".join(parts).encode(), digest_size=16).hexdigest()


def check() -> None:
    """Raises `OtherBits` if this machine or its libraries compute otherwise."""
    found = fingerprint()
    if found != RECORDED:
        raise OtherBits(
            f"the kernels give {found}, the engine's version was recorded with {RECORDED}. Operator: this machine or "
            f"its numba and numpy compute other bits than others do; its answers could differ. Programmer: if the "
            f"kernels were changed on purpose, record the new value together with a new ENGINE_VERSION"
        )


def _windows_hash() -> str:
    """10,000 payments of 300 entities from a linear congruence, through the compiled windows."""
    state = np.empty(ROWS * 8, np.uint64)
    value = 0x9E3779B97F4A7C15
    for i in range(len(state)):
        value = (value * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        state[i] = value >> 33
    drawn = state.reshape(ROWS, 8).astype(np.int64)
    event_ms = 1_500_000_000_000 + np.cumsum(drawn[:, 0] % 400_000) - drawn[:, 1] % 90_000
    rows = Observations(
        event_ms=event_ms,
        amount=drawn[:, 2] % 100_000 - 1,
        other=(drawn[:, 3] % 97).astype(np.uint64),
        payment=np.arange(ROWS, dtype=np.uint64),
        category=(drawn[:, 4] % 50).astype(np.int32),
        minute_of_week=(drawn[:, 5] % 10_080).astype(np.int32),
        latitude=(drawn[:, 6] % 180 - 90).astype(np.float32),
        longitude=(drawn[:, 7] % 360 - 180).astype(np.float32),
        label_clock=event_ms - 86_400_000,
        counts=np.ones(ROWS, np.bool_),
    )
    windows = EntityWindows()
    keys = [b"E%d" % entity for entity in (drawn[:, 1] % ENTITIES).tolist()]
    slots = windows.slots(keys, lambda wanted: [None] * len(wanted))
    block = windows.observe(slots, rows, maturity_ms=7 * 86_400_000)
    return blake2b(block.tobytes(), digest_size=16).hexdigest()
