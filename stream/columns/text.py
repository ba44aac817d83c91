"""Decisions and their details as JSON, of a run of payments at once: the bytes that msgspec makes of the structs.

    decision   HEAD[verdict] offset MIDDLE offset ,"n":number },"tenant_id":"... ","payment_id":"... ","account_id":"...
               TAIL[mode] probability  ,"reasons":[...]  ,"event_time":ms  ,"respond_by":ms  }
    details    {"decision":... MIDDLE base64 "  ,"logit":number  ,"contributions":[...]  LIMITS
               ,"hits":[...]  ,"near_hits":[...]  ,"late":true  }

What is the same in a whole run is a constant; what few payments have comes as JSON, by row. A kernel does not print
floats: msgspec writes all of a run in one text, which is cut at its commas, so their spelling is msgspec's own.

Each function asks a first kernel for room: it checks every index that the second one will use, and bounds the length
of what that one writes. Neither can then touch a byte that is not its own.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.bits import kernel

Bytes = NDArray[np.uint8]
Longs = NDArray[np.int64]

_encode_floats = msgspec.json.Encoder().encode

INT64_DIGITS_MAX: Final = 20
COMMA, CLOSING_BRACKET, ZERO, MINUS, PAD = b",]0-="

# Constants of a decision, by place; after them one head a verdict, then one tail a mode.
MIDDLE, N, TENANT, PAYMENT, ACCOUNT, REASONS, EVENT_TIME, RESPOND_BY, END, HEADS = range(10)
DECISION_KEYS: Final = (
    b',"n":',
    b'},"tenant_id":"',
    b'","payment_id":"',
    b'","account_id":"',
    b',"reasons":',
    b',"event_time":',
    b',"respond_by":',
    b"}",
)
# Rows of a decision's columns: int64, so that the kernels are compiled for one type.
POSITION, STEP_OFFSET, NUMBER, EVENT_MS, RESPOND_MS, VERDICT, MODE, NAMES = range(8)
REASONS_BYTES: Final = NAMES + 6
DECISION_COLUMNS: Final = REASONS_BYTES + 1
ABSENT: Final = -1

# The same of details.
FEATURES, LIMITS, OPEN, FEATURES_END, LOGIT, CONTRIBUTIONS, HITS, NEAR_HITS, LATE, CLOSE, DETAILS_CONSTANTS = range(11)
DETAILS_KEYS: Final = (
    b'{"decision":',
    b'"',
    b',"logit":',
    b',"contributions":',
    b',"hits":',
    b',"near_hits":',
    b',"late":true',
    b"}",
)
START, STOP, CONTRIBUTIONS_BYTES, HITS_BYTES, NEAR_HITS_BYTES, IS_LATE, DETAILS_COLUMNS = range(7)

assert len(DECISION_KEYS) == HEADS - N, "each place has its constant"
assert len(DETAILS_KEYS) == DETAILS_CONSTANTS - OPEN, "each place has its constant"
assert len(str(-(2**63))) == INT64_DIGITS_MAX, "the longest number"


class Names(NamedTuple):
    """Where tenant, payment and account ids stand as text that is JSON as it is: printable ASCII, no `"`, no `\\`.

    `at`: int32 (n, 6), start and end in `blob` of each id. A `blob` that can't be written to is copied.
    """

    blob: Bytes
    at: NDArray[np.int32]


class Texts(NamedTuple):
    """Values one after the other. `bounds`: int64 (n + 1); value i is `blob[bounds[i]:bounds[i + 1]]`."""

    blob: bytes
    bounds: Longs

    def values(self) -> list[bytes]:
        """One by one.

        >>> Texts(b"{}[]", np.array([0, 2, 4])).values()
        [b'{}', b'[]']
        """
        blob, bounds = self.blob, self.bounds.tolist()
        return [blob[start:stop] for start, stop in pairwise(bounds)]


class _Pieces(NamedTuple):
    """Texts in one array; text i is `blob[bounds[i]:bounds[i + 1]]`."""

    blob: Bytes
    bounds: Longs


@kernel
def _put(out: Bytes, at: int, source: Bytes, start: int, stop: int) -> int:
    """Copies `source[start:stop]` to `out[at:]`; where it ends."""
    end = at + stop - start
    to, text = out[at:end], source[start:stop]
    # Over views that begin at 0 the compiler uses vector units: a third of the time of `to[:] = text`.
    for i in range(len(text)):
        to[i] = text[i]
    return end


@kernel
def _put_constant(out: Bytes, at: int, text: Bytes, bounds: Longs, place: int) -> int:
    """Copies constant `place` to `out[at:]`; where it ends."""
    return _put(out, at, text, bounds[place], bounds[place + 1])


@kernel
def _put_int(out: Bytes, at: int, number: int) -> int:
    """Writes any int64 in decimal; where it ends. Uses `INT64_DIGITS_MAX` bytes for it, however short it is."""
    first = end = at + INT64_DIGITS_MAX
    negative = number < 0
    if negative:
        # The last digit goes first: what is left of -2**63 can be negated, itself it cannot.
        first -= 1
        out[first] = ZERO - number % -10
        number = number // -10
    while number > 0 or first == end:
        first -= 1
        rest = number // 10
        out[first] = ZERO + (number - 10 * rest)
        number = rest
    if negative:
        first -= 1
        out[first] = MINUS
    for i in range(end - first):
        out[at + i] = out[first + i]
    return at + end - first


@kernel
def _field_end(floats: Bytes, start: int) -> int:
    """Where the number that begins at `start` ends, in a JSON array of numbers."""
    end = start
    while end < len(floats) and floats[end] != COMMA and floats[end] != CLOSING_BRACKET:
        end += 1
    return end


@kernel
def _put_base64(out: Bytes, at: int, source: Bytes, start: int, stop: int) -> int:
    """Writes `source[start:stop]` in base64, padded; where it ends."""
    groups, left = (stop - start) // 3, (stop - start) % 3
    end = at + 4 * (groups + (left > 0))
    to, text = out[at:end], source[start:stop]
    for i in range(groups):
        three = int(text[3 * i]) << 16 | int(text[3 * i + 1]) << 8 | int(text[3 * i + 2])
        to[4 * i] = three >> 18
        to[4 * i + 1] = three >> 12 & 63
        to[4 * i + 2] = three >> 6 & 63
        to[4 * i + 3] = three & 63
    if left > 0:
        two = int(text[3 * groups]) << 8 | (int(text[3 * groups + 1]) if left > 1 else 0)
        to[4 * groups] = two >> 10
        to[4 * groups + 1] = two >> 4 & 63
        to[4 * groups + 2] = two << 2 & 63
        to[4 * groups + 3] = 0
    # Six bits to a letter: in a pass of its own, without a table, for the vector units. 252 is -4 in a byte, and so on.
    for i in range(len(to)):
        six = int(to[i])
        to[i] = six + (65 if six < 26 else 71 if six < 52 else 252 if six < 62 else 237 if six == 62 else 240) & 255
    if left > 0:
        out[end - 1] = PAD
        if left == 1:
            out[end - 2] = PAD
    return end


@kernel
def _decisions_room(columns: Longs, bounds: Longs, names_bytes: int, modes: int) -> int:
    """At most so many bytes come of all but floats and reasons; -1: an index points outside."""
    room = columns.shape[1] * (bounds[HEADS] + 5 * INT64_DIGITS_MAX)
    tails = len(bounds) - 1 - modes
    for i in range(columns.shape[1]):
        verdict, mode = columns[VERDICT, i], columns[MODE, i]
        if verdict < 0 or verdict >= tails - HEADS or mode < 0 or mode >= modes:
            return -1
        room += bounds[HEADS + verdict + 1] - bounds[HEADS + verdict]
        room += bounds[tails + mode + 1] - bounds[tails + mode]
        for k in range(NAMES, NAMES + 6, 2):
            start, stop = columns[k, i], columns[k + 1, i]
            if start < 0 or stop < start or stop > names_bytes:
                return -1
            room += stop - start
    return room


@kernel
def _write_decisions(
    columns: Longs, names: Bytes, text: Bytes, bounds: Longs, modes: int, floats: Bytes, reasons: Bytes, out: Bytes
) -> Longs:
    """Fills `out`; the bounds of the values in it. `floats`: empty without a model."""
    n = columns.shape[1]
    ends = np.zeros(n + 1, np.int64)
    tails = len(bounds) - 1 - modes
    at, float_at, reason_at = 0, 1, 0
    for i in range(n):
        head: int = HEADS + columns[VERDICT, i]
        tail: int = tails + columns[MODE, i]
        at = _put_constant(out, at, text, bounds, head)
        at = _put_int(out, at, columns[POSITION, i])
        at = _put_constant(out, at, text, bounds, MIDDLE)
        at = _put_int(out, at, columns[STEP_OFFSET, i])
        at = _put_constant(out, at, text, bounds, N)
        at = _put_int(out, at, columns[NUMBER, i])
        for k in range(3):
            at = _put_constant(out, at, text, bounds, TENANT + k)
            at = _put(out, at, names, columns[NAMES + 2 * k, i], columns[NAMES + 2 * k + 1, i])
        at = _put_constant(out, at, text, bounds, tail)
        if len(floats) > 0:
            float_end = _field_end(floats, float_at)
            at = _put(out, at, floats, float_at, float_end)
            float_at = float_end + 1
        if columns[REASONS_BYTES, i] > 0:
            at = _put_constant(out, at, text, bounds, REASONS)
            at = _put(out, at, reasons, reason_at, reason_at + columns[REASONS_BYTES, i])
            reason_at += columns[REASONS_BYTES, i]
        at = _put_constant(out, at, text, bounds, EVENT_TIME)
        at = _put_int(out, at, columns[EVENT_MS, i])
        if columns[RESPOND_MS, i] != ABSENT:
            at = _put_constant(out, at, text, bounds, RESPOND_BY)
            at = _put_int(out, at, columns[RESPOND_MS, i])
        at = _put_constant(out, at, text, bounds, END)
        ends[i + 1] = at
    return ends


@kernel
def _details_room(columns: Longs, bounds: Longs, decisions_bytes: int, row_bytes: int) -> int:
    """At most so many bytes come of all but floats and pieces; -1: a decision's bounds point outside."""
    room = columns.shape[1] * (bounds[-1] + (row_bytes + 2) // 3 * 4)
    for i in range(columns.shape[1]):
        start, stop = columns[START, i], columns[STOP, i]
        if start < 0 or stop < start or stop > decisions_bytes:
            return -1
        room += stop - start
    return room


@kernel
def _write_details(
    columns: Longs, decisions: Bytes, rows: Bytes, text: Bytes, bounds: Longs, floats: Bytes, pieces: Bytes, out: Bytes
) -> Longs:
    """Fills `out`; the bounds of the values in it. `floats`: empty without a model. `pieces`: by row, then kind."""
    n = columns.shape[1]
    ends = np.zeros(n + 1, np.int64)
    width = len(rows) // max(n, 1)
    at, float_at, piece_at = 0, 1, 0
    for i in range(n):
        at = _put_constant(out, at, text, bounds, OPEN)
        at = _put(out, at, decisions, columns[START, i], columns[STOP, i])
        at = _put_constant(out, at, text, bounds, FEATURES)
        at = _put_base64(out, at, rows, i * width, (i + 1) * width)
        at = _put_constant(out, at, text, bounds, FEATURES_END)
        if len(floats) > 0:
            at = _put_constant(out, at, text, bounds, LOGIT)
            float_end = _field_end(floats, float_at)
            at = _put(out, at, floats, float_at, float_end)
            float_at = float_end + 1
        for kind in range(3):
            if kind == 1:
                at = _put_constant(out, at, text, bounds, LIMITS)
            length = columns[CONTRIBUTIONS_BYTES + kind, i]
            if length > 0:
                at = _put_constant(out, at, text, bounds, CONTRIBUTIONS + kind)
                at = _put(out, at, pieces, piece_at, piece_at + length)
                piece_at += length
        if columns[IS_LATE, i] != 0:
            at = _put_constant(out, at, text, bounds, LATE)
        at = _put_constant(out, at, text, bounds, CLOSE)
        ends[i + 1] = at
    return ends


def decision_texts(
    *,
    heads: Sequence[bytes],
    positions: Longs,
    middle: bytes,
    step_offsets: Longs,
    numbers: Longs,
    names: Names,
    modes: NDArray[np.integer[Any]],
    mode_texts: Sequence[bytes],
    policy_text: bytes,
    verdicts: NDArray[np.integer[Any]],
    probabilities: Sequence[float] | None,
    reasons: Mapping[int, bytes],
    event_ms: Longs,
    respond_by: Longs,
) -> Texts:
    """Each payment's `Decision` as JSON. Arrays and `probabilities` have one length, n; 0 is one, too.

    `heads`: by verdict, all before the number of `origin.offset`, whose numbers are `positions`. `middle`: from there
    to the number of `position.offset`, whose numbers are `step_offsets`; those of `position.n` are `numbers`.
    `modes`: index into `mode_texts`, `b',"mode":"test"'` or empty for the default; `policy_text` likewise.
    `probabilities`: None without a model; what is not finite becomes null, as msgspec has it.
    `reasons`: by row, a JSON array where there are any. `respond_by`, `event_ms`: UTC epoch in ms; -1 is absent in
    `respond_by`.
    """
    n = len(positions)
    columns = np.zeros((DECISION_COLUMNS, n), np.int64)
    columns[POSITION] = positions
    columns[STEP_OFFSET] = step_offsets
    columns[NUMBER] = numbers
    columns[EVENT_MS] = event_ms
    columns[RESPOND_MS] = respond_by
    columns[VERDICT] = verdicts
    columns[MODE] = modes
    columns[NAMES:REASONS_BYTES] = names.at.T
    said = _by_row(columns, {REASONS_BYTES: reasons})
    floats = _floats(probabilities, n)
    text = _decision_constants(tuple(heads), middle, tuple(mode_texts), policy_text, probabilities is not None)
    ids = _writable(names.blob)
    room = _decisions_room(columns, text.bounds, len(ids), len(mode_texts))
    if room < 0:
        raise ValueError("an id, a verdict or a mode points outside of what it indexes")
    out = np.empty(room + len(floats) + len(said), np.uint8)
    ends = _write_decisions(columns, ids, text.blob, text.bounds, len(mode_texts), floats, said, out)
    return Texts(out[: ends[n]].tobytes(), ends)


def details_texts(
    *,
    decisions: Texts,
    middle: bytes,
    rows: NDArray[np.float32],
    logits: Sequence[float] | None,
    contributions: Mapping[int, bytes],
    limits: bytes,
    hits: Mapping[int, bytes],
    near_hits: Mapping[int, bytes],
    late: NDArray[np.bool_],
) -> Texts:
    """Each payment's `DecisionDetails` as JSON, in the order of `decisions`.

    `middle`: from the decision to the first letter of the features, which are `rows`: float32 (n, at least 1),
    little-endian. `logits`: None without a model. `contributions`, `hits`, `near_hits`: by row, a JSON array where
    there are any. `limits`: a JSON object, empty or `{}` if there are none.
    """
    n = len(late)
    if len(rows) != n or len(decisions.bounds) != n + 1 or rows.shape[1] == 0:
        raise ValueError(f"{len(rows)} rows, {len(decisions.bounds) - 1} decisions and {n} payments, or no feature")
    columns = np.zeros((DETAILS_COLUMNS, n), np.int64)
    columns[START] = decisions.bounds[:-1]
    columns[STOP] = decisions.bounds[1:]
    columns[IS_LATE] = late
    said = _by_row(columns, {CONTRIBUTIONS_BYTES: contributions, HITS_BYTES: hits, NEAR_HITS_BYTES: near_hits})
    floats = _floats(logits, n)
    text = _details_constants(middle, limits)
    decided = _array(decisions.blob)
    features = _writable(rows.reshape(-1).view(np.uint8))
    room = _details_room(columns, text.bounds, len(decided), rows.shape[1] * rows.itemsize)
    if room < 0:
        raise ValueError("a decision lies outside of their text")
    out = np.empty(room + len(floats) + len(said), np.uint8)
    ends = _write_details(columns, decided, features, text.blob, text.bounds, floats, said, out)
    return Texts(out[: ends[n]].tobytes(), ends)


def _by_row(columns: Longs, mappings: Mapping[int, Mapping[int, bytes]]) -> Bytes:
    """The texts of all mappings in the order of rows, then of mappings; their lengths to the column that is the key."""
    rows = sorted(set[int]().union(*mappings.values()))
    if rows and (rows[0] < 0 or rows[-1] >= columns.shape[1]):
        raise ValueError(f"rows {rows[0]} to {rows[-1]} are not within a run of {columns.shape[1]} payments")
    said = bytearray()
    for row in rows:
        for column, mapping in mappings.items():
            if text := mapping.get(row):
                columns[column, row] = len(text)
                said += text
    return np.frombuffer(said, np.uint8)


def _floats(numbers: Sequence[float] | None, n: int) -> Bytes:
    """A JSON array of n numbers; empty for None."""
    if numbers is None:
        return _array(b"")
    if len(numbers) != n:
        raise ValueError(f"{len(numbers)} numbers for {n} payments")
    return _array(_encode_floats(numbers))


def _array(text: bytes) -> Bytes:
    """A copy. One that can't be written to would be another type, for which the kernels were compiled once more."""
    return np.frombuffer(bytearray(text), np.uint8)


def _writable(array: Bytes) -> Bytes:
    return array if array.flags.writeable and array.flags.c_contiguous else array.copy()


def _pieces(texts: Sequence[bytes]) -> _Pieces:
    bounds = np.array([0, *accumulate(map(len, texts))], np.int64)
    return _Pieces(_array(b"".join(texts)), bounds)


@lru_cache(maxsize=64)
def _decision_constants(
    heads: tuple[bytes, ...], middle: bytes, mode_texts: tuple[bytes, ...], policy_text: bytes, scored: bool
) -> _Pieces:
    probability = b',"probability":' if scored else b""
    tails = [b'"' + mode + policy_text + probability for mode in mode_texts]
    return _pieces([middle, *DECISION_KEYS, *heads, *tails])


@lru_cache(maxsize=64)
def _details_constants(middle: bytes, limits: bytes) -> _Pieces:
    limited = b"" if limits in (b"", b"{}") else b',"limits":' + limits
    return _pieces([middle, limited, *DETAILS_KEYS])
