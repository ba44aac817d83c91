"""Fraudulent payments: episodes of eight kinds, laid over legitimate life.

Every episode starts after a legitimate payment of its victim, so busy accounts are hit more often. Fraudsters have
devices, addresses and mule accounts of their own, which they use for several victims.
"""

from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np

from stream.simulate.habits import (
    DEVICES,
    HOUR_MS,
    MINUTE_MS,
    amounts_eur,
    authentications,
    entries,
    home_ip,
    security_codes,
)
from stream.simulate.population import ANYWHERE, CATEGORY_CHANNEL, Accounts, Ints, Terminals
from stream.simulate.rows import Rows, cents_of, concatenate
from stream.simulate.settings import DAY_MS, SimulationSettings
from stream.simulate.world import CATEGORY_INDEX, CITIES, FRAUDS, Channel, Entry, Kind, ThreeDs

VICTIMS_PER_FRAUDSTER: Final = 3
FORCED_FALLBACK: Final = 0.75
TRIES_MAX: Final = 20_000  # at places to compromise


class _Scene(msgspec.Struct, frozen=True):
    """What every kind of fraud needs to know."""

    settings: SimulationSettings
    accounts: Accounts
    terminals: Terminals
    life: Rows
    rng: np.random.Generator


class _Episodes(msgspec.Struct, frozen=True):
    """One entry per payment: which episode, its how-manieth payment, who, when the episode began, which fraudster."""

    episode: Ints
    step: Ints
    account: Ints
    start_ms: Ints
    fraudster: Ints
    city: Ints  # of the payer as far as the fraud shows it; home unless a kind says otherwise
    last: Ints  # 1 for the last payment of its episode


