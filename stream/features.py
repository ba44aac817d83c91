"""What is known of a payment when it is decided: each feature with its unit, window and formula.

NaN is absent, and never the same as zero. All are float32, rounded before scoring.
"""

import hashlib
import struct
from collections.abc import Sequence
from operator import attrgetter
from typing import Final, Literal, NamedTuple, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from stream.bits import kernel as compiled
from stream.windows import kernel
from topics.payment import Payment

Unit = Literal["count", "minor units", "s", "share", "ratio", "deviations", "km", "km/h", "h", "code", "flag"]
Entity = Literal["account or terminal", "account", "terminal", "payment"]


class Feature(NamedTuple):
    """One number about a payment. `window`: the event times it looks at, (t - window, t]; t is the payment's own."""

    name: str
    unit: Unit
    window: str
    formula: str
    entity: Entity = "account or terminal"


def _of_window(window: str) -> list[Feature]:
    return [
        Feature(f"payments_{window}_count", "count", window, "payments, this one included"),
        Feature(f"amount_{window}_sum", "minor units", window, "sum of known amounts, base currency; NaN: none known"),
        Feature(f"amount_{window}_mean", "minor units", window, "sum / number of known amounts"),
        Feature(f"amount_{window}_deviation", "minor units", window, "population standard deviation of known amounts"),
        Feature(f"amount_{window}_max", "minor units", window, "largest known amount"),
    ]


HELD: Final = "90 d held"
MATURE_7D: Final = "7 d matured"
MATURE_14D: Final = "14 d matured"
MATURE_28D: Final = "28 d matured"

ENTITY_FEATURES: Final[tuple[Feature, ...]] = (
    *_of_window("5m"),
    *_of_window("1h"),
    *_of_window("1d"),
    *_of_window("7d"),
    *_of_window("30d"),
    Feature("since_last_s", "s", HELD, "t - time of the payment before; NaN: the first ever"),
    Feature("others_1d_distinct", "count", "1d", "distinct terminals of the account (accounts of the terminal) held"),
    Feature("others_7d_distinct", "count", "7d", "the same over 7 d"),
    Feature("others_30d_distinct", "count", "30d", "the same over 30 d"),
    Feature("categories_1d_distinct", "count", "1d", "distinct merchant categories among payments held"),
    Feature("categories_30d_distinct", "count", "30d", "the same over 30 d"),
    Feature("coverage_30d_share", "share", "30d", "min(1, (t - first payment of the whole store) / 30 d)"),
    Feature("age_s", "s", "all", "t - earliest payment of the entity ever placed, at most 30 d"),
    Feature(
        "amount_ratio", "ratio", "all",
        "amount / habit; habit: running mean of amounts > 0 in order of arrival, which skips outliers (ratio > 2.5 "
        "after the first 3, unless it is the 8th in a row or later) and weighs a new amount at least 1/128; NaN: none",
    ),
    Feature("amount_z", "deviations", "all", "(amount - habit) / max(its deviation, habit / 10); NaN: fewer than 3"),
    Feature("amount_14d_max_ratio", "ratio", "14d", "largest earlier amount / habit; NaN: none earlier, or no habit"),
    Feature("outliers_3d_count", "count", "3d", "earlier payments held that were outliers when they came"),
    Feature("outliers_14d_count", "count", "14d", "the same over 14 d"),
    Feature("outliers_14d_share", "share", "14d", "those / earlier payments held; NaN: none earlier"),
    Feature("since_outlier_s", "s", HELD, "t - time of the latest earlier outlier; NaN: none"),
    Feature(
        "payer_outliers_7d_count", "count", "7d",
        "earlier payments that were outliers (for a terminal: to the habit of the account that paid)",
    ),
    Feature("frauds_7d_count", "count", MATURE_7D, "frauds known at t among matured payments of 7 d"),
    Feature("frauds_14d_count", "count", MATURE_14D, "the same over 14 d"),
    Feature("frauds_28d_count", "count", MATURE_28D, "the same over 28 d"),
    Feature("fraud_run_count", "count", HELD, "length of the unbroken run of frauds that ends the matured payments"),
    Feature("fraud_run_age_s", "s", HELD, "t - time of the first of that run; NaN: no run"),
    Feature(
        "frauds_ordinary_28d_count", "count", MATURE_28D,
        "matured frauds whose amount was no outlier (for a terminal: to the habit of the account that paid)",
    ),
    Feature("frauds_last_5_count", "count", HELD, "frauds among the last 5 matured; NaN: none matured"),
    Feature("fraud_28d_share", "share", MATURE_28D, "(frauds + 0.1) / (matured payments + 10)"),
    Feature("frauds_known_30d_count", "count", "30d", "payments whose fraud label has come, matured or not"),
    Feature("since_fraud_known_s", "s", HELD, "t - latest observed_at of a fraud label that has come; NaN: none"),
    Feature("since_fraud_s", "s", HELD, "t - time of the latest payment whose fraud label has come; NaN: none"),
    Feature("pair_count", "count", HELD, "earlier payments of this account at this terminal; NaN: no terminal"),
    Feature("pair_age_s", "s", HELD, "t - the first of them, at most 30 d; NaN: none"),
    Feature(
        "hour_share", "share", HELD,
        "(earlier payments within 2 h of this time of day + 1) / (earlier payments + 6); NaN: none earlier",
    ),
    Feature(
        "weekend_share", "share", HELD,
        "(earlier payments on the same kind of day, weekend or not, + 1) / (earlier payments + 2); NaN: none earlier",
    ),
    Feature("category_count", "count", HELD, "earlier payments in this merchant category; NaN: no category"),
    Feature("category_amount_ratio", "ratio", HELD, "amount / mean known amount of those; NaN: none, or mean 0"),
    Feature("distance_km", "km", HELD, "chord through the earth to the latest earlier position; NaN: one is missing"),
    Feature("speed_kmh", "km/h", HELD, "distance / time since that position, taken as at least 1 min"),
)  # fmt: skip
assert len(ENTITY_FEATURES) == kernel.COLUMNS, "one row of this table a column of the kernel"


