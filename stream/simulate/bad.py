"""Spoils a stream of payments on purpose: records that must be refused, each by a known cause, and repeats."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import msgspec
import numpy as np

from stream.dataset import Event
from topics.payment import SCHEMA_VERSION
from topics.refusals import Cause

DAY_MS: Final = 86_400_000
FAR_FUTURE_MS: Final = 4_102_444_800_000  # 2100-01-01
TOO_OLD_DAYS: Final = 400
TOO_LARGE_BYTES: Final = 70_000  # above the limit of a record, below what a broker takes
NESTING: Final = 40
# Test numbers that card brands publish; they belong to nobody.
TEST_CARDS: Final = ("4111111111111111", "5555555555554444", "378282246310005", "6011 1111 1111 1117")

_Fields = dict[str, Any]


class Injected(msgspec.Struct, frozen=True, gc=False):
    """A record of the spoilt stream. `cause`: why it must be refused, None if it must not. `repeat`: sent before."""

    event: Event
    cause: Cause | None = None
    repeat: bool = False


def _with(**changes: Any) -> Callable[[_Fields], bytes]:
    """The payment with other fields."""
    return lambda fields: msgspec.json.encode({**fields, **changes})


def _nested(fields: _Fields) -> bytes:
    return msgspec.json.encode(fields)[:-1] + b',"deep":' + b"[" * NESTING + b"]" * NESTING + b"}"


def _card(fields: _Fields) -> bytes:
    number = TEST_CARDS[len(fields["payment_id"]) % len(TEST_CARDS)]
    return msgspec.json.encode({**fields, "attributes": {"note": f"card {number}"}})


def _without_currency(fields: _Fields) -> bytes:
    return msgspec.json.encode({name: value for name, value in fields.items() if name != "currency"})


_SPOILERS: Final[dict[Cause, Callable[[_Fields], bytes]]] = {
    Cause.EMPTY_VALUE: lambda _: b"",
    Cause.PAYLOAD_TOO_LARGE: _with(attributes={"padding": "x" * TOO_LARGE_BYTES}),
    Cause.INVALID_UTF8: lambda fields: msgspec.json.encode({**fields, "order_id": "?"}).replace(b'"?"', b'"\xff\xfe"'),
    Cause.NUL_CHARACTER: _with(merchant_id="shop\x00\x00"),
    Cause.NOT_JSON: lambda fields: msgspec.json.encode(fields)[:-1],
    Cause.NESTING_TOO_DEEP: _nested,
    Cause.DUPLICATE_KEY: lambda fields: msgspec.json.encode(fields)[:-1] + b',"amount":1}',
    Cause.CARD_NUMBER: _card,
    Cause.SCHEMA_VERSION_TOO_NEW: _with(schema_version=SCHEMA_VERSION + 98),
    Cause.WRONG_TYPE: _with(amount="12.50"),
    Cause.MISSING_FIELD: _without_currency,
    Cause.AMOUNT_NEGATIVE: _with(amount=-100),
    Cause.AMOUNT_FLOAT: _with(amount=12.5),
    Cause.AMOUNT_TOO_LARGE: _with(amount=10**17),
    Cause.UNKNOWN_CURRENCY: _with(currency="ZZZ"),
    Cause.UNKNOWN_VALUE: _with(channel="pigeon"),
    Cause.OUT_OF_RANGE: _with(latitude=123.0),
    Cause.TEXT_TOO_LONG: _with(merchant_id="m" * 5_000),
    Cause.TEXT_TOO_SHORT: _with(terminal_id=""),
    Cause.TOO_MANY_ATTRIBUTES: _with(attributes={f"a{number}": number for number in range(100)}),
    Cause.FUTURE_TIME: _with(event_time=FAR_FUTURE_MS),
}

# The causes that one record shows by itself, and those that need what was sent before it.
ALONE: Final = tuple(_SPOILERS)
WITH_HISTORY: Final = (Cause.TOO_OLD, Cause.CONTRADICTION)
CAUSES: Final = ALONE + WITH_HISTORY


def spoil(value: bytes, cause: Cause, number: int) -> bytes:
    """A record that must be refused for `cause`, made from a good payment's JSON; `number` makes its id its own.

    Raises KeyError for a cause that no payment can be spoilt with (see `CAUSES`).

    >>> good = b'{"payment_id":"p","event_time":1,"account_id":"a","amount":5,"currency":"EUR"}'
    >>> spoil(good, Cause.AMOUNT_NEGATIVE, 7)
    b'{"payment_id":"bad-0000007","event_time":1,"account_id":"a","amount":-100,"currency":"EUR"}'
    """
    fields: _Fields = msgspec.json.decode(value)
    if cause is Cause.CONTRADICTION:
        return msgspec.json.encode({**fields, "amount": fields["amount"] + 1})
    renamed = {**fields, "payment_id": f"bad-{number:07d}"}
    if cause is Cause.TOO_OLD:
        return msgspec.json.encode({**renamed, "event_time": max(0, fields["event_time"] - TOO_OLD_DAYS * DAY_MS)})
    return _SPOILERS[cause](renamed)


def inject(
    events: Iterable[Event],
    *,
    bad_rate: float,
    repeat_rate: float = 0.0,
    seed: int = 1,
    causes: Iterable[Cause] = CAUSES,
) -> Iterator[Injected]:
    """The events, with a bad record after a share `bad_rate` of the payments, and a repeat after `repeat_rate`.

    Bad records have the key of the payment they follow, so they reach its partition after it, and each cause occurs
    equally often. All original events come through, in order and unchanged.

    `bad_rate`, `repeat_rate`: in [0, 1], per payment. Raises ValueError otherwise.
    """
    if not 0.0 <= bad_rate <= 1.0 or not 0.0 <= repeat_rate <= 1.0:
        raise ValueError("bad_rate and repeat_rate must lie in [0, 1]")
    rng = np.random.Generator(np.random.PCG64(seed))
    turns = list(causes)
    rng.shuffle(turns)
    turn = itertools.cycle(turns)
    number = 0
    uniforms: Iterator[tuple[float, float]] = iter(())
    for event in events:
        yield Injected(event)
        if event.kind != "payment":
            continue
        drawn = next(uniforms, None)
        if drawn is None:
            uniforms = iter(map(tuple, rng.random((4_096, 2)).tolist()))
            drawn = next(uniforms)
        if turns and drawn[0] < bad_rate:
            cause = next(turn)
            number += 1
            yield Injected(msgspec.structs.replace(event, value=spoil(event.value, cause, number)), cause)
        if drawn[1] < repeat_rate:
            yield Injected(event, repeat=True)


def bad_payments(
    values: Iterable[bytes], rate: float, *, repeat_rate: float = 0.0, seed: int = 1, causes: Iterable[Cause] = CAUSES
) -> Iterator[tuple[bytes, Cause | None]]:
    """`inject` for the bare bytes of payments: each record, and the cause for which it must be refused, or None."""
    events = (Event("payment", 0, value, "", "") for value in values)
    for injected in inject(events, bad_rate=rate, repeat_rate=repeat_rate, seed=seed, causes=causes):
        yield injected.event.value, injected.cause
