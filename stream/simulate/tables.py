"""Columns of numbers into Arrow tables with the names, codes and texts of the contracts."""

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute

from stream.simulate.outcomes import (
    CHARGEBACK,
    DECLINERS,
    DISPUTE,
    LABEL_KINDS,
    REASONS,
    REVERSED,
    SOURCES,
    UPDATE_KINDS,
    Labels,
    Updates,
)
from stream.simulate.population import CATEGORY_CHANNEL, CITY_OFFSET_MIN, Accounts, Bools, Floats, Ints, Terminals
from stream.simulate.rows import Rows
from stream.simulate.settings import SimulationSettings
from stream.simulate.world import (
    CATEGORIES,
    CHANNEL_NAMES,
    CITIES,
    ENTRY_NAMES,
    EURO,
    FRAUDS,
    MONEY_OF,
    THREE_DS_NAMES,
    Channel,
    Kind,
)

# pyarrow ships no types, and registers its compute functions at run time.
Array: TypeAlias = Any
Table: TypeAlias = Any
pc: Any = pyarrow.compute

SCHEMES: Final = ("visa", "mastercard")
RESULTS: Final = ("evidence", "liability")
CVV: Final = (None, "match", "no_match")
FRAUD_TYPES: Final = (None, *(FRAUDS[kind].fraud_type for kind in Kind if kind is not Kind.LEGITIMATE))
_MONEY: Final = [MONEY_OF.get(city.country, EURO) for city in CITIES]


def _named(names: Sequence[str | None], code: Ints) -> Array:
    """The name of each code; null for a code of -1 and for a name of None."""
    return pa.array(names, pa.string()).take(pa.array(code, mask=code < 0))


def _ids(prefix: str, number: Ints, digits: int) -> Array:
    """`prefix` and the number, padded with zeros; null for a number of -1."""
    text = pc.utf8_lpad(pa.array(number, mask=number < 0).cast(pa.string()), digits, "0")
    return pc.binary_join_element_wise(prefix, text, "")


def _by_number(prefix: str, number: Ints, digits: int) -> Array:
    """As `_ids`, for numbers that repeat: each text is made once."""
    unique, inverse = np.unique(number, return_inverse=True)
    return _ids(prefix, unique, digits).take(pa.array(inverse))


def _addresses(ip: Ints) -> Array:
    """Dotted IPv4 addresses in 10.0.0.0/7; null for -1."""
    unique, inverse = np.unique(ip, return_inverse=True)
    texts = [
        None if number < 0 else f"{10 + (number >> 24)}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        for number in unique.tolist()
    ]
    return pa.array(texts, pa.string()).take(pa.array(inverse))


def _present(values: Ints | Floats, where: Bools) -> Array:
    return pa.array(values, mask=~where)


def payment_ids(settings: SimulationSettings, count: int) -> Array:
    """Ids that differ between seeds: `s1-00000000`."""
    return _ids(f"s{settings.seed}-", np.arange(count), 8)


