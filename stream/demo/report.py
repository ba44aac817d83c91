"""What a demonstration found, as `fraud demo --json` prints it."""

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from stream.demo.quality import VersionUse


class Latency(Struct, frozen=True, kw_only=True):
    """From the broker's time of a payment to its time of the answer, in ms; of payments after the opening."""

    p50: float
    p99: float
    p999: float

    @classmethod
    def of(cls, latencies_ms: Sequence[int]) -> "Latency":
        """Zeros if there are none."""
        if not latencies_ms:
            return cls(p50=0.0, p99=0.0, p999=0.0)
        p50, p99, p999 = np.percentile(np.array(latencies_ms), [50.0, 99.0, 99.9]).tolist()
        return cls(p50=round(p50, 1), p99=round(p99, 1), p999=round(p999, 1))


class Report(Struct, frozen=True, kw_only=True):
    """`payments`: records on `payments`. `decisions`: deliveries on `decisions`. `missing`, `conflicting`, `repeated`:
    as `fraud reconcile` says, of which all but `repeated` must be 0; `repeated` are answers delivered twice for one
    record. `bad_injected`, `bad_refused`: records spoilt on purpose, and those refused for the cause that was meant;
    `wrongly_refused`: any others. `labels`: sent, without clock records; `labels_joined`: that taught something;
    `examples`: rows with a truth that the learner got.

    `model_versions`: different in content, each having decided at least 1 % of the payments after it came;
    `versions`: all that decided anything. `average_precision*`: on the same `compared_payments`, those since the last
    of them came: as answered, by its first, by amount and by rules alone. `rescored_equal`: the last version, applied
    again to the recorded features, gives the very probabilities that were answered.

    `payments_per_second`: as sent, which is a pace chosen for the show and not a limit. `seconds`: all of it, from the
    start of the command; `stream_seconds`: from the first measured payment to the last answer.
    """

    payments: int
    decisions: int
    missing: int
    conflicting: int
    repeated: int
    dead_letters: int
    bad_injected: int
    bad_refused: int
    wrongly_refused: int
    repeats_sent: int
    repeats_answered: int
    labels: int
    labels_joined: int
    examples: int
    model_versions: int
    model_versions_held: int
    versions: list[VersionUse]
    average_precision: float | None
    average_precision_first_version: float | None
    average_precision_amount_only: float | None
    average_precision_rules_only: float | None
    rescored_equal: bool
    compared_payments: int
    compared_frauds: int
    outcomes: dict[str, int]
    payments_per_second: float
    latency_ms: Latency
    stream_seconds: float
    seconds: float
    workers: int
    seed: int
    bootstrap: str
    prefix: str
    embedded_broker: bool

    @property
    def failures(self) -> list[str]:
        """What is not as it must be; empty when all is well."""
        found: list[str] = []
        if self.missing:
            found.append(f"{self.missing} payments have no answer")
        if self.conflicting:
            found.append(f"{self.conflicting} answers contradict each other")
        if self.bad_refused != self.bad_injected:
            found.append(f"{self.bad_injected - self.bad_refused} bad payments were not refused for what is wrong")
        if self.wrongly_refused:
            found.append(f"{self.wrongly_refused} good payments were refused")
        if self.dead_letters != self.bad_injected:
            found.append(f"{self.dead_letters} dead letters for {self.bad_injected} bad payments")
        if not self.rescored_equal:
            found.append("a recorded probability is not what its version gives")
        return found