def _values_of(field: str) -> tuple[str, ...]:
    """The members of the `Literal` that a field of the payment contract is, in the contract's order."""
    values: list[str] = []
    for member in get_args(get_type_hints(Payment)[field]):
        values += get_args(member) if get_args(member) else [member] if isinstance(member, str) else []
    return tuple(values)


# Enumerations become their place in the contract. A new member is appended there, so old codes keep their meaning.
CODED_FIELDS: Final = (
    "channel", "entry_mode", "three_ds", "cvv", "avs", "funding", "stored_credential", "initiator", "payee_check",
)  # fmt: skip
CODES: Final = {field: {value: float(i) for i, value in enumerate(_values_of(field))} for field in CODED_FIELDS}
assert all(CODES.values()), "each coded field is a Literal in the contract"

PAYMENT_FEATURES: Final[tuple[Feature, ...]] = (
    Feature("amount", "minor units", "now", "base currency; NaN: no rate", "payment"),
    Feature("local_hour", "h", "now", "local time of day, 0 to 24; UTC if the offset is absent", "payment"),
    Feature("is_weekend", "flag", "now", "1 on Saturday and Sunday, local time", "payment"),
    Feature("cross_border", "flag", "now", "merchant's country is not the issuer's; NaN: one is absent", "payment"),
    Feature("foreign_currency", "flag", "now", "currency is not the billing currency; NaN: absent", "payment"),
    *(
        Feature(field, "code", "now", ", ".join(f"{i} {v}" for i, v in enumerate(CODES[field])), "payment")
        for field in CODED_FIELDS
    ),
    Feature("mcc", "code", "now", "merchant category, ISO 18245, as a number; NaN: absent", "payment"),
)

ACCOUNT_COLUMNS: Final = (
    "payments_5m_count", "payments_1h_count", "payments_1d_count", "payments_7d_count", "payments_30d_count",
    "amount_1h_sum", "amount_1d_sum", "amount_7d_mean", "amount_30d_mean", "amount_30d_deviation", "amount_30d_max",
    "since_last_s", "others_1d_distinct", "others_7d_distinct", "categories_1d_distinct", "age_s",
    "amount_ratio", "amount_z", "amount_14d_max_ratio", "outliers_3d_count", "outliers_14d_count", "outliers_14d_share",
    "since_outlier_s", "frauds_14d_count", "frauds_known_30d_count",
    "since_fraud_known_s", "pair_count", "pair_age_s", "hour_share", "weekend_share", "category_count",
    "category_amount_ratio", "distance_km", "speed_kmh",
)  # fmt: skip
TERMINAL_COLUMNS: Final = (
    "payments_1h_count", "payments_1d_count", "payments_30d_count", "amount_ratio", "age_s", "others_1d_distinct",
    "fraud_run_count", "fraud_run_age_s", "frauds_28d_count", "frauds_ordinary_28d_count", "frauds_last_5_count",
    "fraud_28d_share", "frauds_known_30d_count", "since_fraud_known_s", "payer_outliers_7d_count", "frauds_7d_count",
    "since_fraud_s",
)  # fmt: skip

