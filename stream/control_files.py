"""What an operator writes into a file for `control`: settings and rates, checked before anything is written.

Workers pass over a record that they refuse, and nobody is told: so it is refused here, by name and with a path.
"""

import difflib
from typing import Any, cast

import msgspec

from stream.errors import ConfigurationError
from topics.control import Rates
from topics.currencies import CURRENCIES
from topics.limits import Limits, contradictions


def settings_from(body: bytes, base: Limits) -> Limits:
    """`base` with the fields that this JSON object names. Raises `ConfigurationError` with a path."""
    changes = _object(body, Limits)
    try:
        limits = msgspec.convert({**msgspec.to_builtins(base), **changes}, Limits)
    except msgspec.ValidationError as error:
        raise ConfigurationError(str(error)) from error
    check_limits(limits)
    return limits


def check_limits(limits: Limits) -> None:
    """Raises `ConfigurationError` with a path at the first thing that cannot be meant."""
    for found in contradictions(limits):
        raise _refused(found, found.partition(" ")[0])  # each begins with its field
    for i, path in enumerate(limits.card_exempt_fields):
        if path.startswith("$"):
            raise _refused(f"write {path.lstrip('$.')!r}: paths stand here without '$.'", f"card_exempt_fields[{i}]")


def rates_from(body: bytes) -> Rates:
    """The rates in this JSON object: all of them, for they are to one base. Raises `ConfigurationError` with a path."""
    try:
        rates = msgspec.convert(_object(body, Rates), Rates)
    except msgspec.ValidationError as error:
        raise ConfigurationError(str(error)) from error
    check_rates(rates)
    return rates


def check_rates(rates: Rates) -> None:
    """Raises `ConfigurationError` with a path if a currency is none of ISO 4217, or the base has a rate."""
    if rates.base not in CURRENCIES:
        raise _refused(f"{rates.base!r} is no currency of ISO 4217; write its alphabetic code", "base")
    for currency in rates.nano_base_per_minor:
        path = f"nano_base_per_minor.{currency}"
        if currency not in CURRENCIES:
            raise _refused(f"{currency!r} is no currency of ISO 4217; write its alphabetic code", path)
        if currency == rates.base:
            raise _refused(f"{currency} is the base, and has no rate to itself", path)


def _object(body: bytes, kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The fields of a JSON object, all of which `kind` has."""
    try:
        found: object = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigurationError("expected one JSON object - at `$`")
    fields = cast("dict[str, Any]", found)
    for name in fields:
        if name not in kind.__struct_fields__:
            nearest = difflib.get_close_matches(name, kind.__struct_fields__, n=1)
            suggestion = f"; do you mean {nearest[0]!r}?" if nearest else ""
            raise _refused(f"unknown field {name!r}{suggestion}", name)
    return fields


def _refused(what: str, field: str) -> ConfigurationError:
    return ConfigurationError(f"{what} - at `$.{field}`")
