"""What waits for its truth: the features of a payment as they were when it was decided.

Rows are keyed by event time, so that those which mature next come first and old ones go by range. A row is

    flags (1 byte) | taught (1) | length of the terminal's key (2), of the features (2) | key | float32[F]

Bound: `road_ms` on the labels' clock, 25 + 6 + key + 4 F bytes a payment.

What a label says teaches when it comes. Silence teaches twice: soon, and what is left of it at the maturity horizon. Of
a payment that nobody would take for fraud, soon is enough: hardly one in a thousand of these is a fraud that has not
been told yet.
"""

import struct
from typing import NamedTuple

from stream.model.sampling import PROVISIONAL_SILENCE, keep_legitimate
from stream.stages import keys
from stream.stages.state import State
from topics.journal import Judged

_HEAD = struct.Struct("<BBHH")
DAY_MS = 86_400_000
PROVISIONAL_MS = 7 * DAY_MS  # after so long silence begins to teach, if the maturity horizon is not shorter

THROUGH_NO = 1  # declined, voided or expired: the money did not move
ANSWERED_DECLINE = 2  # in mode enforce, so nothing can be learned from silence
THROUGH_YES = 4
NOTABLE = 8  # the model gave it at least NOTABLE_PROBABILITY: silence about it teaches for certain

TAUGHT_NOTHING, TAUGHT_FRAUD, TAUGHT_PROVISIONAL, TAUGHT_LEGITIMATE, TAUGHT_BY_SILENCE, TAUGHT_UNSURE = range(6)


class Row(NamedTuple):
    """`taught`: what the learner has been told, of TAUGHT_*; unsure: the silence of a notable payment, in part.

    `entity`: the state key of the payment's terminal, empty if it named none.
    """

    flags: int
    taught: int
    entity: bytes
    features: bytes

    @property
    def went_through(self) -> bool:
        """No update counts as through; a decline of ours only counts if an update said that it went through."""
        if self.flags & THROUGH_NO:
            return False
        return bool(self.flags & THROUGH_YES) or not self.flags & ANSWERED_DECLINE


def pack(row: Row) -> bytes:
    return _HEAD.pack(row.flags, row.taught, len(row.entity), len(row.features)) + row.entity + row.features


def pack_new(flags: int, entity: bytes, features: bytes) -> bytes:
    """The row of a payment of which nothing is known yet."""
    return _HEAD.pack(flags, TAUGHT_NOTHING, len(entity), len(features)) + entity + features


def is_passed_over(value: bytes, pid: bytes) -> bool:
    """Whether the silence about this row teaches nothing: a label spoke, or it is not in the sample."""
    return value[1] != TAUGHT_NOTHING or not (value[0] & NOTABLE or keep_legitimate(keys.pid64(pid)))


def unpack(value: bytes) -> Row:
    flags, taught, entity, features = _HEAD.unpack_from(value)
    middle = _HEAD.size + entity
    return Row(flags, taught, value[_HEAD.size : middle], value[middle : middle + features])


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
        return False, PROVISIONAL_SILENCE
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
