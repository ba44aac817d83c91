"""The faults. Each hurts a deployment under load, and says how it knows that the fault has bitten."""

import time
from collections.abc import Callable
from typing import Any

from chaos_deployment import Deployment
from chaos_load import Load

Evidence = dict[str, Any]
Fault = Callable[[Deployment, int], Evidence]
FAULTS: dict[str, Fault] = {}


def fault(name: str) -> Callable[[Fault], Fault]:
    def register(function: Fault) -> Fault:
        FAULTS[name] = function
        return function

    return register


def rate_for(payments: int, seconds: float, most: float = 2_000.0) -> float:
    """Payments a second, so that the load lasts for about `seconds`, or longer."""
    return max(50.0, min(most, payments / seconds))


@fault("kill")
def kill(deployment: Deployment, payments: int) -> Evidence:
    """SIGKILL one of two workers at random moments, and start it again."""
    times = min(50, max(3, payments // 20_000))
    workers = [deployment.worker("a"), deployment.worker("b")]
    feed = deployment.feed(Load(payments, deployment.seed), rate=rate_for(payments, 12.0 * times))
    deployment.until_answering()
    deployment.until(lambda: all(worker.count("generation [2-9]") for worker in workers), "both are members")
    kills = 0
    while kills < times:
        time.sleep(deployment.rng.uniform(1.0, 6.0))
        victim = deployment.rng.choice(workers)
        if not victim.alive:
            raise AssertionError(f"{victim.name} ended by itself")
        deployment.watcher.mark(f"kill {victim.name}")
        victim.kill()
        kills += 1
        time.sleep(deployment.rng.uniform(0.0, 8.0))
        victim.start()
        deployment.until_answering()
    feed.join()
    return {"kills": kills, "bit": kills}
