"""How large a simulated world is, and how long the truth takes to come out."""

from typing import Final

import msgspec

DAY_MS: Final = 86_400_000

# 2025-01-01. In the past, so that no payment, and no label up to half a year later, is from the future.
START_MS: Final = 1_735_689_600_000


class LabelDelay(msgspec.Struct, frozen=True, kw_only=True):
    """Days from a payment to its chargeback: log-normal, cut to [`min_days`, `max_days`].

    `reported`: share of frauds with an early `fraud_report`, `report_days` (mean) after the payment.
    `never`: factor on each kind's share of frauds that nobody ever reports; 0 to report all.
    """

    median_days: float = 18.0
    sigma: float = 0.8
    min_days: float = 1.0
    max_days: float = 120.0
    report_days: float = 1.0
    reported: float = 0.3
    never: float = 1.0

    def __post_init__(self) -> None:
        """Raises ValueError on delays that make no sense."""
        if not 0 < self.min_days <= self.median_days <= self.max_days:
            raise ValueError("a label delay needs 0 < min_days <= median_days <= max_days")
        if self.sigma < 0 or self.report_days <= 0 or not 0 <= self.reported <= 1 or self.never < 0:
            raise ValueError("a label delay needs sigma >= 0, report_days > 0, reported in [0, 1] and never >= 0")


REAL_DELAY: Final = LabelDelay()
SHORT_DELAY: Final = LabelDelay(median_days=4.0, sigma=0.6, max_days=14.0, report_days=0.3)


class SimulationSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`payments_per_day`: of all accounts together, on average. `fraud_rate`: share of payments, on average."""

    seed: int = 1
    accounts: int = 5_000
    terminals: int = 2_000
    days: int = 60
    payments_per_day: float = 5_000.0
    fraud_rate: float = 0.01
    label_delay: LabelDelay = REAL_DELAY
    start_ms: int = START_MS

    def __post_init__(self) -> None:
        """Raises ValueError on a world that cannot be."""
        if self.seed < 0:
            raise ValueError("seed must be >= 0")
        if self.accounts < 1 or self.terminals < 1 or self.days < 1:
            raise ValueError("accounts, terminals and days must be at least 1")
        if not self.payments_per_day > 0:
            raise ValueError("payments_per_day must be positive")
        if not 0 <= self.fraud_rate <= 0.5:
            raise ValueError("fraud_rate must lie in [0, 0.5]")
        if self.start_ms % DAY_MS or self.start_ms < 0:
            raise ValueError("start_ms must be a midnight UTC, in epoch ms")
