"""Python's cyclic garbage collector, set for a process that makes many short-lived records and few cycles."""

import gc
import sys
from typing import Final

YOUNG_MAX: Final = 50_000  # a round makes some ten thousand objects, all gone when it ends
OFFLINE_YOUNG_MAX: Final = 500_000  # nobody waits for an answer, and what is kept is kept in dicts of bytes
SWITCH_S: Final = 0.001


def settle(young_max: int = YOUNG_MAX) -> None:
    """Call once, when the process has been set up.

    What lives until the end is not looked at again, and the young are looked at once a round instead of thirty times:
    10 to 15 % of the stages' CPU (`python tests/bench/steps.py`). A thread that fetches waits 1 ms for the interpreter
    at most while another computes, not 5.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(young_max, 20, 100)
    sys.setswitchinterval(SWITCH_S)