def payments_table(
    settings: SimulationSettings, rows: Rows, accounts: Accounts, terminals: Terminals, ids: Array
) -> Table:
    """The payments, in order of `event_time`."""
    channel = CATEGORY_CHANNEL[rows.category]
    at_shop = rows.terminal >= 0
    terminal = np.maximum(rows.terminal, 0)
    seat = terminals.city[terminal]
    foreign = at_shop & np.array([money is not EURO for money in _MONEY])[seat]
    rate = np.array([money.minor_per_eur_cent for money in _MONEY])[seat]
    amount = np.where(foreign, np.rint(rows.cents * rate).astype(np.int64), rows.cents)
    money = np.where(foreign, seat, 0)  # city 0 pays in euro
    standing = at_shop & (channel != Channel.ECOM)
    countries = [city.country for city in CITIES]
    columns: dict[str, Array] = {
        "payment_id": ids,
        "event_time": pa.array(rows.at_ms),
        "account_id": _by_number("a", rows.account, 6),
        "terminal_id": _by_number("t", rows.terminal, 5),
        "amount": pa.array(amount),
        "currency": _named([each.currency for each in _MONEY], money),
        "operation": _named(("authorisation", "verification"), (rows.cents == 0).astype(np.int64)),
        "customer_id": _by_number("c", rows.account, 6),
        "merchant_id": _by_number("m", np.where(at_shop, terminals.merchant[terminal], -1), 5),
        "mcc": _named([category.mcc for category in CATEGORIES], np.where(at_shop, rows.category, -1)),
        "merchant_country": _named(countries, np.where(at_shop, seat, -1)),
        "issuer_country": _named(countries, accounts.city[rows.account]),
        "channel": _named(CHANNEL_NAMES, channel),
        "scheme": _named(SCHEMES, np.where(channel == Channel.TRANSFER, -1, accounts.scheme[rows.account])),
        "entry_mode": _named(ENTRY_NAMES, rows.entry),
        "funding": _named(("debit", "account"), (channel == Channel.TRANSFER).astype(np.int64)),
        "billing_amount": _present(rows.cents, foreign),
        "billing_currency": _named((EURO.currency,), np.where(foreign, 0, -1)),
        "three_ds": _named(THREE_DS_NAMES, rows.three_ds),
        "cvv": _named(CVV, rows.cvv),
        "counterparty_id": _by_number("p", rows.counterparty, 6),
        "device_id": _by_number("d", rows.device, 7),
        "ip": _addresses(rows.ip),
        # Six digits are a tenth of a metre, and shorter JSON.
        "latitude": _present(np.round(np.nan_to_num(terminals.latitude[terminal]), 6), standing),
        "longitude": _present(np.round(np.nan_to_num(terminals.longitude[terminal]), 6), standing),
        "utc_offset_min": pa.array(CITY_OFFSET_MIN[rows.city]),
    }
    return pa.table(columns)


def labels_table(rows: Rows, labels: Labels, ids: Array) -> Table:
    """The labels, in order of `observed_at`."""
    row = pa.array(labels.row)
    disputed = np.isin(labels.kind, (CHARGEBACK, DISPUTE, REVERSED))
    reversed_ = labels.kind == REVERSED
    first_party = rows.kind[labels.row] == Kind.FIRST_PARTY
    fraud_type = np.where(labels.kind == DISPUTE, 0, rows.kind[labels.row])
    return pa.table(
        {
            "payment_id": ids.take(row),
            "account_id": _by_number("a", rows.account[labels.row], 6),
            "observed_at": pa.array(labels.at_ms),
            "kind": _named(LABEL_KINDS, labels.kind),
            "reason_code": _named(REASONS, labels.reason),
            # A payment is disputed once at most, so its row names the dispute.
            "dispute_id": _ids("dp", np.where(disputed, labels.row, -1), 8),
            "stage": _named(("first", "representment"), np.where(reversed_, 1, np.where(disputed, 0, -1))),
            # A merchant can show that a customer who lies took part; else only the loss moves.
            "result": _named(RESULTS, np.where(~reversed_, -1, np.where(first_party, 0, 1))),
            "fraud_type": _named(FRAUD_TYPES, np.where(labels.kind < 3, fraud_type, 0)),
            "source": _named(SOURCES, labels.source),
        }
    )


def updates_table(rows: Rows, updates: Updates, ids: Array) -> Table:
    """The updates, in order of `observed_at`."""
    return pa.table(
        {
            "payment_id": ids.take(pa.array(updates.row)),
            "account_id": _by_number("a", rows.account[updates.row], 6),
            "observed_at": pa.array(updates.at_ms),
            "kind": _named(UPDATE_KINDS, updates.kind),
            "declined_by": _named(DECLINERS, updates.declined_by),
        }
    )


def truth_table(rows: Rows, ids: Array) -> Table:
    """What each fraudulent payment really is. For reports and oracles; never a feature, never sent."""
    fraud = np.flatnonzero(rows.kind != Kind.LEGITIMATE)
    return pa.table(
        {
            "payment_id": ids.take(pa.array(fraud)),
            "event_time": pa.array(rows.at_ms[fraud]),
            "kind": _named([kind.name.lower() for kind in Kind], rows.kind[fraud]),
            "episode": pa.array(rows.episode[fraud]),
        }
    )
