"""Files of settings and rates: what cannot be meant is refused by name and path, and the rest stays as it was."""

import pytest

from stream.control_files import rates_from, settings_from
from stream.errors import ConfigurationError
from topics.control import Rates
from topics.limits import DAY_MS, LIMITS_DEFAULT, Limits

BASE = Limits(maturity_ms=9 * DAY_MS, card_exempt_fields=("payment_id",))


def test_a_file_with_one_field_changes_one_field() -> None:
    found = settings_from(b'{"skew_ms": 1000}', BASE)
    assert found == Limits(maturity_ms=9 * DAY_MS, card_exempt_fields=("payment_id",), skew_ms=1_000)
    assert settings_from(b"{}", BASE) == BASE
    assert settings_from(b'{"card_exempt_fields": ["references.arn"]}', BASE).card_exempt_fields == ("references.arn",)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"{", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[]", r"one JSON object - at `\$`"),
        (b'{"maturity": 1}', r"unknown field 'maturity'; do you mean 'maturity_ms'\? - at `\$\.maturity`"),
        (b'{"maturity_ms": "45d"}', r"Expected `int`, got `str` - at `\$\.maturity_ms`"),
        (b'{"maturity_ms": 0}', r">= 1 - at `\$\.maturity_ms`"),
        (b'{"road_ms": 86400000}', r"maturity_ms must be below road_ms: .* - at `\$\.maturity_ms`"),
        (b'{"answer_ttl_ms": 99999999999}', r"must not exceed dedupe_horizon_ms.* - at `\$\.answer_ttl_ms`"),
        (b'{"card_exempt_fields": ["$.payment_id"]}', r"write 'payment_id': .* - at `\$\.card_exempt_fields\[0\]`"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_with_a_path(body: bytes, what: str) -> None:
    with pytest.raises(ConfigurationError, match=what):
        settings_from(body, BASE)


def test_a_contradiction_with_what_is_in_force_is_refused() -> None:
    assert settings_from(b'{"dedupe_horizon_ms": 691200000}', LIMITS_DEFAULT).dedupe_horizon_ms == 8 * DAY_MS
    with pytest.raises(ConfigurationError, match="answer_ttl_ms must not exceed"):
        settings_from(b'{"dedupe_horizon_ms": 691200000}', Limits(answer_ttl_ms=9 * DAY_MS))


def test_rates_are_those_of_the_file() -> None:
    found = rates_from(b'{"base": "USD", "nano_base_per_minor": {"EUR": 1080000000, "JPY": 670000000}}')
    assert found == Rates(base="USD", nano_base_per_minor={"EUR": 1_080_000_000, "JPY": 670_000_000})


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b'{"base": "EUR"}', "missing required field `nano_base_per_minor`"),
        (b'{"base": "EURO", "nano_base_per_minor": {}}', r"length <= 3 - at `\$\.base`"),
        (b'{"base": "eur", "nano_base_per_minor": {}}', r"'eur' is no currency .* - at `\$\.base`"),
        (
            b'{"base": "EUR", "nano_base_per_minor": {"ZZZ": 1}}',
            r"'ZZZ' is no currency .* - at `\$\.nano_base_per_minor\.ZZZ`",
        ),
        (b'{"base": "EUR", "nano_base_per_minor": {"EUR": 1}}', "EUR is the base"),
        (b'{"base": "EUR", "nano_base_per_minor": {"USD": 0.92}}', "Expected `int`, got `float`"),
        (b'{"base": "EUR", "nano_base_per_minor": {}, "rates": {}}', "unknown field 'rates'"),
    ],
)
def test_rates_that_cannot_be_meant_are_refused_with_a_path(body: bytes, what: str) -> None:
    with pytest.raises(ConfigurationError, match=what):
        rates_from(body)
