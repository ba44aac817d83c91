"""The one spelling of a Struct, and the version that is its hash."""

import hashlib
from functools import cache
from typing import Any

import msgspec
from msgspec import NODEFAULT, Struct

_encoder = msgspec.json.Encoder()


def canonical_json(value: Struct) -> bytes:
    """JSON in the order of the fields, without those that equal their default.

    So a later field with a default changes no version. msgspec's `omit_defaults` does not serve: it compares
    by identity, so a 0.9 that was read from JSON is written, and the 0.9 of the default is not.
    """
    return _encoder.encode(_told(value))


def version_of(value: Struct) -> str:
    """16 hex digits of the BLAKE2b hash of the canonical JSON."""
    return hashlib.blake2b(canonical_json(value), digest_size=8).hexdigest()


@cache
def _fields(kind: type[Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(kind)


def _told(value: Any) -> Any:
    if isinstance(value, Struct):
        fields = _fields(type(value))
        told = [(field, getattr(value, field.name)) for field in fields]
        return {
            field.encode_name: _told(here)
            for field, here in told
            if field.default is NODEFAULT or here != field.default
        }
    if isinstance(value, list | tuple):
        return [_told(each) for each in value]
    return value
