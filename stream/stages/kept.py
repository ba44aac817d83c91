"""Answers as they are kept for repeats: what differs from one to the next. The rest of them stands once.

A kept answer is a head of 57 bytes and, where there are any, its reasons as JSON; what the answers between two markers
have in common is kept under `TABLE_SHARED`, by a hash of it. Tenant, account and payment id come with the repeat. The
answer made of these is the first one, to the byte. What begins with `{` is an answer as it went out: earlier releases
kept them so.
"""

import struct
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple, cast

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from stream.errors import InternalError
from stream.features import PLAIN_ROWS
from stream.stages.keys import pieces
from topics.decision import Decision, Origin, Outcome, PolicyMode, Position, Versions
from topics.journal import RUN_MODES, Repeat

LAYOUT: Final = 1
ID_BYTES: Final = 8
PROBABLE, RESPOND_BY = 1, 2  # flags: it has one
_HEAD: Final = struct.Struct("<B8sBBBHqqiqqd")
_ROW: Final = np.dtype(
    [
        ("layout", "u1"),
        ("shared", "V8"),
        ("verdict", "u1"),
        ("mode", "u1"),
        ("flags", "u1"),
        ("partition", "<u2"),
        ("position", "<i8"),
        ("step_offset", "<i8"),
        ("number", "<i4"),
        ("event_ms", "<i8"),
        ("respond_by", "<i8"),
        ("probability", "<f8"),
    ]
)
assert _ROW.itemsize == _HEAD.size

_encode = msgspec.json.Encoder().encode
_reasons = msgspec.json.Decoder(list[str]).decode


class Shared(Struct, frozen=True, array_like=True):
    """What answers have in common. `outcomes`, `verdicts` by the verdict's code; `versions`: JSON; `partition`: of the
    journal in which they are decided. `until_ms`: the broker's clock when the next ones began; None: they have not."""

    partition: int
    policy_mode: PolicyMode
    outcomes: list[Outcome]
    verdicts: list[Outcome]
    versions: bytes
    until_ms: int | None = None

    @property
    def key(self) -> bytes:
        """ID_BYTES that stand for it, whenever it ends."""
        content = msgspec.msgpack.encode(msgspec.structs.replace(self, until_ms=None))
        return blake2b(content, digest_size=ID_BYTES).digest()


encode_shared = msgspec.msgpack.Encoder().encode
decode_shared = msgspec.msgpack.Decoder(Shared).decode


Longs = Sequence[int] | NDArray[np.integer[Any]]


class Said(NamedTuple):
    """What was said of some payments; columns of one length. `modes`: places in RUN_MODES; `partitions`, `positions`:
    of their records on `payments`; `step_offsets`, `numbers`: where they were decided; times in ms UTC, `respond_by` -1
    where absent; `probabilities`: None without a model. `reasons`: by row, where there are any."""

    verdicts: Longs
    modes: Longs
    partitions: Longs
    positions: Longs
    step_offsets: Longs
    numbers: Longs
    event_ms: Longs
    respond_by: Longs
    probabilities: Sequence[float] | NDArray[np.float64] | None
    reasons: Mapping[int, bytes]

    def at(self, rows: Sequence[int]) -> "Said":
        """Of some of the payments. `reasons` are of these already."""
        *columns, probabilities, reasons = self
        chosen: list[Any] = [np.asarray(column)[rows] for column in columns]
        return Said._make([*chosen, None if probabilities is None else np.asarray(probabilities)[rows], reasons])


def pack(said: Said, shared: bytes) -> list[bytes]:
    """Each as it is kept. `shared`: the key of what they have in common."""
    values = _packed_few(said, shared) if len(said.verdicts) < PLAIN_ROWS else _packed(said, shared)
    for i, reasons in said.reasons.items():
        values[i] += reasons
    return values


def _packed_few(said: Said, shared: bytes) -> list[bytes]:
    probabilities = [0.0] * len(said.verdicts) if said.probabilities is None else said.probabilities
    probable = PROBABLE if said.probabilities is not None else 0
    columns = zip(*said[:8], probabilities, strict=True)
    return [
        _HEAD.pack(
            LAYOUT, shared, verdict, mode, probable | (RESPOND_BY if respond_by >= 0 else 0), *where, respond_by, p
        )
        for verdict, mode, *where, respond_by, p in columns
    ]


def _packed(said: Said, shared: bytes) -> list[bytes]:
    n = len(said.verdicts)
    rows: Any = np.empty(n, _ROW)
    respond_by = np.asarray(said.respond_by, np.int64)
    rows["layout"] = LAYOUT
    rows["shared"] = np.void(shared)
    rows["flags"] = (respond_by >= 0) * RESPOND_BY + (PROBABLE if said.probabilities is not None else 0)
    rows["probability"] = 0.0 if said.probabilities is None else said.probabilities
    rows["verdict"], rows["mode"], rows["partition"] = said.verdicts, said.modes, said.partitions
    rows["position"], rows["step_offset"], rows["number"] = said.positions, said.step_offsets, said.numbers
    rows["event_ms"], rows["respond_by"] = said.event_ms, respond_by
    return pieces(rows.tobytes(), _HEAD.size)


def shared_of(value: bytes) -> bytes | None:
    """The key of what a kept answer shares with others; None: it is whole."""
    if value[:1] == b"{":
        return None
    if len(value) < _HEAD.size or value[0] != LAYOUT:
        raise InternalError(f"a kept answer of layout {value[:1].hex()}, and this release reads {LAYOUT}")
    return value[1 : 1 + ID_BYTES]


def answer_of(value: bytes, shared: Shared, repeat: Repeat) -> bytes:
    """The first answer, as it went out."""
    _, _, verdict, mode, flags, partition, position, step_offset, number, event_ms, respond_by, probability = (
        _HEAD.unpack_from(value)
    )
    reasons = value[_HEAD.size :]
    return _encode(
        Decision(
            outcome=shared.outcomes[verdict],
            verdict=shared.verdicts[verdict],
            origin=Origin("payments", partition, position),
            versions=cast(Versions, msgspec.Raw(shared.versions)),
            position=Position(shared.partition, step_offset, number),
            tenant_id=repeat.tenant_id,
            payment_id=repeat.payment_id,
            account_id=repeat.account_id,
            mode=RUN_MODES[mode],
            policy_mode=shared.policy_mode,
            probability=probability if flags & PROBABLE else None,
            reasons=_reasons(reasons) if reasons else [],
            event_time=event_ms,
            respond_by=respond_by if flags & RESPOND_BY else None,
        )
    )
