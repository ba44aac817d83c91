"""`python tests/kernels_at_work.py [--cold]`: which kernels work loads after `warm_up`; see test_warm_up.py."""

import gc
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "golden")]

import golden_journal  # noqa: E402
from numba.core.dispatcher import Dispatcher  # noqa: E402

from stream import self_check  # noqa: E402
from stream.replay.local import Local  # noqa: E402
from stream.replay.log import LocalLog  # noqa: E402
from stream.simulate import SHORT_DELAY, SimulationSettings  # noqa: E402
from stream.warm_up import warm_up  # noqa: E402

WORLD = SimulationSettings(
    seed=4, accounts=120, terminals=40, days=60, payments_per_day=220, fraud_rate=0.08, label_delay=SHORT_DELAY
)


def loaded() -> dict[str, int]:
    """Of each kernel of ours, for how many types of arguments it is ready."""
    kernels = [found for found in gc.get_objects() if isinstance(found, Dispatcher)]
    return {
        f"{kernel.py_func.__module__}.{kernel.py_func.__qualname__}": len(kernel.overloads)
        for kernel in kernels
        if kernel.overloads and kernel.py_func.__module__.startswith("stream.")
    }


def two_months() -> int:
    """Made payments in rounds of one to some hundred, with labels and ticks; how many versions came of it."""
    local = Local(LocalLog(), golden_journal.PARTITIONS)
    for number, (topic, value, at_ms) in enumerate(golden_journal.events(WORLD)):
        local.now_ms = max(local.now_ms, at_ms + 10)
        local.log.append(topic, number % golden_journal.PARTITIONS.of(topic), value, at_ms=local.now_ms)
        if number % 300 < 10:
            local.pump()
        if number % 500 == 0:
            local.tick()
    local.pump()
    return sum(record.key == b"model" for record in local.log.read("control", 0, 0, 10**6))


def main() -> None:
    if "--cold" not in sys.argv[1:]:
        self_check.check()
        warm_up()
    before = loaded()
    for sizes in ((1,), (7, 1), (1_000,)):
        golden_journal.answered(sizes=sizes, checkpoint_every=3)
    versions = two_months()
    after = loaded()
    new = sorted(name for name, types in after.items() if types != before.get(name))
    print(json.dumps({"before": len(before), "versions": versions, "new": new}))


if __name__ == "__main__":
    main()
