"""How long a demonstration takes, and what happens when."""

from typing import Final

from msgspec import Struct

from stream.simulate import SHORT_DELAY

PAYMENTS_MIN: Final = 15_000  # below, too few are left after the learner's first bins (about 10,000 payments)
PAYMENTS_MAX: Final = 1_000_000  # all are held in memory, about 1 kB each
PAYMENTS_DEFAULT: Final = 50_000
PAYMENTS_SHORT: Final = 20_000
SECONDS_DEFAULT: Final = 72.0
SECONDS_SHORT: Final = 26.0
RATE_MAX: Final = 1_500.0  # payments a second; two cores carry broker, workers, and this process
TICK_MIN_S: Final = 0.8
TICK_MAX_S: Final = 4.0
assert TICK_MAX_S <= 5.0, "the learner of a demonstration may publish every five seconds"

BAD_RATE: Final = 0.01
REPEAT_RATE: Final = 0.002
OPENING: Final = 40  # payments that are sent, and waited for, before the clock runs: the workers are ready then
TAIL_SHARE: Final = 0.2
MATURITY_DAYS: Final = 15
assert SHORT_DELAY.max_days < MATURITY_DAYS, "a chargeback comes before silence is taken for consent"


class Plan(Struct, frozen=True, kw_only=True):
    """`payments`: records on `payments`, those that are bad on purpose and repeats included. `rate`: payments a second.

    `tick_s`: how often the learner may publish. `tail_from`: from this payment on labels wait until the last payment is
    sent, so that one version decides all of the tail, and has seen nothing of it.
    """

    payments: int
    seed: int
    workers: int
    rate: float
    tick_s: float

    @property
    def tail_from(self) -> int:
        return int(self.payments * (1.0 - TAIL_SHARE))


def plan_of(payments: int, *, seed: int = 1, workers: int = 1, seconds: float = SECONDS_DEFAULT) -> Plan:
    """A plan that sends for `seconds`, or for longer if that would be too fast for a small machine.

    >>> plan_of(50_000).rate < plan_of(200_000).rate == RATE_MAX
    True
    """
    rate = min(payments / seconds, RATE_MAX)
    tick_s = min(max(payments / rate / 24.0, TICK_MIN_S), TICK_MAX_S)
    return Plan(payments=payments, seed=seed, workers=workers, rate=rate, tick_s=tick_s)