def _episodes(scene: _Scene, kind: Kind, payments: int) -> _Episodes:
    """Episodes with about `payments` payments in all."""
    rng, mean = scene.rng, FRAUDS[kind].mean_size
    episodes = int(np.rint(payments / mean))
    if payments > 0:
        episodes = max(1, episodes)
    if len(scene.life) == 0:
        episodes = 0
    anchor = rng.integers(0, max(1, len(scene.life)), episodes)
    sizes = 1 + rng.poisson(max(0.0, mean - 1.0), episodes)
    of = np.repeat(np.arange(episodes), sizes)
    first = np.concatenate([[0], np.cumsum(sizes)])[:-1]
    account = scene.life.account[anchor]
    start = scene.life.at_ms[anchor] + (rng.exponential(6.0, episodes) * HOUR_MS).astype(np.int64)
    fraudster = rng.integers(0, max(1, episodes // VICTIMS_PER_FRAUDSTER), episodes)
    step = np.arange(len(of)) - first[of]
    return _Episodes(
        episode=of,
        step=step,
        account=account[of],
        start_ms=start[of],
        fraudster=fraudster[of],
        city=scene.accounts.city[account][of],
        last=(step == sizes[of] - 1).astype(np.int64),
    )


def _walk_ms(episodes: _Episodes, mean_gap_ms: float, rng: np.random.Generator) -> Ints:
    """Times of an episode's payments: gaps are exponential, and add up within the episode."""
    gaps = rng.exponential(mean_gap_ms, len(episodes.step))
    summed = np.cumsum(gaps)
    before = np.where(episodes.step == 0, summed - gaps, -np.inf)
    return episodes.start_ms + (summed - np.maximum.accumulate(before) if len(gaps) else summed).astype(np.int64)


def _per_episode(episodes: _Episodes, draw: Callable[[int], Ints]) -> Ints:
    """One draw for each episode, for all of its payments."""
    count = int(episodes.episode[-1]) + 1 if len(episodes.episode) else 0
    return draw(count)[episodes.episode]


def _anonymous(kind: Kind, episodes: _Episodes, settings: SimulationSettings) -> tuple[Ints, Ints]:
    """Device and address of the fraudster, apart from those of all accounts and of other kinds."""
    number = int(kind) * 1_000_003 + episodes.fraudster
    return settings.accounts * DEVICES + number, (1 << 24) + (number * 40_503) % (len(CITIES) * 65_536)


def _card_present(scene: _Scene, kind: Kind, episodes: _Episodes, at_ms: Ints, category: Ints, cents: Ints) -> Rows:
    """Payments at points of acceptance in the episode's city, by one who holds the card or its copy."""
    rng, count = scene.rng, len(at_ms)
    terminal = scene.terminals.pick(category, episodes.city, rng.random(count))
    actual = scene.terminals.category[terminal]
    entry = entries(actual, cents, rng)
    if kind is Kind.COUNTERFEIT:
        entry = np.where(rng.random(count) < 0.85, Entry.MAGSTRIPE, entry)
    absent = np.full(count, -1, np.int64)
    return Rows(
        at_ms=at_ms,
        account=episodes.account,
        terminal=terminal,
        category=actual,
        city=episodes.city,
        cents=cents,
        entry=entry,
        three_ds=np.full(count, ThreeDs.ABSENT, np.int64),
        device=absent,
        ip=absent,
        counterparty=absent,
        cvv=absent,
        kind=np.full(count, kind, np.int64),
        episode=episodes.episode,
    )


def _draw(rng: np.random.Generator, names: tuple[str, ...], weights: tuple[float, ...], count: int) -> Ints:
    shares = np.array(weights) / sum(weights)
    return np.array([CATEGORY_INDEX[name] for name in names])[rng.choice(len(names), size=count, p=shares)]


def _stolen(scene: _Scene, payments: int) -> Rows:
    """A spree of an hour or two: most far away, others in the victim's own city; larger than usual amounts."""
    rng = scene.rng
    episodes = _episodes(scene, Kind.STOLEN, payments)
    count = len(episodes.step)
    far = _per_episode(episodes, lambda n: (rng.random(n) < 0.65).astype(np.int64))
    elsewhere = _per_episode(episodes, lambda n: rng.integers(0, len(CITIES), n))
    episodes = msgspec.structs.replace(episodes, city=np.where(far == 1, elsewhere, episodes.city))
    names = ("electronics", "jewellery", "clothing", "fuel", "grocery", "cash")
    category = _draw(rng, names, (3.0, 1.0, 3.0, 1.5, 2.0, 1.5), count)
    eur = amounts_eur(category, rng.lognormal(0.9, 0.4, count), rng)
    at_ms = _walk_ms(episodes, 12.0 * MINUTE_MS, rng)
    return _card_present(scene, Kind.STOLEN, episodes, at_ms, category, cents_of(eur))


def _counterfeit(scene: _Scene, payments: int) -> Rows:
    """A copied stripe in another country, over days: cash and goods that can be sold."""
    rng = scene.rng
    episodes = _episodes(scene, Kind.COUNTERFEIT, payments)
    count = len(episodes.step)
    countries = np.array([sorted({city.country for city in CITIES}).index(city.country) for city in CITIES])
    there = _per_episode(episodes, lambda n: rng.integers(0, len(CITIES), n))
    # In one's own country: the next city of the list that is not.
    abroad = np.where(countries[there] == countries[episodes.city], (there + 7) % len(CITIES), there)
    episodes = msgspec.structs.replace(
        episodes,
        city=abroad,
        start_ms=episodes.start_ms
        + _per_episode(episodes, lambda n: (rng.exponential(2.0, n) * DAY_MS).astype(np.int64)),
    )
    category = _draw(rng, ("cash", "electronics", "grocery", "jewellery"), (4.0, 2.0, 2.0, 1.0), count)
    eur = amounts_eur(category, rng.lognormal(0.45, 0.35, count), rng)
    at_ms = _walk_ms(episodes, 6.0 * HOUR_MS, rng)
    return _card_present(scene, Kind.COUNTERFEIT, episodes, at_ms, category, cents_of(eur))


def _remote(
    scene: _Scene,
    kind: Kind,
    episodes: _Episodes,
    at_ms: Ints,
    category: Ints,
    cents: Ints,
    *,
    own_device: bool,
    careless: float,
) -> Rows:
    """On-line payments. `careless`: share at a merchant who does not ask for 3-D Secure."""
    rng, count = scene.rng, len(at_ms)
    terminal = scene.terminals.pick(category, np.full(count, ANYWHERE), rng.random(count))
    actual = scene.terminals.category[terminal]
    device, ip = _anonymous(kind, episodes, scene.settings)
    if own_device:
        device, ip = episodes.account * DEVICES, home_ip(episodes.account)
    three_ds = authentications(actual, scene.terminals.strict[terminal], rng)
    return Rows(
        at_ms=at_ms,
        account=episodes.account,
        terminal=terminal,
        category=actual,
        city=episodes.city,
        cents=cents,
        entry=np.where(CATEGORY_CHANNEL[actual] == Channel.ECOM, Entry.KEYED, Entry.CHIP).astype(np.int64),
        three_ds=np.where((three_ds != ThreeDs.ABSENT) & (rng.random(count) < careless), ThreeDs.NO, three_ds),
        device=device,
        ip=ip,
        counterparty=np.full(count, -1, np.int64),
        cvv=security_codes(actual, 0.01 if own_device else 0.12, rng),
        kind=np.full(count, kind, np.int64),
        episode=episodes.episode,
    )


def _testing(scene: _Scene, payments: int) -> Rows:
    """Tiny amounts within minutes to see whether the card works; hours later one that counts."""
    rng = scene.rng
    episodes = _episodes(scene, Kind.TESTING, payments)
    count = len(episodes.step)
    cashes_in = episodes.last == 1
    category = np.where(
        cashes_in,
        _draw(rng, ("online electronics", "airline", "online shop"), (3.0, 1.0, 2.0), count),
        _draw(rng, ("digital goods", "games", "online shop"), (3.0, 2.0, 1.0), count),
    )
    large = amounts_eur(category, rng.lognormal(0.7, 0.4, count), rng)
    small = rng.uniform(0.0, 2.0, count)
    cents = np.where(cashes_in, cents_of(large), (small * 100).astype(np.int64))
    at_ms = _walk_ms(episodes, 2.0 * MINUTE_MS, rng)
    at_ms = at_ms + np.where(cashes_in, (rng.exponential(5.0, count) * HOUR_MS).astype(np.int64), 0)
    return _remote(scene, Kind.TESTING, episodes, at_ms, category, cents, own_device=False, careless=0.7)


def _first_party(scene: _Scene, payments: int) -> Rows:
    """Ordinary purchases that the customer denies later; some customers do so again and again."""
    rng = scene.rng
    episodes = _episodes(scene, Kind.FIRST_PARTY, payments)
    count = len(episodes.step)
    deniers = np.flatnonzero(scene.accounts.denier)
    if len(deniers):
        again = deniers[rng.integers(0, len(deniers), count)]
        account = np.where(rng.random(count) < 0.8, again, episodes.account)
        episodes = msgspec.structs.replace(episodes, account=account, city=scene.accounts.city[account])
    category = _draw(rng, ("games", "digital goods", "online electronics", "online shop"), (3.0, 2.0, 2.0, 2.0), count)
    scale = scene.accounts.scale[episodes.account] * rng.lognormal(0.5, 0.3, count)
    cents = cents_of(amounts_eur(category, scale, rng))
    return _remote(scene, Kind.FIRST_PARTY, episodes, episodes.start_ms, category, cents, own_device=True, careless=0.0)


def _transfers(scene: _Scene, kind: Kind, payments: int, *, eur: float, sigma: float, gap_ms: float) -> Rows:
    """Transfers to the fraudster's mule accounts: by a taken-over account, by a mule, by a deceived customer."""
    rng = scene.rng
    episodes = _episodes(scene, kind, payments)
    count = len(episodes.step)
    device, ip = _anonymous(kind, episodes, scene.settings)
    if kind is not Kind.TAKEOVER:
        device, ip = episodes.account * DEVICES, home_ip(episodes.account)
    amount = np.exp(np.log(eur) + sigma * rng.normal(size=count)) * np.sqrt(scene.accounts.scale[episodes.account])
    amount = np.where(rng.random(count) < 0.6, np.maximum(50.0, np.rint(amount / 50.0) * 50.0), amount)
    absent = np.full(count, -1, np.int64)
    return Rows(
        at_ms=_walk_ms(episodes, gap_ms, rng),
        account=episodes.account,
        terminal=absent,
        category=np.full(count, CATEGORY_INDEX["transfer"], np.int64),
        city=episodes.city,
        cents=cents_of(amount),
        entry=np.full(count, Entry.NONE, np.int64),
        three_ds=np.full(count, ThreeDs.ABSENT, np.int64),
        device=device,
        ip=ip,
        # Three mule accounts for a fraudster; their numbers lie among those of ordinary payees.
        counterparty=(int(kind) * 7_919 + episodes.fraudster * 3 + rng.integers(0, 3, count))
        % max(8, scene.settings.accounts),
        cvv=absent,
        kind=np.full(count, kind, np.int64),
        episode=episodes.episode,
    )


def _terminal(scene: _Scene, payments: int) -> tuple[Rows, Ints]:
    """Legitimate-looking payments at a few points of acceptance that are bad for three to six weeks.

    Returns them and their places in `scene.life`, where they replace what they were.
    """
    rng, life = scene.rng, scene.life
    shop = CATEGORY_CHANNEL[np.maximum(life.category, 0)] == Channel.POS
    places = np.flatnonzero(shop & (life.terminal >= 0))
    rows: list[Ints] = []
    found = 0
    used: set[int] = set()
    span_ms = scene.settings.days * DAY_MS
    by_terminal = places[np.argsort(life.terminal[places], kind="stable")]
    candidates = np.unique(life.terminal[places])
    sorted_terminals = life.terminal[by_terminal]
    for _ in range(max(0, min(payments * 4, TRIES_MAX))):
        if found >= payments or not len(places):
            break
        bad = int(candidates[rng.integers(0, len(candidates))])
        begin = scene.settings.start_ms + int(rng.random() * span_ms)
        end = begin + int(rng.uniform(21.0, 42.0) * DAY_MS)
        share = rng.uniform(0.6, 0.95)
        if bad in used:
            continue
        low, high = np.searchsorted(sorted_terminals, [bad, bad + 1])
        here = by_terminal[low:high]
        here = here[(life.at_ms[here] >= begin) & (life.at_ms[here] < end)]
        here = here[rng.random(len(here)) < share]
        # A busy place would take all for itself, and thinned out it would not be a bad place.
        if found + len(here) > max(payments, 3) * 1.1 or not len(here):
            continue
        used.add(bad)
        rows.append(here)
        found += len(here)
    index = np.sort(np.concatenate(rows)) if rows else np.empty(0, np.int64)
    bad_rows = life.take(index)
    raised = cents_of(bad_rows.cents * rng.lognormal(0.6, 0.3, len(index)) / 100.0)
    return (
        bad_rows.replace(
            kind=np.full(len(index), Kind.TERMINAL, np.int64),
            episode=np.arange(len(index)),
            cents=raised,
            # Who skims cards makes the chip fail, for many of them.
            entry=np.where(rng.random(len(index)) < FORCED_FALLBACK, Entry.FALLBACK, bad_rows.entry).astype(np.int64),
        ),
        index,
    )


def with_frauds(
    settings: SimulationSettings, accounts: Accounts, terminals: Terminals, life: Rows, rng: np.random.Generator
) -> Rows:
    """All payments, in order of time: `life`, and frauds that make about `settings.fraud_rate` of the whole."""
    scene = _Scene(settings, accounts, terminals, life, rng)
    total = settings.fraud_rate / (1.0 - settings.fraud_rate) * len(life)
    if total < 1.0:
        return concatenate([life])

    def budget(kind: Kind) -> int:
        return int(np.rint(total * FRAUDS[kind].share))

    spoilt, where = _terminal(scene, budget(Kind.TERMINAL))
    parts = [
        spoilt,
        _stolen(scene, budget(Kind.STOLEN)),
        _testing(scene, budget(Kind.TESTING)),
        _counterfeit(scene, budget(Kind.COUNTERFEIT)),
        _first_party(scene, budget(Kind.FIRST_PARTY)),
        _transfers(scene, Kind.TAKEOVER, budget(Kind.TAKEOVER), eur=700.0, sigma=0.7, gap_ms=20.0 * MINUTE_MS),
        _transfers(scene, Kind.MULE, budget(Kind.MULE), eur=450.0, sigma=0.5, gap_ms=3.0 * HOUR_MS),
        _transfers(scene, Kind.APP_SCAM, budget(Kind.APP_SCAM), eur=900.0, sigma=0.8, gap_ms=8.0 * HOUR_MS),
    ]
    offset = 0
    numbered: list[Rows] = []
    for part in parts:
        numbered.append(part.replace(episode=part.episode + offset))
        offset += int(part.episode.max()) + 1 if len(part) else 0
    rest = np.ones(len(life), np.bool_)
    rest[where] = False
    every = concatenate([life.take(np.flatnonzero(rest)), *numbered])
    end_ms = settings.start_ms + settings.days * DAY_MS
    return every.take(np.flatnonzero(every.at_ms < end_ms))
