"""The windows by brute force: lists, exact fractions, everything computed anew for each payment.

Written from the feature table, not from the kernel. It models what the design bounds: a ring of `entries_max`, and the
panes, days and frauds into which the oldest entry falls.
"""

import math
from dataclasses import dataclass, field
from fractions import Fraction

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
WINDOWS = {"5m": 5 * MINUTE, "1h": HOUR, "1d": DAY, "7d": 7 * DAY, "30d": 30 * DAY}
NAN = math.nan


@dataclass
class Row:
    entity: int
    time: int
    amount: int = 100
    other: int = 0
    payment: int = 0
    category: int = 0
    minute: int = -1
    place: tuple[float, float] | None = None
    clock: int = 0
    counts: bool = True
    payer_ratio: float = NAN
    # what the oracle notes when the row comes
    outlier: bool = False
    ordinary: bool = True
    observed: int | None = None


@dataclass
class History:
    ring: list[Row] = field(default_factory=list)
    panes: dict[tuple[str, int], tuple[int, list[Row]]] = field(default_factory=dict)
    days: dict[int, tuple[int, int]] = field(default_factory=dict)
    frauds: list[Row] = field(default_factory=list)
    overflowed: bool = False
    first_seen: int | None = None
    accepted: list[int] = field(default_factory=list)
    outliers_in_a_row: int = 0


def moments(amounts: list[int]) -> tuple[Fraction, Fraction]:
    """Mean and variance, exact."""
    n, total = len(amounts), sum(amounts)
    return Fraction(total, n), Fraction(n * sum(a * a for a in amounts) - total * total, n * n)


def habit(amounts: list[int]) -> tuple[float, float]:
    """Mean and variance: plain over the first 128 amounts, then each new one weighs 1/128."""
    mean, variance = map(float, moments(amounts[:128]))
    for a in amounts[128:]:
        variance = 127 / 128 * (variance + (a - mean) ** 2 / 128)
        mean += (a - mean) / 128
    return mean, variance


def distance_km(a: tuple[float, float], b: tuple[float, float]) -> float:
    def xyz(place: tuple[float, float]) -> tuple[float, float, float]:
        latitude, longitude = math.radians(place[0]), math.radians(place[1])
        return (
            math.cos(latitude) * math.cos(longitude),
            math.cos(latitude) * math.sin(longitude),
            math.sin(latitude),
        )

    return 6371.0 * math.dist(xyz(a), xyz(b))


