"""Legitimate payments: each account by its own clock, places, trade and amounts."""

from typing import Final

import numpy as np

from stream.simulate.population import (
    ANYWHERE,
    CATEGORY_CHANNEL,
    CATEGORY_LOG_MEDIAN,
    CATEGORY_SIGMA,
    CITY_OFFSET_MIN,
    PAYEES,
    TRIP_BLOCK_DAYS,
    Accounts,
    Bools,
    Floats,
    Ints,
    Terminals,
    choose,
)
from stream.simulate.rows import Rows, cents_of
from stream.simulate.settings import DAY_MS, SimulationSettings
from stream.simulate.world import CATEGORY_INDEX, Channel, Entry, Kind, ThreeDs

HOUR_MS: Final = 3_600_000
MINUTE_MS: Final = 60_000
DEVICES: Final = 4  # numbers set aside per account: usual, second, and two that he once borrowed
EPOCH_WEEKDAY: Final = 3  # 1970-01-01 was a Thursday; Monday is 0


def _local_times(accounts: Accounts, account: Ints, settings: SimulationSettings, rng: np.random.Generator) -> Ints:
    """Local epoch ms by the account's weekdays and hours; some lie after the last day."""
    count = len(account)
    first_weekday = (settings.start_ms // DAY_MS + EPOCH_WEEKDAY) % 7
    weeks = -(-settings.days // 7)
    weekday = choose(accounts.weekdays[account], rng.random(count))
    day = rng.integers(0, weeks, count) * 7 + (weekday - first_weekday) % 7
    evening = (rng.random(count) < 0.5).astype(np.int64)
    hour = accounts.peak_h[account, evening] + rng.normal(0.0, 1.6, count)
    any_hour = rng.random(count) < accounts.night[account]
    hour = np.where(any_hour, rng.uniform(0.0, 24.0, count), hour) % 24.0
    return settings.start_ms + day * DAY_MS + (hour * HOUR_MS).astype(np.int64)


def whereabouts(accounts: Accounts, account: Ints, day: Ints) -> tuple[Ints, Bools]:
    """City of each account on each day of the simulation, and whether it travels."""
    block = np.clip(day // TRIP_BLOCK_DAYS, 0, accounts.trip_city.shape[1] - 1)
    target = accounts.trip_city[account, block]
    since = day - accounts.trip_start_day[account, block]
    away = (target >= 0) & (since >= 0) & (since < accounts.trip_days[account, block])
    return np.where(away, target, accounts.city[account]), away


def amounts_eur(category: Ints, scale: Floats, rng: np.random.Generator) -> Floats:
    """Log-normal by category and by the account's or merchant's scale; cash comes in tens."""
    eur = np.exp(CATEGORY_LOG_MEDIAN[category] + CATEGORY_SIGMA[category] * rng.normal(size=len(category))) * scale
    cash = category == CATEGORY_INDEX["cash"]
    transfer = category == CATEGORY_INDEX["transfer"]
    eur = np.where(cash, np.maximum(10.0, np.rint(eur / 10.0) * 10.0), eur)
    return np.where(transfer & (rng.random(len(eur)) < 0.6), np.maximum(5.0, np.rint(eur / 5.0) * 5.0), eur)


def entries(category: Ints, cents: Ints, rng: np.random.Generator) -> Ints:
    """How the card was read: contactless for small amounts, chip for larger ones, at times a stripe."""
    uniform = rng.random(len(category))
    touch = np.where(cents < 5_000, 0.8, 0.25)
    worn = np.where(uniform > 0.996, Entry.FALLBACK, Entry.MAGSTRIPE)
    shop = np.where(uniform < touch, Entry.CONTACTLESS, np.where(uniform > 0.99, worn, Entry.CHIP))
    stored = uniform < np.where(category == CATEGORY_INDEX["subscription"], 0.95, 0.45)
    online = np.where(stored, Entry.STORED, Entry.KEYED)
    channel = CATEGORY_CHANNEL[category]
    cash = np.where(uniform > 0.99, worn, Entry.CHIP)
    return np.select(
        [channel == Channel.POS, channel == Channel.ECOM, channel == Channel.ATM], [shop, online, cash], Entry.NONE
    ).astype(np.int64)


def authentications(category: Ints, strict: Floats, rng: np.random.Generator) -> Ints:
    """Outcome of 3-D Secure for what sells on-line, by how strict the merchant is."""
    count = len(category)
    how = np.array([ThreeDs.FRICTIONLESS, ThreeDs.CHALLENGED, ThreeDs.ATTEMPTED, ThreeDs.FAILED])
    drawn = how[np.searchsorted(np.array([0.70, 0.92, 0.985]), rng.random(count), side="right")]
    asked = np.where(rng.random(count) < strict, drawn, ThreeDs.NO)
    return np.where(CATEGORY_CHANNEL[category] == Channel.ECOM, asked, ThreeDs.ABSENT).astype(np.int64)


def security_codes(category: Ints, wrong: float, rng: np.random.Generator) -> Ints:
    """Result of the CVV check: 1 match, 2 no match, -1 not asked. `wrong`: share of mistakes."""
    uniform = rng.random(len(category))
    checked = np.where(uniform < wrong, 2, np.where(uniform < 0.85, 1, -1))
    return np.where(CATEGORY_CHANNEL[category] == Channel.ECOM, checked, -1).astype(np.int64)


def home_ip(account: Ints) -> Ints:
    """Number of the account's address at home. A fixed mix of bits: it needs no table."""
    return (account * 2_654_435_761 + 97) % (1 << 24)


def legitimate(
    settings: SimulationSettings, accounts: Accounts, terminals: Terminals, count: int, rng: np.random.Generator
) -> Rows:
    """`count` legitimate payments, in no order of time."""
    # Days are drawn in whole weeks and hours in local time, so some fall outside, and are drawn in excess.
    weeks_days = -(-settings.days // 7) * 7
    excess = int(count * weeks_days / settings.days * 1.06) + 64
    drawn = rng.choice(settings.accounts, size=excess, p=accounts.activity)
    local = _local_times(accounts, drawn, settings, rng)
    where, away = whereabouts(accounts, drawn, (local - settings.start_ms) // DAY_MS)
    at_ms = local - CITY_OFFSET_MIN[where] * MINUTE_MS
    inside = np.flatnonzero((at_ms >= settings.start_ms) & (at_ms < settings.start_ms + settings.days * DAY_MS))[:count]
    at_ms, account, city, away = at_ms[inside], drawn[inside], where[inside], away[inside]
    kept = len(inside)

    explored = choose(accounts.categories[account], rng.random(kept))
    online = CATEGORY_CHANNEL[explored] == Channel.ECOM
    transfer = CATEGORY_CHANNEL[explored] == Channel.TRANSFER
    strange = terminals.pick(np.where(transfer, 0, explored), np.where(online, ANYWHERE, city), rng.random(kept))
    # The first favourites are visited most. Nobody goes to his baker while he is abroad.
    rank = np.minimum(rng.geometric(0.25, kept) - 1, accounts.favourites.shape[1] - 1)
    favourite = accounts.favourites[account, rank]
    reachable = ~away | (CATEGORY_CHANNEL[terminals.category[favourite]] == Channel.ECOM)
    loyal = ~transfer & reachable & (rng.random(kept) < accounts.loyalty[account])
    terminal = np.where(transfer, -1, np.where(loyal, favourite, strange))
    category = np.where(transfer, explored, terminals.category[terminal])

    channel = CATEGORY_CHANNEL[category]
    online = channel == Channel.ECOM
    factor = np.where(transfer, 1.0, terminals.factor[terminal])
    cents = cents_of(amounts_eur(category, accounts.scale[account] * factor, rng))
    # One on-line payment in 80 only verifies the card.
    cents = np.where(online & (rng.random(kept) < 1 / 80), 0, cents)

    remote = online | transfer
    which = np.searchsorted(np.array([0.90, 0.985, 0.995]), rng.random(kept), side="right")
    roaming = away | (rng.random(kept) < 0.25)
    ip = np.where(roaming, (1 << 24) + city * 65_536 + rng.integers(0, 4_096, kept), home_ip(account))
    known = accounts.payees[account, np.minimum(rng.geometric(0.5, kept) - 1, PAYEES - 1)]
    payee = np.where(rng.random(kept) < 0.12, rng.integers(0, max(8, settings.accounts), kept), known)
    return Rows(
        at_ms=at_ms,
        account=account,
        terminal=terminal,
        category=category,
        city=city,
        cents=cents,
        entry=entries(category, cents, rng),
        three_ds=authentications(category, np.where(transfer, 0.0, terminals.strict[terminal]), rng),
        device=np.where(remote, account * DEVICES + which, -1),
        ip=np.where(remote, ip, -1),
        counterparty=np.where(transfer, payee, -1),
        cvv=security_codes(category, 0.01, rng),
        kind=np.full(kept, Kind.LEGITIMATE, np.int64),
        episode=np.full(kept, -1, np.int64),
    )
