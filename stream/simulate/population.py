"""Accounts and points of acceptance, with the habits that make a payment ordinary or strange."""

from typing import Any, Final, TypeAlias

import msgspec
import numpy as np

from stream.simulate.settings import SimulationSettings
from stream.simulate.world import CATEGORIES, CITIES, Channel

Ints: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Bools: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]

FAVOURITES: Final = 10
PAYEES: Final = 4
TRIP_BLOCK_DAYS: Final = 30
ANYWHERE: Final = len(CITIES)  # the "city" of what sells on-line


class Accounts(msgspec.Struct, frozen=True):
    """One entry per account. `payees` are counterparty numbers, `favourites` terminal numbers."""

    activity: Floats  # relative number of payments; sums to 1
    city: Ints
    latitude: Floats
    longitude: Floats
    scale: Floats  # factor on all amounts
    weekdays: Floats  # (accounts, 7), Monday first; cumulative, ends at 1
    peak_h: Floats  # (accounts, 2): local hours
    night: Floats  # share of payments at any hour
    categories: Floats  # (accounts, categories); cumulative, ends at 1
    favourites: Ints  # (accounts, FAVOURITES)
    loyalty: Floats  # share of payments at a favourite
    payees: Ints  # (accounts, PAYEES)
    scheme: Ints  # 0 visa, 1 mastercard
    denier: Bools  # disputes what he bought, again and again
    trip_city: Ints  # (accounts, blocks); -1 at home
    trip_start_day: Ints  # (accounts, blocks)
    trip_days: Ints  # (accounts, blocks)


class Terminals(msgspec.Struct, frozen=True):
    """One entry per point of acceptance. `latitude` and `longitude` are NaN for what sells on-line."""

    category: Ints
    city: Ints  # of the merchant's seat for what sells on-line
    latitude: Floats
    longitude: Floats
    merchant: Ints
    factor: Floats  # on the category's amounts
    strict: Floats  # share of payments that it sends through 3-D Secure
    by_group: Ints  # terminals sorted by (category, city)
    cumulative: Floats  # popularity, summed in that order
    group_start: Ints  # (categories * (cities + 1) + 1): where each group begins in that order

    def pick(self, category: Ints, city: Ints, uniform: Floats) -> Ints:
        """A terminal of that category in that city by popularity; if there is none, of another city or trade."""
        width = ANYWHERE + 1
        group = category * width + city
        start, stop = self.group_start[group], self.group_start[group + 1]
        none = start == stop
        start = np.where(none, self.group_start[category * width], start)
        stop = np.where(none, self.group_start[(category + 1) * width], stop)
        none = start == stop
        start = np.where(none, 0, start)
        stop = np.where(none, len(self.by_group), stop)
        low, high = self.cumulative[start], self.cumulative[stop]
        at = np.searchsorted(self.cumulative, low + uniform * (high - low), side="right") - 1
        return self.by_group[np.clip(at, start, np.maximum(stop - 1, start))]


def choose(cumulative: Floats, uniform: Floats) -> Ints:
    """Index by row of cumulative weights (rows, n) that end at 1, for one uniform number a row.

    >>> choose(np.array([[0.5, 1.0], [0.1, 1.0]]), np.array([0.4, 0.4]))
    array([0, 1])
    """
    return np.minimum((uniform[:, None] >= cumulative).sum(axis=1), cumulative.shape[1] - 1)


def _cumulative(weights: Floats) -> Floats:
    summed = np.cumsum(weights, axis=1)
    return summed / summed[:, -1:]


CATEGORY_WEIGHT: Final = np.array([category.weight for category in CATEGORIES])
CATEGORY_CHANNEL: Final = np.array([category.channel for category in CATEGORIES], np.int64)
CATEGORY_LOG_MEDIAN: Final = np.log(np.array([category.median_eur for category in CATEGORIES]))
CATEGORY_SIGMA: Final = np.array([category.sigma for category in CATEGORIES])
CITY_WEIGHT: Final = np.array([city.weight for city in CITIES])
CITY_LATITUDE: Final = np.array([city.latitude for city in CITIES])
CITY_LONGITUDE: Final = np.array([city.longitude for city in CITIES])
CITY_OFFSET_MIN: Final = np.array([city.utc_offset_min for city in CITIES], np.int64)
SHOPS: Final = np.flatnonzero(CATEGORY_CHANNEL != Channel.TRANSFER)  # categories that have terminals


