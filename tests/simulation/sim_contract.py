"""What the contract says of names and places, written down a second time: no word of this is the stages'."""

import json
import re
from collections.abc import Sequence
from hashlib import blake2b, sha256
from typing import Any

import xxhash

from stream.stages.stage import Record
from topics.journal import Oversize, Raw

TRACE = re.compile("00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
VALUE_BYTES_MAX, EXCERPT_BYTES = 65_536, 1_024
MARKERS_OF = {
    "model": ("terminal-journal",),
    "rules": ("terminal-journal",),
    "policy": ("terminal-journal",),
    "settings": ("account-journal", "terminal-journal", "examples"),
    "engine": ("account-journal", "terminal-journal", "examples"),
    "rates": ("account-journal",),
    "source_cap": ("account-journal",),
}


def pid_of(tenant: str, account: str, payment: str, *, test: bool = False) -> bytes:
    """The hash of a payment's id."""
    words = [tenant, account, payment, *(["test"] if test else [])]
    return blake2b("\0".join(words).encode(), digest_size=16).digest()


def number_of(pid: bytes) -> int:
    """By which payments are chosen."""
    return int.from_bytes(pid[:8], "little")


def place_of(tenant: str, entity: str, partitions: int) -> int:
    """The partition of an account or a terminal."""
    return xxhash.xxh3_64_intdigest(f"{tenant}\0{entity}".encode()) % partitions


def place_of_record(topic_id: bytes, partition: int, offset: int, partitions: int) -> int:
    """The partition of a record from which no account can be read."""
    return xxhash.xxh3_64_intdigest(topic_id + f"{partition}:{offset}".encode()) % partitions


def trace_of(headers: Sequence[tuple[str, bytes | None]]) -> str | None:
    """The trace context that a record brings, if it is one."""
    for name, value in headers:
        if name == "traceparent" and value is not None and len(value) <= 64:
            return clean(value.decode("ascii", "replace"))
    return None


def clean(trace: str | None) -> str | None:
    return trace if trace is not None and TRACE.fullmatch(trace) else None


def raw_of(record: Record, source: int) -> Raw:
    """A foreign record as the account journal holds it, but for its trace context."""
    value = record.value or b""
    oversize = None
    if len(value) > VALUE_BYTES_MAX:
        oversize = Oversize(len(value), sha256(value).digest())
        value = value[:EXCERPT_BYTES]
    return Raw(record.offset, 0, source, record.at_ms, value, None, oversize)


def account_in(value: bytes) -> tuple[str, str, Any] | None:
    """Tenant, account and kind that a record names; None: no account can be read from it."""
    try:
        named = json.loads(value.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(named, dict):
        return None
    tenant, account = named.get("tenant_id", "default"), named.get("account_id", "")
    if not isinstance(tenant, str) or not isinstance(account, str | None):
        return None
    return tenant, account or "", named.get("kind")
