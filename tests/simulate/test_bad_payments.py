"""Injected records are refused for the cause that was expected, and nothing else changes."""

import collections

import msgspec
import pytest

from stream.dataset import PAYMENT_FIELDS, Event, encode_rows
from stream.simulate import CAUSES, SimulationSettings, bad_payments, inject, simulate, spoil
from stream.simulate.bad import ALONE
from topics.codec import Parsed, parse_payment
from topics.limits import LIMITS_DEFAULT
from topics.refusals import Cause, Refusal


@pytest.fixture(scope="module")
def values() -> list[bytes]:
    world = simulate(SimulationSettings(seed=2, accounts=60, terminals=40, days=10, payments_per_day=200))
    return [value for batch in world.payments.to_batches() for value in encode_rows(batch, PAYMENT_FIELDS)]


@pytest.mark.parametrize("cause", [cause for cause in ALONE if cause is not Cause.FUTURE_TIME])
def test_the_codec_refuses_each_for_its_cause(cause: Cause, values: list[bytes]):
    for number in range(8):
        refusal = parse_payment(spoil(values[number], cause, number), LIMITS_DEFAULT)
        assert isinstance(refusal, Refusal)
        assert refusal.cause is cause


@pytest.mark.parametrize("cause", [Cause.FUTURE_TIME, Cause.TOO_OLD, Cause.CONTRADICTION])
def test_what_only_a_stage_can_refuse_is_otherwise_good(cause: Cause, values: list[bytes]):
    parsed = parse_payment(spoil(values[3], cause, 3), LIMITS_DEFAULT)
    original = parse_payment(values[3], LIMITS_DEFAULT)
    assert isinstance(parsed, Parsed)
    assert isinstance(original, Parsed)
    assert parsed.fingerprint_source != original.fingerprint_source
    assert (parsed.payment.payment_id == original.payment.payment_id) == (cause is Cause.CONTRADICTION)


def test_rate_causes_and_repeats_are_as_asked(values: list[bytes]):
    spoilt = list(bad_payments(values, 0.05, repeat_rate=0.02, seed=4))
    good = [value for value, cause in spoilt if cause is None]
    bad = collections.Counter(cause for _, cause in spoilt if cause is not None)
    assert 0.03 * len(values) < bad.total() < 0.07 * len(values)
    assert set(bad) == set(CAUSES)
    assert max(bad.values()) - min(bad.values()) <= 1
    assert 0 < len(good) - len(values) < 0.04 * len(values)
    assert list(dict.fromkeys(good)) == values
    assert spoilt == list(bad_payments(values, 0.05, repeat_rate=0.02, seed=4))


def test_other_events_come_through_and_bad_ones_follow_their_payments_key(values: list[bytes]):
    label = Event("label", 5, b"{}", "a", "default")
    payment = Event("payment", 5, values[0], "a7", "default")
    first, second, third, last = inject([label, payment], bad_rate=1.0, repeat_rate=1.0)
    assert (first.event, first.cause) == (label, None)
    assert (second.event, second.cause) == (payment, None)
    assert third.cause is not None
    assert third.event.account_id == "a7"
    assert (last.event, last.cause, last.repeat) == (payment, None, True)


def test_ids_of_bad_records_are_their_own(values: list[bytes]):
    ids = {msgspec.json.decode(spoil(values[0], Cause.AMOUNT_FLOAT, number))["payment_id"] for number in range(50)}
    assert len(ids) == 50


def test_a_rate_that_is_no_share_is_refused(values: list[bytes]):
    with pytest.raises(ValueError):
        next(bad_payments(values, 1.5))