ENTITY_INDEX: Final = {feature.name: i for i, feature in enumerate(ENTITY_FEATURES)}
PAYMENT_INDEX: Final = {feature.name: i for i, feature in enumerate(PAYMENT_FEATURES)}

_MODEL_AT: Final = np.array(
    [ENTITY_INDEX[name] for name in ACCOUNT_COLUMNS]
    + [len(ENTITY_FEATURES) + ENTITY_INDEX[name] for name in TERMINAL_COLUMNS]
    + [2 * len(ENTITY_FEATURES) + i for i in range(len(PAYMENT_FEATURES))],
    np.int64,
)


def _selected(names: Sequence[str], entity: Literal["account", "terminal"]) -> list[Feature]:
    found = [ENTITY_FEATURES[ENTITY_INDEX[n]]._replace(name=f"{entity}_{n}", entity=entity) for n in names]
    unless = "; NaN while the store covers less than 30 d"
    return [f._replace(formula=f.formula + unless) if f.name == f"{entity}_age_s" else f for f in found]


MODEL_FEATURES: Final[tuple[Feature, ...]] = (
    *_selected(ACCOUNT_COLUMNS, "account"),
    *_selected(TERMINAL_COLUMNS, "terminal"),
    *PAYMENT_FEATURES,
)
"""What the model sees, in this order; the columns of `model_rows`."""

_COVERAGE_AT: Final = ENTITY_INDEX["coverage_30d_share"]
_AGES_AT: Final = np.array(
    [
        (_COVERAGE_AT, ACCOUNT_COLUMNS.index("age_s")),
        (len(ENTITY_FEATURES) + _COVERAGE_AT, len(ACCOUNT_COLUMNS) + TERMINAL_COLUMNS.index("age_s")),
    ],
    np.int64,
)

MODEL_NAMES: Final = tuple(feature.name for feature in MODEL_FEATURES)
assert len(set(MODEL_NAMES)) == len(MODEL_NAMES) <= 68, "names are unique, and a pending row stays small"

FEATURES_VERSION: Final = hashlib.blake2b(
    repr((kernel.VERSION, ENTITY_FEATURES, MODEL_FEATURES)).encode(), digest_size=8
).hexdigest()
"""Changes with any word of the tables: a change of meaning must change a formula."""

_MINUTE_MS: Final = 60_000
_WEEK_MIN: Final = 10_080
_EPOCH_WEEKDAY_MIN: Final = 3 * 1440  # 1970-01-01 was a Thursday
COMBINATIONS_MAX: Final = 65_536
PLAIN_ROWS: Final = 10  # of fewer payments than this, plain Python is faster than numpy's calls
NAN: Final = float("nan")

CODES_WIDTH: Final = len(PAYMENT_FEATURES) - 3
_HEAD: Final = struct.Struct("=3f")
_EXACT: Final = 2**53  # a greater amount would be rounded twice on its way to float32

_coded = attrgetter(
    "merchant_country", "issuer_country", "currency", "billing_currency", "mcc", *CODED_FIELDS
)  # all that is looked up, in one call


def minute_of_week(event_ms: NDArray[np.int64], utc_offset_min: NDArray[np.int64]) -> NDArray[np.int32]:
    """Minute of the local week, 0 = Monday 00:00.

    >>> minute_of_week(np.array([0]), np.array([60]))  # Thursday, one in the morning
    array([4380], dtype=int32)
    """
    local = event_ms // _MINUTE_MS + utc_offset_min + _EPOCH_WEEKDAY_MIN
    return (local % _WEEK_MIN).astype(np.int32)


def _differ(a: str | None, b: str | None) -> float:
    return float("nan") if a is None or b is None else float(a != b)


# Payments share few combinations of codes: each is looked up once, and kept as the bytes of its columns.
_codes_seen: dict[tuple[str | None, ...], bytes] = {}


