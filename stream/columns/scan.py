"""A batch of payments, from JSON to columns: a kernel that does natively what `parse_payment` does for plain ones.

It has no opinion on the others. What it cannot prove to be plain (an escape, an unknown field, 13 digits that are no
time, a number out of range) is left to `topics.codec`, which knows all the rules; so it never raises.
Of a plain payment it says what the codec says, to the byte, but for one thing: its coded fields (currencies,
enumerations, short codes) are copied and not validated. The caller remembers which combinations of them have passed.

Where reads end: every record is followed by a NUL, and no step goes over one. A position moves on only past a byte
that was found to be something else, so it is never behind its record's own NUL.

Where writes end: a record is written only when all of it was found plain, and then takes no more than `_room` says.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, cast

import msgspec.inspect
import numba
import numpy as np
from numpy.typing import NDArray

from stream.bits import kernel, plain
from topics.cards import DIGITS_MIN
from topics.limits import LIMITS_DEFAULT, Limits
from topics.payment import ID_LENGTH_MAX, SCHEMA_VERSION, TENANT_DEFAULT, Payment

FIELDS: Final = Payment.__struct_fields__

# Kernels know these by heart, as literals of this file: numba's cache of compiled kernels looks at no other file.
PAYMENT_ID, ACCOUNT_ID, TENANT_ID, MODE, TERMINAL_ID, TAIL = 0, 2, 5, 6, 14, 40
REQUIRED: Final = 0b11111  # bits of the fields without a default
CODED_LENGTH_MAX: Final = 32
DIGITS_UNSUSPICIOUS: Final = 12  # in a row: one more may be a card number, or is one of the two times
WHOLE_DIGITS_MAX: Final = 3  # of a coordinate

assert tuple(FIELDS[i] for i in (PAYMENT_ID, ACCOUNT_ID, TENANT_ID, MODE, TERMINAL_ID)) == (
    "payment_id", "account_id", "tenant_id", "mode", "terminal_id",
)  # fmt: skip
assert FIELDS[TAIL:] == ("respond_by", "attempt", "schema_version"), "what a fingerprint leaves out comes last"
assert len(FIELDS) < 63, "a set of fields is an int64"
assert DIGITS_UNSUSPICIOUS == DIGITS_MIN - 1
assert WHOLE_DIGITS_MAX + DIGITS_UNSUSPICIOUS <= 15, "a coordinate without its point is exact as float64"

# What a field holds. Of NESTED only null is plain; VERSION must be the one there is, and is left out as a default is.
ID, CODED, FLAG, INT, FLOAT, VERSION, NESTED = range(7)

# A row of the table of fields: KIND; limits of the number or of the text's length, inclusive; whether null is allowed;
# the column of its value; bytes of its key in msgpack; where in the texts its default stands (0 bytes: it is no text).
KIND, LOW, HIGH, NULLABLE, COLUMN, KEY_SIZE, DEFAULT_AT, DEFAULT_SIZE = range(8)

# The texts: what is hashed with the ids of a test payment, the keys in msgpack (one a stride), the defaults.
TEST_SIZE: Final = 5
KEYS_AT: Final = 8
KEY_STRIDE: Final = 24
SLOTS: Final = 256  # of the hash table of keys

BLOCK_ROWS: Final = 32  # payments between two calls: counting the references to so many arrays costs more than one

# What is found of a field: where its text is in the record (of a flag START is its value), its pair in the blob.
START, END, PAIR, PAIR_END, FOUND = range(5)

# Columns of the results, by row.
INT_COLUMNS: Final = ("event_time", "amount", "billing_amount", "respond_by", "attempt", "utc_offset_min")
ABSENT_BELOW_ZERO: Final = slice(2, 4)
FLOAT_COLUMNS: Final = ("latitude", "longitude")
PLAIN, HAS_TERMINAL, IS_TEST, FLAGS = range(4)
CANONICAL_AT, PRINT_AT, CODES_AT, ACCOUNT_AT, TERMINAL_AT, NAMES_AT, SPANS = 0, 2, 4, 6, 9, 11, 19

SPACE, LINE_FEED, TAB, RETURN = 32, 10, 9, 13
QUOTE, COMMA, COLON, OPEN, CLOSE, MINUS, POINT, ZERO, NINE = 34, 44, 58, 123, 125, 45, 46, 48, 57
LETTER_A, LETTER_E, LETTER_F, LETTER_L, LETTER_N, LETTER_R, LETTER_S, LETTER_T, LETTER_U = b"aeflnrstu"
MAP16, FALSE, FLOAT64, STR8 = 0xDE, 0xC2, 0xCB, 0xD9
UINT8, UINT16, UINT32, UINT64, INT8, INT16 = 0xCC, 0xCD, 0xCE, 0xCF, 0xD0, 0xD1
FIXSTR, FIXSTR_MAX = 0xA0, 31
TABLE_ENTITY: Final = 69  # "E", of `keys.entity_key`

# 1: ends a text, or makes it one that is not plain.
ENDS: Final = np.array([not 32 <= byte < 127 or byte in b'"\\%' for byte in range(256)], np.uint8)

assert np.dtype("<f8").isnative, "floats are written from the last byte to the first"


class Scanned(NamedTuple):
    """n payments as columns; where `plain` is False, nothing else of the row means anything. -1, 0 or NaN: absent.

    `ints` int64 (6, n) by INT_COLUMNS, `floats` float32 (2, n) by FLOAT_COLUMNS, `marks` bool (FLAGS, n). `spans` int32
    (n, SPANS): places in `texts`, of which `blob` is what is used. Start and end of the canonical bytes, of the
    fingerprint's source, of the coded fields that are set (pairs of msgpack without a header), of the keys of account
    and terminal (the account's where none is named), and of the bare names of tenant, payment, account, terminal.
    `account_at` has a second end: until there, what `payment_hash` hashes goes on, from its start + 1.
    """

    ints: NDArray[np.int64]
    floats: NDArray[np.float32]
    marks: NDArray[np.bool_]
    spans: NDArray[np.int32]
    texts: NDArray[np.uint8]
    blob: bytes

    @property
    def plain(self) -> NDArray[np.bool_]:
        return self.marks[PLAIN]

    @property
    def has_terminal(self) -> NDArray[np.bool_]:
        return self.marks[HAS_TERMINAL]

    @property
    def test(self) -> NDArray[np.bool_]:
        return self.marks[IS_TEST]

    @property
    def event_ms(self) -> NDArray[np.int64]:
        return self.ints[0]

    @property
    def amount(self) -> NDArray[np.int64]:
        return self.ints[1]

    @property
    def billing_amount(self) -> NDArray[np.int64]:
        """-1: absent."""
        return self.ints[2]

    @property
    def respond_by(self) -> NDArray[np.int64]:
        """-1: absent."""
        return self.ints[3]

    @property
    def attempt(self) -> NDArray[np.int64]:
        """0: absent."""
        return self.ints[4]

    @property
    def utc_offset_min(self) -> NDArray[np.int64]:
        """0: absent, or Greenwich."""
        return self.ints[5]

    @property
    def latitude(self) -> NDArray[np.float32]:
        return self.floats[0]

    @property
    def longitude(self) -> NDArray[np.float32]:
        return self.floats[1]

    @property
    def canonical_at(self) -> NDArray[np.int32]:
        return self.spans[:, CANONICAL_AT:PRINT_AT]

    @property
    def print_at(self) -> NDArray[np.int32]:
        return self.spans[:, PRINT_AT:CODES_AT]

    @property
    def codes_at(self) -> NDArray[np.int32]:
        return self.spans[:, CODES_AT:ACCOUNT_AT]

    @property
    def account_at(self) -> NDArray[np.int32]:
        """(n, 3)"""
        return self.spans[:, ACCOUNT_AT:TERMINAL_AT]

    @property
    def terminal_at(self) -> NDArray[np.int32]:
        return self.spans[:, TERMINAL_AT:NAMES_AT]

    @property
    def names_at(self) -> NDArray[np.int32]:
        """(n, 8)"""
        return self.spans[:, NAMES_AT:]


def scan_payments(values: Sequence[bytes], limits: Limits, *, whole: bool = True) -> Scanned:
    """What is plain among `values` (one JSON text each), as columns in their order; at most COUNT_MAX of them.

    `whole`: False for who only asks which are plain, and whose: canonical bytes, fingerprint's source and codes are
    left empty.
    """
    lengths = np.fromiter(map(len, values), np.int64, len(values))
    return scan_joined(bytearray(b"\0").join((*values, b"")), lengths, limits, whole=whole)


def scan_joined(raw: bytearray, lengths: NDArray[np.int64], limits: Limits, *, whole: bool = True) -> Scanned:
    """`scan_payments`, of values one after the other, a NUL behind each; `lengths`: without it."""
    count = len(lengths)
    if count:
        # The kernels rely on it, and a run comes from a journal, whose bytes may be damaged.
        stops = np.cumsum(lengths + 1) - 1
        if lengths.min() < 0 or int(stops[-1]) != len(raw) - 1 or np.frombuffer(raw, np.uint8)[stops].any():
            raise ValueError("lengths and values of a run do not agree")
    fields, texts, slots = table(limits.amount_max)
    out = np.empty(_room(len(raw), count), np.uint8)
    ints = np.zeros((len(INT_COLUMNS), count), np.int64)
    ints[ABSENT_BELOW_ZERO] = -1
    floats = np.empty((len(FLOAT_COLUMNS), count))
    floats.fill(np.nan)
    flags = np.zeros((FLAGS, count), np.bool_)
    spans = np.zeros((count, SPANS), np.int32)
    used = 0
    if count:
        arrays = (
            np.frombuffer(raw, np.uint8), lengths, fields, texts, slots, np.empty(BLOCK_ROWS, np.int64),
            np.empty((BLOCK_ROWS, len(FIELDS), FOUND), np.int64), ints, floats, floats.view(np.uint8), out, flags,
            spans,
        )  # fmt: skip
        used = scan(whole, *(map(_bare, arrays) if _DISABLE_JIT else arrays))
    assert used <= len(out), "see _room"
    if len(raw) > limits.payload_bytes_max:
        flags[PLAIN] &= lengths <= limits.payload_bytes_max
    return Scanned(ints, floats.astype(np.float32), flags, spans, out, out[:used].tobytes())


_DISABLE_JIT: Final = bool(getattr(numba, "config").DISABLE_JIT)  # noqa: B009 (numba does not declare it)
_bare: Final[Callable[[Any], Any]] = memoryview  # plain Python reads ints from it, whose sums do not wrap

ROOM_A_RECORD: Final = 128
BLOB_BYTES_MAX: Final = 3 * len(FIELDS) * (KEY_STRIDE + 2 + ID_LENGTH_MAX)  # of a payment, by what its fields may hold
COUNT_MAX: Final = 100_000
assert COUNT_MAX * BLOB_BYTES_MAX < 2**31, "a place in the blob is an int32"


def _room(raw_bytes: int, count: int) -> int:
    """Bytes that the kernels write at most for all records. Each takes three times its length and 128 at most.

    A pair in JSON has two quotes and a colon more than its key; its value is never shorter than in msgpack, but for
    the two coordinates (1 byte may become 9), and the braces go against the map's header: so canonical bytes and
    fingerprint source are at most the record and 17 bytes each. Codes and keys of entities are taken from different
    pairs, once, but for the tenant (64) that stands in the terminal's key again, or its default (7) from nowhere; with
    "E" twice, three NULs and NUL "test" that is at most the record and 81 bytes. 17 + 17 + 81 < 128.
    """
    assert count <= COUNT_MAX
    return 3 * raw_bytes + ROOM_A_RECORD * count


@lru_cache(maxsize=8)
def table(amount_max: int) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    """Table of fields, texts and hash table (-1: a free slot), made from the contract."""
    assert TENANT_DEFAULT == "default"  # see `_room`
    fields = np.zeros((len(FIELDS), DEFAULT_SIZE + 1), np.int64)
    texts = bytearray(KEYS_AT + KEY_STRIDE * len(FIELDS))
    texts[:TEST_SIZE] = b"\0test"
    slots = np.full(SLOTS, -1, np.int64)
    known = cast(msgspec.inspect.StructType, msgspec.inspect.type_info(Payment)).fields
    assert tuple(field.encode_name for field in known) == FIELDS
    for number, field in enumerate(known):
        assert field.required == (REQUIRED >> number & 1)
        key = msgspec.msgpack.encode(field.name)
        assert key[0] == FIXSTR + len(field.name)
        assert len(key) <= KEY_STRIDE
        default = field.default.encode() if isinstance(field.default, str) else b""
        column = [*INT_COLUMNS, *FLOAT_COLUMNS].index(field.name) if field.name in INT_COLUMNS + FLOAT_COLUMNS else 0
        kind, low, high, nullable = _rule(field)
        if field.name in ("amount", "billing_amount"):
            high = min(high, amount_max, 10**DIGITS_UNSUSPICIOUS - 1)
        assert kind not in (INT, FLOAT) or field.name in INT_COLUMNS + FLOAT_COLUMNS
        assert kind != INT or high < 10**17, "ten times as much is an int64"
        fields[number] = (
            kind, low, high, nullable, column - (kind == FLOAT) * len(INT_COLUMNS), len(key), len(texts), len(default),
        )  # fmt: skip
        at = KEYS_AT + KEY_STRIDE * number
        texts[at : at + len(key)] = key
        texts += default
        slot = plain(hash_of)(texts, at + 1, at + len(key))
        while slots[slot] >= 0:
            slot = slot + 1 & SLOTS - 1
        slots[slot] = number
    return fields, np.frombuffer(texts, np.uint8), slots


def _rule(field: msgspec.inspect.Field) -> tuple[int, int, int, bool]:
    """Kind of a field, its limits, whether it may be null. A type that is not thought of here stops the import."""
    held: Any = field.type
    nullable = isinstance(held, msgspec.inspect.UnionType) and held.includes_none
    if nullable:
        (held,) = (one for one in held.types if not isinstance(one, msgspec.inspect.NoneType))
        assert field.default is None
    if isinstance(held, msgspec.inspect.Metadata):
        held = held.type
    match held:
        case msgspec.inspect.StrType(min_length=int(low), max_length=int(high), pattern=None):
            assert low >= 1, "the empty text is the default of fields that have none"
            return (ID, low, high, nullable) if high > CODED_LENGTH_MAX else (CODED, 1, CODED_LENGTH_MAX, nullable)
        case msgspec.inspect.LiteralType():
            return CODED, 1, CODED_LENGTH_MAX, nullable
        case msgspec.inspect.BoolType():
            return FLAG, 0, 1, nullable
        case msgspec.inspect.IntType(gt=None, lt=None, multiple_of=None, ge=int(low)) if field.name == "schema_version":
            assert low == SCHEMA_VERSION == field.default
            return VERSION, low, low, nullable
        case msgspec.inspect.IntType(gt=None, lt=None, multiple_of=None, ge=int(low), le=int(high)):
            return INT, low, high, nullable
        case msgspec.inspect.FloatType(gt=None, lt=None, multiple_of=None, ge=float(low), le=float(high)):
            assert (low, high) == (int(low), int(high))
            return FLOAT, int(low), int(high), nullable
        case msgspec.inspect.StructType() | msgspec.inspect.DictType():
            return NESTED, 0, 0, nullable
        case _:
            raise AssertionError(f"no rule for {field.name}: {held}")


@kernel
def hash_of(raw: Any, start: int, end: int) -> int:
    """First slot of the key `[start, end)`. Of an empty one it reads the quote before it."""
    return raw[end - 1] * 63 + raw[start] * 13 + raw[(start + end) >> 1] + end - start & SLOTS - 1


@kernel
def is_same(raw: Any, at: int, texts: Any, start: int, size: int) -> bool:
    """Whether `size` bytes are equal. Both must have so many: callers know the length of each."""
    left = raw[at : at + size]
    right = texts[start : start + size]
    for i in range(size):  # noqa: SIM110 (a kernel has no generators)
        if left[i] != right[i]:
            return False
    return True


@kernel
def field_of(raw: Any, start: int, end: int, fields: Any, texts: Any, slots: Any) -> int:
    """Number of the field whose key is `[start, end)`; -1: unknown. The table has free slots: the search ends."""
    slot = hash_of(raw, start, end)
    while True:
        field = slots[slot]
        if field < 0:
            return -1
        key_at = KEYS_AT + KEY_STRIDE * field + 1
        if fields[field, KEY_SIZE] - 1 == end - start and is_same(raw, start, texts, key_at, end - start):
            return field
        slot = slot + 1 & SLOTS - 1


@kernel
def after_blanks(raw: Any, at: int) -> int:
    """The next place that is not white space: at most the record's NUL."""
    while raw[at] <= SPACE and (raw[at] == SPACE or raw[at] == LINE_FEED or raw[at] == TAB or raw[at] == RETURN):
        at += 1
    return at


@kernel
def text_end(raw: Any, at: int) -> int:
    """The place of the quote that ends a plain text; -1: it is not plain, or never ends."""
    end = np.uint64(at)  # no sign to look at in this, the busiest loop
    while ENDS[raw[end]] == 0:
        end += np.uint64(1)
    return int(np.int64(end)) if raw[end] == QUOTE else -1


@kernel
def is_suspicious(raw: Any, start: int, end: int) -> bool:
    """Whether a text has 13 digits in a row, spaces and hyphens left out."""
    digits = 0
    for byte in raw[start:end]:
        if ZERO <= byte <= NINE:
            digits += 1
            if digits > DIGITS_UNSUSPICIOUS:
                return True
        elif byte != SPACE and byte != MINUS:
            digits = 0
    return False


@kernel
def natural(raw: Any, at: int, most: int) -> tuple[int, int]:
    """Where a number without sign ends, and the number; -1: it has no digit or is above `most`, which is below 10**17.

    After a leading zero it ends: a digit that follows is no comma, for which it is refused.
    """
    value = raw[at] - ZERO
    if value < 0 or value > 9:
        return at, -1
    at += 1
    if value == 0:
        return at, 0
    while ZERO <= raw[at] <= NINE:
        value = value * 10 + raw[at] - ZERO
        if value > most:
            return at, -1
        at += 1
    return at, value


@kernel
def coordinate(raw: Any, at: int) -> tuple[int, float]:
    """Where a decimal ends (-1: not plain), and its value: two exact numbers divided once, so rounded correctly."""
    negative = raw[at] == MINUS
    if negative:
        at += 1
    at, value = natural(raw, at, 10**WHOLE_DIGITS_MAX - 1)
    if value < 0:
        return -1, 0.0
    scale = 1.0
    if raw[at] == POINT:
        at += 1
        first = at
        while ZERO <= raw[at] <= NINE:
            value = value * 10 + raw[at] - ZERO
            scale *= 10.0
            at += 1
            if at - first > DIGITS_UNSUSPICIOUS:
                return -1, 0.0
        if at == first:
            return -1, 0.0
    if not negative:
        return at, value / scale
    return (at, -(value / scale)) if value else (-1, 0.0)


@kernel
def literal_end(raw: Any, at: int) -> int:
    """Where `null`, `true` or `false` ends; -1: it is none of them. Looks at a byte only if those before are right."""
    if raw[at] == LETTER_N:
        right = raw[at + 1] == LETTER_U and raw[at + 2] == LETTER_L and raw[at + 3] == LETTER_L
        return at + 4 if right else -1
    if raw[at] == LETTER_T:
        right = raw[at + 1] == LETTER_R and raw[at + 2] == LETTER_U and raw[at + 3] == LETTER_E
        return at + 4 if right else -1
    if raw[at] == LETTER_F:
        right = raw[at + 1] == LETTER_A and raw[at + 2] == LETTER_L and raw[at + 3] == LETTER_S
        return at + 5 if right and raw[at + 4] == LETTER_E else -1
    return -1


@kernel
def read(
    raw: Any, at: int, first: int, lengths: Any, fields: Any, texts: Any, slots: Any, given: Any, found: Any,
    ints: Any, floats: Any,
) -> int:  # fmt: skip
    """Finds the values of the records of a block, which stand one behind the other from `at` on; where the next stands.

    `given[k]`: the set of fields that record `first + k` sets (neither null nor a default), a bit each; -1: not plain.
    """
    behind = at
    for k in range(min(lengths.shape[0] - first, given.shape[0])):
        row = first + k
        at = behind
        stop = at + lengths[row]  # the place of its NUL
        behind = stop + 1
        given[k] = -1
        bits = seen = 0
        at = after_blanks(raw, at)
        more = raw[at] == OPEN
        while more:  # whatever is not plain breaks
            at = after_blanks(raw, at + 1)
            start = at + 1
            if raw[at] != QUOTE:
                break
            at = text_end(raw, start)
            if at < 0:
                break
            field = field_of(raw, start, at, fields, texts, slots)
            if field < 0 or seen >> field & 1:
                break
            seen |= 1 << field
            at = after_blanks(raw, at + 1)
            if raw[at] != COLON:
                break
            at = after_blanks(raw, at + 1)
            kind, low, high = fields[field, KIND], fields[field, LOW], fields[field, HIGH]
            sets = kind != VERSION
            if raw[at] == QUOTE:
                start = at + 1
                at = text_end(raw, start)
                size = at - start
                if kind > CODED or at < 0 or size < low or size > high:
                    break
                if size > DIGITS_UNSUSPICIOUS and is_suspicious(raw, start, at):
                    break
                found[k, field, START] = start
                found[k, field, END] = at
                at += 1
                if size == fields[field, DEFAULT_SIZE]:
                    sets = not is_same(raw, start, texts, fields[field, DEFAULT_AT], size)
            elif raw[at] == LETTER_N:
                sets = False
                at = literal_end(raw, at)
                if at < 0 or not fields[field, NULLABLE]:
                    break
            elif kind == FLAG:
                found[k, field, START] = raw[at] == LETTER_T
                at = literal_end(raw, at)
                if at < 0:
                    break
            elif kind == FLOAT:
                at, decimal = coordinate(raw, at)
                if at < 0 or decimal < low or decimal > high:
                    break
                floats[fields[field, COLUMN], row] = decimal
            elif kind == INT or kind == VERSION:  # noqa: SIM109 (faster)
                negative = raw[at] == MINUS
                at, value = natural(raw, at + 1 if negative else at, max(high, -low))
                if value < 0 or (negative and value == 0):
                    break
                value = -value if negative else value
                if value < low or value > high:
                    break
                if sets:
                    ints[fields[field, COLUMN], row] = value
            else:
                break
            if sets:
                bits |= 1 << field
            at = after_blanks(raw, at)
            more = raw[at] == COMMA
            if raw[at] == CLOSE and bits & REQUIRED == REQUIRED and after_blanks(raw, at + 1) == stop:
                given[k] = bits
    return behind


@kernel
def copy(out: Any, at: int, source: Any, start: int, end: int) -> int:
    """Where the bytes `[start, end)` of `source` end in `out`."""
    size = end - start
    target = out[at : at + size]  # an index of a slice is seen not to be negative: thrice as fast
    origin = source[start:end]
    for i in range(size):
        target[i] = origin[i]
    return at + size


@kernel
def write_int(out: Any, at: int, value: int) -> int:
    """Where the shortest msgpack of `value`, which is above -(2**15), ends."""
    if -32 <= value < 128:
        out[at] = value & 0xFF
        return at + 1
    size = 1
    if value < 0:
        out[at] = INT8 if value >= -128 else INT16
        size = 1 if value >= -128 else 2
    elif value < 1 << 8:
        out[at] = UINT8
    elif value < 1 << 16:
        out[at] = UINT16
        size = 2
    elif value < 1 << 32:
        out[at] = UINT32
        size = 4
    else:
        out[at] = UINT64
        size = 8
    for i in range(size):
        out[at + 1 + i] = value >> 8 * (size - 1 - i) & 0xFF
    return at + 1 + size


@kernel
def write_text(out: Any, at: int, raw: Any, start: int, end: int) -> int:
    """Where the msgpack of the text `[start, end)` of `raw` ends."""
    if end - start > FIXSTR_MAX:
        out[at] = STR8
        at += 1
        out[at] = end - start
    else:
        out[at] = FIXSTR + end - start
    return copy(out, at + 1, raw, start, end)


@kernel
def write_header(out: Any, at: int, pairs: int) -> int:
    """Where the header of a map ends; there are fewer than 63 fields."""
    out[at] = MAP16
    out[at + 1] = 0
    out[at + 2] = pairs
    return at + 3


@kernel
def write_maps(
    raw: Any, first: int, fields: Any, texts: Any, given: Any, found: Any, ints: Any, float_bytes: Any, out: Any,
    at: int, spans: Any,
) -> int:  # fmt: skip
    """Canonical bytes, fingerprint's source and codes of a block's plain payments, from `at` on; where they end."""
    for k in range(given.shape[0]):
        row = first + k
        if given[k] < 0:
            continue
        start = at
        pairs = body_pairs = 0
        at = body_end = at + 3
        for field in range(fields.shape[0]):
            if not given[k] >> field & 1:
                continue
            kind, column = fields[field, KIND], fields[field, COLUMN]
            key_at = KEYS_AT + KEY_STRIDE * field
            found[k, field, PAIR] = at
            at = copy(out, at, texts, key_at, key_at + fields[field, KEY_SIZE])
            if kind == INT:
                at = write_int(out, at, ints[column, row])
            elif kind == FLAG:
                out[at] = FALSE + found[k, field, START]
                at += 1
            elif kind == FLOAT:
                out[at] = FLOAT64
                for i in range(8):
                    out[at + 1 + i] = float_bytes[column, 8 * row + 7 - i]
                at += 9
            else:
                at = write_text(out, at, raw, found[k, field, START], found[k, field, END])
            found[k, field, PAIR_END] = at
            pairs += 1
            if field < TAIL:
                body_pairs = pairs
                body_end = at
        write_header(out, start, pairs)
        spans[row, CANONICAL_AT] = spans[row, PRINT_AT] = start
        spans[row, CANONICAL_AT + 1] = spans[row, PRINT_AT + 1] = at
        if body_pairs < pairs:
            spans[row, PRINT_AT] = at
            at = copy(out, write_header(out, at, body_pairs), out, start + 3, body_end)
            spans[row, PRINT_AT + 1] = at
        spans[row, CODES_AT] = at
        for field in range(fields.shape[0]):
            if given[k] >> field & 1 and (fields[field, KIND] == CODED or fields[field, KIND] == FLAG):
                at = copy(out, at, out, found[k, field, PAIR], found[k, field, PAIR_END])
        spans[row, CODES_AT + 1] = at
    return at


@kernel
def write_keys(
    raw: Any, first: int, fields: Any, texts: Any, given: Any, found: Any, out: Any, at: int, flags: Any, spans: Any
) -> int:
    """The keys of terminal and account of a block's plain payments, from `at` on; where they end."""
    for k in range(given.shape[0]):
        row = first + k
        if given[k] < 0:
            continue
        flags[PLAIN, row] = True
        for field in (TERMINAL_ID, ACCOUNT_ID):
            column = ACCOUNT_AT if field == ACCOUNT_ID else TERMINAL_AT
            names = NAMES_AT + 4 if field == ACCOUNT_ID else NAMES_AT + 6
            if not given[k] >> field & 1:
                continue
            spans[row, column] = at
            out[at] = TABLE_ENTITY
            at += 1
            spans[row, NAMES_AT] = at
            if given[k] >> TENANT_ID & 1:
                at = copy(out, at, raw, found[k, TENANT_ID, START], found[k, TENANT_ID, END])
            else:
                start = fields[TENANT_ID, DEFAULT_AT]
                at = copy(out, at, texts, start, start + fields[TENANT_ID, DEFAULT_SIZE])
            spans[row, NAMES_AT + 1] = at
            out[at] = 0
            at += 1
            spans[row, names] = at
            at = copy(out, at, raw, found[k, field, START], found[k, field, END])
            spans[row, names + 1] = spans[row, column + 1] = at
        out[at] = 0
        at += 1
        spans[row, NAMES_AT + 2] = at
        at = copy(out, at, raw, found[k, PAYMENT_ID, START], found[k, PAYMENT_ID, END])
        spans[row, NAMES_AT + 3] = at
        if given[k] >> MODE & 1:
            start, size = found[k, MODE, START], found[k, MODE, END] - found[k, MODE, START]
            if size == TEST_SIZE - 1 and is_same(raw, start, texts, 1, size):
                flags[IS_TEST, row] = True
                at = copy(out, at, texts, 0, TEST_SIZE)
        spans[row, ACCOUNT_AT + 2] = at
        flags[HAS_TERMINAL, row] = given[k] >> TERMINAL_ID & 1
        if not flags[HAS_TERMINAL, row]:
            spans[row, TERMINAL_AT] = spans[row, ACCOUNT_AT]
            spans[row, TERMINAL_AT + 1] = spans[row, ACCOUNT_AT + 1]
    return at


@kernel
def scan(
    whole: bool, raw: Any, lengths: Any, fields: Any, texts: Any, slots: Any, given: Any, found: Any, ints: Any,
    floats: Any, float_bytes: Any, out: Any, flags: Any, spans: Any,
) -> int:  # fmt: skip
    """Fills the columns of the records; how many bytes of `out` are used."""
    used = at = 0
    for first in range(0, lengths.shape[0], given.shape[0]):
        at = read(raw, at, first, lengths, fields, texts, slots, given, found, ints, floats)
        block = given[: lengths.shape[0] - first]  # the last one is shorter
        if whole:
            used = write_maps(raw, first, fields, texts, block, found, ints, float_bytes, out, used, spans)
        used = write_keys(raw, first, fields, texts, block, found, out, used, flags, spans)
    return used


table(LIMITS_DEFAULT.amount_max)  # a field of the contract that this file does not know stops the import
