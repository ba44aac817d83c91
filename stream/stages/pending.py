"""What waits for its truth: the features of a payment as they were when it was decided.

Rows are keyed by event time, so that those which mature next come first and old ones go by range. A row is

    flags (1 byte) | truth (1) | taught (1) | part (1) | length of the terminal's key (2), of the features (2) | key |
    float32[F] | label (msgpack), while one waits

Bound: `road_ms` on the labels' clock, 25 + 8 + key + 4 F bytes a payment.

Silence teaches twice: soon, and what is left of it at the maturity horizon. Of a payment that nobody would take for
fraud, soon is enough: few of these are frauds (deploy/adr/0008). A label teaches when it comes, but not before the
silence about the payments of its day: frauds that were learned before the legitimate payments of their days would be
told from them by the date.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from stream.columns.pending_rows import HEAD_BYTES
from stream.features import PLAIN_ROWS
from stream.model.sampling import keep_legitimate, kept_legitimate
from stream.stages import keys
from stream.stages.state import State
from topics.journal import Judged
from topics.limits import DAY_MS

_HEAD = struct.Struct("<BBBBHH")
assert _HEAD.size == HEAD_BYTES
_label = msgspec.msgpack.Decoder(tuple[int, str | None])
PROVISIONAL_MS = 7 * DAY_MS  # after so long silence begins to teach, if the maturity horizon is not shorter

THROUGH_NO = 1  # declined, voided or expired: the money did not move
ANSWERED_DECLINE = 2  # in mode enforce, so nothing can be learned from silence
THROUGH_YES = 4
NOTABLE = 8  # the model gave it at least NOTABLE_PROBABILITY: silence about it teaches for certain

TAUGHT_NOTHING, TAUGHT_FRAUD, TAUGHT_PROVISIONAL, TAUGHT_LEGITIMATE, TAUGHT_BY_SILENCE, TAUGHT_UNSURE = range(6)


class Row(NamedTuple):
    """`truth`: what the labels say by now, `taught`: what the learner has been told, both of TAUGHT_*; unsure: the
    silence about a notable payment, in part.

    `entity`: the state key of the payment's terminal, empty if it named none. `label`: (observed_at in ms UTC, source)
    of the latest word, while it waits. `part`: hundredths of the silence about it that have taught, if unsure.
    """

    flags: int
    truth: int
    taught: int
    entity: bytes
    features: bytes
    label: tuple[int, str | None] | None = None
    part: int = 0

    @property
    def went_through(self) -> bool:
        """No update counts as through; a decline of ours only counts if an update said that it went through."""
        if self.flags & THROUGH_NO:
            return False
        return bool(self.flags & THROUGH_YES) or not self.flags & ANSWERED_DECLINE


def pack(row: Row) -> bytes:
    return pack_taught(row, row.taught) + (b"" if row.label is None else msgspec.msgpack.encode(row.label))


def pack_taught(row: Row, taught: int) -> bytes:
    """The row after it has taught: a label that waited has been heard."""
    head = _HEAD.pack(row.flags, row.truth, taught, row.part, len(row.entity), len(row.features))
    return head + row.entity + row.features


def pack_new(flags: Sequence[int], entities: Sequence[bytes], features: Sequence[bytes]) -> list[bytes]:
    """Rows of payments of which nothing is known yet."""
    pack = _HEAD.pack
    return [
        pack(flag, TAUGHT_NOTHING, TAUGHT_NOTHING, 0, len(entity), len(row)) + entity + row
        for flag, entity, row in zip(flags, entities, features, strict=True)
    ]


def teaching(rows: Sequence[tuple[bytes, bytes]]) -> list[int]:
    """Which of these (key, value) teach when their time comes: a label spoke, or the silence is in the sample."""
    if len(rows) < PLAIN_ROWS:
        return [
            i
            for i, (key, value) in enumerate(rows)
            if value[1] != TAUGHT_NOTHING or value[0] & NOTABLE or keep_legitimate(keys.pid64(key[9:]))
        ]
    heads = np.frombuffer(b"".join([value[:2] for _, value in rows]), np.uint8)
    hashes = np.frombuffer(b"".join([key[9:17] for key, _ in rows]), "<u8")
    known = (heads[1::2] != TAUGHT_NOTHING) | (heads[::2] & NOTABLE != 0)
    return np.flatnonzero(known | kept_legitimate(hashes)).tolist()


def unpack(value: bytes) -> Row:
    flags, truth, taught, part, entity, features = _HEAD.unpack_from(value)
    middle = _HEAD.size + entity
    end = middle + features
    label = _label.decode(value[end:]) if len(value) > end else None
    return Row(flags, truth, taught, value[_HEAD.size : middle], value[middle:end], label, part)


def weight_of_silence(row: Row, pid: bytes) -> float:
    """With which weight a payment is learned as legitimate if no label comes by the horizon; 0: it is left out."""
    return 1.0 if row.flags & NOTABLE else keep_legitimate(keys.pid64(pid))


def what_was_taught(row: Row) -> tuple[bool, float]:
    """(as fraud, with which weight) a row has been learned, as far as a correction has to take it back; weight 0: not.

    What silence taught of a payment that was not notable is left: it was a step in proportion to a probability below
    NOTABLE_PROBABILITY. To take it back would be one in proportion to what the learner thinks of it by now, which is
    more by far once frauds like it were met.
    """
    if row.taught == TAUGHT_UNSURE:
        return False, row.part / 100
    if row.taught == TAUGHT_BY_SILENCE:
        return False, 1.0 if row.flags & NOTABLE else 0.0
    return row.taught in (TAUGHT_FRAUD, TAUGHT_PROVISIONAL), 0.0 if row.taught == TAUGHT_NOTHING else 1.0


def pending_key(event_ms: int, pid: bytes) -> bytes:
    return keys.time_key(keys.TABLE_PENDING, event_ms, pid)


def truth_of(judged: Judged) -> int:
    """The truth after this judgement."""
    if judged.fraud is None:
        return TAUGHT_NOTHING
    if not judged.fraud:
        return TAUGHT_LEGITIMATE
    return TAUGHT_PROVISIONAL if judged.provisional else TAUGHT_FRAUD


class Due(NamedTuple):
    """Rows whose time has come. `late`: (key, value) of those that came behind the cursor; `more`: there may be more
    than were asked for; `cursor`: where the next look begins once all of these are done."""

    late: list[tuple[bytes, bytes | None]]
    rows: list[tuple[bytes, bytes]]
    cursor: bytes
    more: bool


def due(state: State, cursor: bytes, horizon_ms: int, rows_max: int) -> Due:
    """Rows of payments with event time <= `horizon_ms`, from `cursor` on, at most `rows_max`."""
    high = keys.time_key(keys.TABLE_PENDING, horizon_ms + 1)
    late_high = keys.time_key(keys.TABLE_LATE_DUE, horizon_ms + 1)
    late_keys = [keys.TABLE_PENDING + key[1:] for key, _ in state.scan(keys.TABLE_LATE_DUE, late_high, rows_max)]
    late = list(zip(late_keys, state.get_many(late_keys), strict=True)) if late_keys else []
    rows: list[tuple[bytes, bytes]] = []
    if cursor < high and len(late) < rows_max:
        rows = state.scan(cursor, high, rows_max - len(late))
    more = len(rows) + len(late) >= rows_max
    if more:
        return Due(late, rows, rows[-1][0] + b"\0" if rows else cursor, True)
    return Due(late, rows, max(cursor, high), False)
