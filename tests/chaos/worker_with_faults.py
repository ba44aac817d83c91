"""`fraud worker` with faults for which production has no switch: `python tests/chaos/worker_with_faults.py worker`.

CHAOS_RAISE_AMOUNT=N        the terminal stage raises on a payment of that amount
CHAOS_CLOCK_S=N             `time.time` is off by so many seconds
CHAOS_ENGINE=2              a release that holds engine 2 as well: it asks for a challenge where 7 divides the amount
CHAOS_CRASH=point:n[:topic] the process ends, as by SIGKILL, when that point is passed for the n-th time
"""

import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2])]

CLOCK_S = float(os.environ.get("CHAOS_CLOCK_S", "0"))
if CLOCK_S:
    true_time = time.time
    time.time = lambda: true_time() + CLOCK_S  # before anything takes a reference

from stream.cli.main import main  # noqa: E402
from stream.rules.policy import CHALLENGE  # noqa: E402
from stream.stages import control  # noqa: E402
from stream.stages.decide import Decider  # noqa: E402
from stream.stages.stage import spread  # noqa: E402
from stream.stages.terminal import TerminalStage  # noqa: E402
from stream.worker import app  # noqa: E402
from stream.worker.fetch import TP  # noqa: E402
from topics.journal import Placed  # noqa: E402


def raise_on(amount: int) -> None:
    inner = TerminalStage.apply

    def apply(self: TerminalStage, steps: Any, out: Any) -> None:
        for step in spread(steps):
            if isinstance(step.item, Placed) and step.item.payment.amount == amount:
                raise ArithmeticError(f"the fault suite raises on an amount of {amount}")
        inner(self, steps, out)

    TerminalStage.apply = apply


def hold_engine_2() -> None:
    """This process is a release that holds engines 1 and 2. What decides is the marker in the journal."""
    if control.ENGINE_VERSION == 2:
        return
    control.ENGINE_VERSION = 2
    inner = Decider.judge

    def judge(self: Decider, accounts: Any, terminals: Any, own: Any) -> Any:
        decided = inner(self, accounts, terminals, own)
        if self._meaning.engine == 2:
            for i, amount in enumerate(own[:, 0].tolist()):
                if amount % 7 == 0:
                    decided.verdict[i] = max(decided.verdict[i], CHALLENGE)
        return decided

    Decider.judge = judge


def crash_at(point: str, times: int, topic: str | None) -> None:
    passed: Counter[str] = Counter()

    def crash(at: str) -> None:
        passed[at] += 1
        if at == point and passed[at] == times:
            os.kill(os.getpid(), signal.SIGKILL)

    class CrashingWorker(app.Worker):
        def __init__(self, settings: Any) -> None:
            super().__init__(settings, crash=crash)

        def _host(self, name: TP) -> Any:
            # Runners of other topics pass their points in peace.
            everywhere, self._crash = self._crash, crash if topic in (None, name.topic) else app.no_crash
            try:
                return super()._host(name)
            finally:
                self._crash = everywhere

    app.Worker = CrashingWorker


if __name__ == "__main__":
    if "CHAOS_RAISE_AMOUNT" in os.environ:
        raise_on(int(os.environ["CHAOS_RAISE_AMOUNT"]))
    if os.environ.get("CHAOS_ENGINE") == "2":
        hold_engine_2()
    if "CHAOS_CRASH" in os.environ:
        where, count, *of = os.environ["CHAOS_CRASH"].split(":")
        crash_at(where, int(count), of[0] if of else None)
    main()