def make_terminals(settings: SimulationSettings, rng: np.random.Generator) -> Terminals:
    """`settings.terminals` points of acceptance; the first ones give every category one, if there are enough."""
    count = settings.terminals
    weight = CATEGORY_WEIGHT[SHOPS] ** 0.6
    drawn = rng.choice(SHOPS, size=count, p=weight / weight.sum())
    category = np.where(np.arange(count) < len(SHOPS), SHOPS[np.arange(count) % len(SHOPS)], drawn)
    # Places where people only travel to have shops, too.
    share = CITY_WEIGHT + 2.0
    city = rng.choice(len(CITIES), size=count, p=share / share.sum())
    online = CATEGORY_CHANNEL[category] == Channel.ECOM
    latitude = np.where(online, np.nan, CITY_LATITUDE[city] + rng.normal(0.0, 0.06, count))
    longitude = np.where(online, np.nan, CITY_LONGITUDE[city] + rng.normal(0.0, 0.09, count))
    popularity = rng.lognormal(0.0, 1.0, count)
    group = category * (ANYWHERE + 1) + np.where(online, ANYWHERE, city)
    order = np.argsort(group, kind="stable")
    groups = len(CATEGORIES) * (ANYWHERE + 1)
    return Terminals(
        category=category,
        city=city,
        latitude=latitude,
        longitude=longitude,
        merchant=rng.integers(0, max(1, count * 2 // 3), count),
        factor=rng.lognormal(0.0, 0.25, count),
        strict=rng.beta(6.0, 1.5, count),
        by_group=order,
        cumulative=np.concatenate([[0.0], np.cumsum(popularity[order])]),
        group_start=np.searchsorted(group[order], np.arange(groups + 1)),
    )


def make_accounts(settings: SimulationSettings, terminals: Terminals, rng: np.random.Generator) -> Accounts:
    """`settings.accounts` accounts, each with habits of its own."""
    count = settings.accounts
    activity = rng.lognormal(0.0, 0.8, count)
    city = rng.choice(len(CITIES), size=count, p=CITY_WEIGHT / CITY_WEIGHT.sum())
    weekend = rng.lognormal(0.0, 0.5, count)
    weekdays = np.ones((count, 7)) * rng.lognormal(0.0, 0.2, (count, 7))
    weekdays[:, 5:] *= weekend[:, None]
    mix = CATEGORY_WEIGHT * rng.gamma(1.2, 1.0, (count, len(CATEGORIES)))
    categories = _cumulative(mix)
    favourite_category = choose(np.repeat(categories, FAVOURITES, axis=0), rng.random(count * FAVOURITES))
    online = CATEGORY_CHANNEL[favourite_category] == Channel.ECOM
    where = np.where(online, ANYWHERE, np.repeat(city, FAVOURITES))
    shops = CATEGORY_CHANNEL[favourite_category] != Channel.TRANSFER
    favourites = terminals.pick(np.where(shops, favourite_category, 0), where, rng.random(count * FAVOURITES)).reshape(
        count, FAVOURITES
    )
    blocks = -(-settings.days // TRIP_BLOCK_DAYS)
    abroad = rng.integers(0, len(CITIES), (count, blocks))
    travels = rng.random((count, blocks)) < rng.beta(1.0, 6.0, count)[:, None]
    return Accounts(
        activity=activity / activity.sum(),
        city=city,
        latitude=CITY_LATITUDE[city] + rng.normal(0.0, 0.12, count),
        longitude=CITY_LONGITUDE[city] + rng.normal(0.0, 0.18, count),
        scale=rng.lognormal(0.0, 0.45, count),
        weekdays=_cumulative(weekdays),
        peak_h=np.stack([rng.normal(12.5, 2.5, count), rng.normal(18.5, 2.0, count)], axis=1),
        night=rng.beta(1.5, 9.0, count),
        categories=categories,
        favourites=favourites,
        loyalty=rng.beta(5.0, 3.0, count),
        payees=rng.integers(0, max(8, count), (count, PAYEES)),
        scheme=(rng.random(count) < 0.4).astype(np.int64),
        denier=rng.random(count) < 0.02,
        trip_city=np.where(travels, abroad, -1),
        trip_start_day=np.arange(blocks)[None, :] * TRIP_BLOCK_DAYS + rng.integers(0, 20, (count, blocks)),
        trip_days=rng.integers(2, 11, (count, blocks)),
    )