def _codes_of(combination: tuple[str | None, ...]) -> bytes:
    row = _codes_seen.get(combination)
    if row is None:
        merchant_country, issuer_country, currency, billing_currency, mcc, *coded = combination
        codes = [_differ(merchant_country, issuer_country), _differ(currency, billing_currency)]
        for field, value in zip(CODED_FIELDS, coded, strict=True):
            codes.append(float("nan") if value is None else CODES[field].get(value, float("nan")))
        codes.append(float(mcc) if mcc is not None and mcc.isascii() and mcc.isdigit() else float("nan"))
        row = np.array(codes, np.float32).tobytes()
        if len(_codes_seen) >= COMBINATIONS_MAX:
            _codes_seen.clear()
        _codes_seen[combination] = row
    return row


def codes_of(payment: Payment) -> bytes:
    """The last CODES_WIDTH of its PAYMENT_FEATURES, float32: those that are codes."""
    return _codes_of(_coded(payment))


def payment_features(
    payments: Sequence[Payment],
    amounts: NDArray[np.int64] | None = None,
    minutes: NDArray[np.int32] | None = None,
) -> NDArray[np.float32]:
    """(n, len(PAYMENT_FEATURES)).

    `amounts`: base currency, minor units, -1 absent; None: as in the payments. `minutes`: of the local week; None:
    computed here, by `local_minutes`.
    """
    n = len(payments)
    if amounts is None:
        amounts = np.fromiter(map(_amount, payments), np.int64, n)
    if minutes is None:
        minutes = local_minutes(payments)
    if 0 < n < PLAIN_ROWS and max(known := amounts.tolist()) < _EXACT:
        rows = [
            _HEAD.pack(NAN if amount < 0 else amount, minute % 1440 / 60.0, minute >= 5 * 1440) + _codes_of(combination)
            for amount, minute, combination in zip(known, minutes.tolist(), map(_coded, payments), strict=True)
        ]
        return np.frombuffer(b"".join(rows), np.float32).reshape(n, -1)
    out = np.empty((n, len(PAYMENT_FEATURES)), np.float32)
    out[:, 0] = amounts
    out[amounts < 0, 0] = np.nan
    out[:, 1] = minutes % 1440 / 60.0
    out[:, 2] = minutes >= 5 * 1440
    combinations = list(map(_coded, payments))
    try:
        codes = b"".join(map(_codes_seen.__getitem__, combinations))
    except KeyError:
        codes = b"".join(map(_codes_of, combinations))
    out[:, 3:] = np.frombuffer(codes, np.float32).reshape(n, -1) if n else np.nan
    return out


_amount = attrgetter("amount")
_event_time = attrgetter("event_time")
_utc_offset_min = attrgetter("utc_offset_min")
_when = attrgetter("event_time", "utc_offset_min")


def local_minutes(payments: Sequence[Payment]) -> NDArray[np.int32]:
    """Minute of the local week of each payment; UTC if its offset is absent."""
    n = len(payments)
    if n < PLAIN_ROWS:
        minutes = [
            (event_ms // _MINUTE_MS + (offset or 0) + _EPOCH_WEEKDAY_MIN) % _WEEK_MIN
            for event_ms, offset in map(_when, payments)
        ]
        return np.array(minutes, np.int32)
    offsets = np.fromiter((offset or 0 for offset in map(_utc_offset_min, payments)), np.int64, n)
    return minute_of_week(np.fromiter(map(_event_time, payments), np.int64, n), offsets)


def whole_rows(
    account: NDArray[np.float32], terminal: NDArray[np.float32], payment: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(n, all that is known of a payment): its account's `ENTITY_FEATURES`, its terminal's, `PAYMENT_FEATURES`.

    A payment without a terminal has a row of NaN there.
    """
    return np.concatenate((account, terminal, payment), axis=1)


def model_rows(whole: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, len(MODEL_FEATURES)) of `whole_rows`."""
    rows = np.empty((len(whole), len(_MODEL_AT)), np.float32)
    _select(whole, _MODEL_AT, _AGES_AT, rows)
    return rows


@compiled
def _select(
    whole: NDArray[np.float32], at: NDArray[np.int64], ages_at: NDArray[np.int64], rows: NDArray[np.float32]
) -> None:
    for i in range(len(whole)):
        for j in range(len(at)):
            rows[i, j] = whole[i, at[j]]
        # While the store is young, what it knows of an age is its own: a model would learn the calendar from it, and
        # be lost on the day on which all ages are 30 d.
        for k in range(len(ages_at)):
            if whole[i, ages_at[k, 0]] < 1.0:
                rows[i, ages_at[k, 1]] = np.nan