class Oracle:
    def __init__(self, entries_max: int, maturity_ms: int, history_ms: int = 90 * DAY, payers: bool = False) -> None:
        self.entries_max, self.maturity_ms, self.history_ms, self.payers = entries_max, maturity_ms, history_ms, payers
        self.entities: dict[int, History] = {}
        self.began: int | None = None

    def label(self, entity: int, payment: int, time: int, observed: int | None) -> bool:
        h = self.entities.get(entity, History())
        for row in h.ring:
            if row.time == time and row.payment == payment:
                row.observed = observed
                return True
        if not h.overflowed or time > h.ring[0].time or time <= h.ring[-1].time - self.history_ms:
            return False
        for row in h.frauds:
            if row.time == time and row.payment == payment:
                row.observed = observed
                h.frauds = [r for r in h.frauds if r.observed is not None]
                return True
        if observed is None:
            return False
        self._fold_fraud(h, Row(entity, time, payment=payment, observed=observed, ordinary=False))
        return True

    def _fold_fraud(self, h: History, row: Row) -> None:
        if len(h.frauds) == 64:
            oldest = min(range(64), key=lambda i: h.frauds[i].time)
            if h.frauds[oldest].time >= row.time:
                return
            del h.frauds[oldest]
        h.frauds.append(row)

    def _fold(self, h: History, row: Row) -> None:
        h.overflowed = True
        for name, width in WINDOWS.items():
            number = row.time // (width // 24)
            key = (name, number % 25)
            held, rows = h.panes.get(key, (-1, []))
            if held > number:
                continue
            h.panes[key] = (number, [*rows, row] if held == number else [row])
        day = row.time // DAY
        held, count = h.days.get(day % 96, (-1, 0))
        if held <= day:
            h.days[day % 96] = (day, count + 1 if held == day else 1)
        if row.observed is not None:
            self._fold_fraud(h, row)

    def observe(self, row: Row) -> dict[str, float]:
        h = self.entities.setdefault(row.entity, History())
        f = self._features(h, row)
        if row.counts:
            self._place(h, row)
        return f

    def _place(self, h: History, row: Row) -> None:
        newest = max([row.time, *(r.time for r in h.ring)])
        if row.time > newest - self.history_ms:
            h.ring = [r for r in h.ring if r.time > newest - self.history_ms]
            h.ring = sorted([*h.ring, row], key=lambda r: r.time)  # stable: ties stay in order of arrival
            if len(h.ring) > self.entries_max:
                self._fold(h, h.ring.pop(0))
        if row.amount > 0:
            h.outliers_in_a_row = h.outliers_in_a_row + 1 if row.outlier else 0
            if not row.outlier or h.outliers_in_a_row >= 8:
                h.accepted.append(row.amount)

    def _features(self, h: History, row: Row) -> dict[str, float]:
        t = row.time
        earlier = [r for r in h.ring if r.time <= t]
        f: dict[str, float] = {}
        for name, width in WINDOWS.items():
            inside = [r for r in [*earlier, row] if r.time > t - width]
            for (window, _), (_, rows) in h.panes.items():
                if window == name and all(t - width < r.time <= t for r in rows):
                    inside += rows
            known = [r.amount for r in inside if r.amount >= 0]
            f[f"payments_{name}_count"] = len(inside)
            mean, variance = moments(known) if known else (NAN, NAN)
            f[f"amount_{name}_sum"] = sum(known) if known else NAN
            f[f"amount_{name}_mean"] = float(mean)
            f[f"amount_{name}_deviation"] = math.sqrt(variance)
            f[f"amount_{name}_max"] = max(known) if known else NAN

        f["since_last_s"] = (t - earlier[-1].time) / 1000 if earlier else NAN
        for name, days in (("1d", 1), ("7d", 7), ("30d", 30)):
            recent = [r for r in [*earlier, row] if r.time > t - days * DAY]
            f[f"others_{name}_distinct"] = len({r.other for r in recent} - {0})
            if name != "7d":
                f[f"categories_{name}_distinct"] = len({r.category for r in recent} - {0})
        if row.counts:
            self.began = t if self.began is None else self.began
            h.first_seen = t if h.first_seen is None else min(h.first_seen, t)
        f["coverage_30d_share"] = min(1.0, max(0, t - self.began) / (30 * DAY)) if self.began is not None else 0.0
        f["age_s"] = min(30 * DAY, max(0, t - h.first_seen)) / 1000 if h.first_seen is not None else 0.0

        ratio = z = NAN
        if row.amount >= 0 and h.accepted:
            mean, variance = habit(h.accepted)
            ratio = row.amount / mean
            if len(h.accepted) >= 3:
                z = (row.amount - mean) / max(math.sqrt(variance), 0.1 * mean)
        f["amount_ratio"], f["amount_z"] = ratio, z
        row.outlier = len(h.accepted) >= 3 and ratio > 2.5
        row.ordinary = not (row.payer_ratio > 2.5 if self.payers else row.outlier)

        held = [r for r in earlier if r.time > t - self.history_ms]
        recent = [r for r in held if r.time > t - 14 * DAY]
        top = max([r.amount for r in recent if r.amount >= 0], default=0)
        f["amount_14d_max_ratio"] = top / habit(h.accepted)[0] if recent and h.accepted else NAN
        f["outliers_3d_count"] = sum(r.outlier for r in held if r.time > t - 3 * DAY)
        f["outliers_14d_count"] = sum(r.outlier for r in recent)
        f["outliers_14d_share"] = f["outliers_14d_count"] / len(recent) if recent else NAN
        outliers = [r for r in held if r.outlier]
        f["since_outlier_s"] = (t - outliers[-1].time) / 1000 if outliers else NAN
        f["payer_outliers_7d_count"] = sum(not r.ordinary for r in held if r.time > t - 7 * DAY)
        mature = min(t, row.clock) - self.maturity_ms

        def known_fraud(r: Row) -> bool:
            return r.observed is not None and r.observed <= t

        matured = [r for r in held if r.time <= mature]
        folded = [r for r in h.frauds if known_fraud(r) and t - self.history_ms < r.time <= t]
        frauds = [r for r in held if known_fraud(r)] + folded
        for days in (7, 14, 28):
            f[f"frauds_{days}d_count"] = sum(mature - days * DAY < r.time <= mature for r in frauds)
        f["frauds_ordinary_28d_count"] = sum(r.ordinary and mature - 28 * DAY < r.time <= mature for r in frauds)
        run: list[Row] = []
        for r in reversed(matured):
            if not known_fraud(r):
                break
            run.append(r)
        f["fraud_run_count"] = len(run)
        f["fraud_run_age_s"] = (t - run[-1].time) / 1000 if run else NAN
        f["frauds_last_5_count"] = sum(map(known_fraud, matured[-5:])) if matured else NAN
        seen = sum(r.time > mature - 28 * DAY for r in matured)
        for day, count in h.days.values():
            if day * DAY > mature - 28 * DAY and (day + 1) * DAY - 1 <= mature:
                seen += count
        f["fraud_28d_share"] = (f["frauds_28d_count"] + 0.1) / (seen + 10)
        f["frauds_known_30d_count"] = sum(r.time > t - 30 * DAY for r in frauds)
        f["since_fraud_known_s"] = (t - max(r.observed or 0 for r in frauds)) / 1000 if frauds else NAN
        f["since_fraud_s"] = (t - max(r.time for r in frauds)) / 1000 if frauds else NAN

        pair = [r for r in held if r.other == row.other]
        f["pair_count"] = len(pair) if row.other else NAN
        f["pair_age_s"] = min(30 * DAY, t - pair[0].time) / 1000 if row.other and pair else NAN
        timed = [r for r in held if r.minute >= 0] if row.minute >= 0 else []
        apart = [abs(r.minute % 1440 - row.minute % 1440) for r in timed]
        near = sum(min(a, 1440 - a) <= 120 for a in apart)
        f["hour_share"] = (near + 1) / (len(timed) + 6) if timed else NAN
        alike = sum((r.minute >= 7200) == (row.minute >= 7200) for r in timed)
        f["weekend_share"] = (alike + 1) / (len(timed) + 2) if timed else NAN
        same = [r for r in held if r.category == row.category]
        f["category_count"] = len(same) if row.category else NAN
        spent = [r.amount for r in same if r.amount >= 0]
        usable = bool(row.category) and row.amount >= 0 and sum(spent) > 0
        f["category_amount_ratio"] = row.amount * len(spent) / sum(spent) if usable else NAN
        f["distance_km"] = f["speed_kmh"] = NAN
        placed = [r for r in held if r.place]
        if row.place and placed:
            f["distance_km"] = distance_km(row.place, placed[-1].place or (0, 0))
            f["speed_kmh"] = f["distance_km"] / (max(t - placed[-1].time, MINUTE) / HOUR)
        return f
