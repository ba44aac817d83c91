"""Finding card numbers in text, without taking other numbers for one.

A card number is a brand's prefix, a length of that brand and the check digit of Luhn (ISO/IEC 7812), written
- as one run of digits that no letter or digit continues; letters may touch it only when its word has no other
  digits (`PAN4111111111111111`), which no UUID or ULID has;
- or in groups with one to three blanks or dashes between them, all of one length but a shorter last one
  (4-4-4-4, 8-8, 1-1-1...), or as printed on cards (4-6-5, 4-6-4, 6-10, 6-13).

A UUID (8-4-4-4-12) holds none of these groupings, an epoch time begins with 1, an ARN has 23 digits and an RRN 12.
Visa's old numbers of 13 digits are found in groups (4-3-3-3) only: as one run they look like a phone number.
Ids of 14 to 19 digits alarm by chance (about one in forty): their fields need an exemption.
"""

import base64
import binascii
import re
import unicodedata
from collections.abc import Iterator
from typing import Final, NamedTuple
from urllib.parse import unquote


class Brand(NamedTuple):
    """Card numbers from `low` to `high` in their first digits, with one of `lengths`."""

    name: str
    low: str
    high: str
    lengths: frozenset[int]


_16_19: Final = frozenset({16, 17, 18, 19})

BRANDS: Final = (
    Brand("visa", "4", "4", frozenset({13, 16, 18, 19})),
    Brand("mastercard", "51", "55", frozenset({16})),
    Brand("mastercard", "2221", "2720", frozenset({16})),
    Brand("amex", "34", "34", frozenset({15})),
    Brand("amex", "37", "37", frozenset({15})),
    Brand("discover", "6011", "6011", _16_19),
    Brand("discover", "644", "659", _16_19),
    Brand("diners", "300", "305", frozenset({14, 16, 17, 18, 19})),
    Brand("diners", "3095", "3095", frozenset({14, 16, 17, 18, 19})),
    Brand("diners", "36", "36", frozenset({14, 15, 16, 17, 18, 19})),
    Brand("diners", "38", "39", frozenset({14, 16, 17, 18, 19})),
    Brand("jcb", "3528", "3589", _16_19),
    Brand("unionpay", "62", "62", _16_19),
    Brand("unionpay", "81", "81", _16_19),
    Brand("maestro", "50", "50", _16_19),
    Brand("maestro", "56", "58", _16_19),
    Brand("maestro", "6", "6", _16_19),
    Brand("mir", "2200", "2204", _16_19),
    Brand("rupay", "82", "82", frozenset({16})),
    Brand("troy", "9792", "9792", frozenset({16})),
)
DIGITS_MIN: Final = 13
DIGITS_MAX: Final = 19
RUN_MIN: Final = 14  # as one run; see above
UNQUOTE_MAX: Final = 4  # URL-encoded so often at most: each `%25` more would be one more pass over the whole text

assert {n for brand in BRANDS for n in brand.lengths} <= set(range(DIGITS_MIN, DIGITS_MAX + 1))
assert all(len(brand.low) == len(brand.high) for brand in BRANDS)

_PRINTED: Final = frozenset({(4, 6, 5), (4, 6, 4), (6, 10), (6, 13), (4, 3, 3, 3)})

_GROUP = re.compile(r"[0-9]+")
_BETWEEN = re.compile(r"[ \-]{1,3}")
_LONG_RUN = re.compile(r"[0-9]{13,}")
_ENOUGH = re.compile(r"[0-9](?:[ \-]{0,3}[0-9]){12}")

HIDING: Final = b"!"
"""In `DIGIT_CLASS` the class of bytes behind which something else may stand: escapes, and what is not ASCII."""
DIGIT_CLASS: Final = bytes(
    0x30 if 0x30 <= byte <= 0x39 else HIDING[0] if byte in b"\\%" or byte >= 0x80 else 0x20 for byte in range(256)
)
THIRTEEN_DIGITS: Final = b"0" * DIGITS_MIN


def luhn(digits: str) -> bool:
    """Whether the last of ASCII `digits` is their check digit.

    >>> luhn("4111111111111111"), luhn("4111111111111112")
    (True, False)
    """
    total = 0
    for index, char in enumerate(reversed(digits)):
        value = ord(char) - 48
        if index & 1:
            value = value * 2 - 9 if value > 4 else value * 2
        total += value
    return total % 10 == 0


def brand_of(digits: str) -> str | None:
    """The brand whose prefix, length and check digit `digits` has."""
    length = len(digits)
    for brand in BRANDS:
        if length in brand.lengths and brand.low <= digits[: len(brand.low)] <= brand.high:
            return brand.name if luhn(digits) else None
    return None


def digit_runs(raw: bytes) -> int:
    """How many runs of 13 or more digits `raw` holds, blanks and dashes left out (long runs count more than once).

    A payload whose numbers alone explain this count holds no card number in ASCII.
    """
    return raw.translate(DIGIT_CLASS, b" -").count(THIRTEEN_DIGITS)


def find_card_number(text: str) -> tuple[int, int] | None:
    """Start and end in `text` of the first card number, or None.

    >>> find_card_number("paid with 4111-1111-1111-1111.")
    (10, 29)
    >>> find_card_number("123e4567-e89b-42d3-a456-426614174000")
    """
    if len(text) < DIGITS_MIN:
        return None
    plain = text if text.isascii() else _as_ascii(text)
    if _ENOUGH.search(plain):
        found = _find(plain)
        if found is not None:
            return found
    for _ in range(UNQUOTE_MAX):
        if "%" not in plain or (decoded := unquote(plain)) == plain:
            return None
        plain = decoded if decoded.isascii() else _as_ascii(decoded)
        if _ENOUGH.search(plain) and _find(plain) is not None:
            return (0, len(text))
    return None


def any_card_number(text: str) -> bool:
    """Whether some digits in `text` are a card number, within longer runs and words too, dashes left out.

    Alarms by chance far oftener than `find_card_number`: for what may as well be dropped.

    >>> any_card_number("ab0c41111111111111117f"), any_card_number("0123456789abcdef0123456789abcdef")
    (True, False)
    """
    for match in _LONG_RUN.finditer(text.replace("-", "")):
        run = match.group()
        for start in range(len(run) - DIGITS_MIN + 1):
            for end in range(start + DIGITS_MIN, min(start + DIGITS_MAX, len(run)) + 1):
                if brand_of(run[start:end]):
                    return True
    return False


def _as_ascii(text: str) -> str:
    """`text` with every decimal digit, dash and blank of Unicode as the ASCII one; of equal length."""
    chars: list[str] = []
    for char in text:
        if char.isascii():
            chars.append(char)
            continue
        digit = unicodedata.decimal(char, None)
        category = unicodedata.category(char)
        if digit is not None:
            chars.append(str(int(digit)))
        elif category in ("Pd", "Zs", "Cf"):
            chars.append("-")
        else:
            chars.append(char)
    return "".join(chars)


def _find(text: str) -> tuple[int, int] | None:
    groups = [(match.start(), match.end()) for match in _GROUP.finditer(text)]
    for index, (start, end) in enumerate(groups):
        length = end - start
        if RUN_MIN <= length <= DIGITS_MAX and _stands_alone(text, start, end) and brand_of(text[start:end]):
            return (start, end)
        if length <= 8:
            found = _find_grouped(text, groups, index)
            if found is not None:
                return found
    return None


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Whether the word around a run of digits has letters only on its sides, and no other digit."""
    before = start
    while before > 0 and text[before - 1].isalpha():
        before -= 1
    after = end
    while after < len(text) and text[after].isalpha():
        after += 1
    digit_before = before > 0 and before < start and text[before - 1].isdigit()
    digit_after = after < len(text) and after > end and text[after].isdigit()
    return not digit_before and not digit_after


def _touches_letter(text: str, start: int, end: int) -> bool:
    return (start > 0 and text[start - 1].isalpha()) or (end < len(text) and text[end].isalpha())


def _joined(text: str, left: int, right: int) -> bool:
    return _BETWEEN.fullmatch(text, left, right) is not None


def _find_grouped(text: str, groups: list[tuple[int, int]], first: int) -> tuple[int, int] | None:
    """The card number in groups that begins with group `first`: at most 19 groups are looked at."""
    start, end = groups[first]
    sizes = [end - start]
    digits = text[start:end]
    for index in range(first + 1, len(groups)):
        left, right = groups[index]
        if not _joined(text, end, left):
            return None
        digits += text[left:right]
        if len(digits) > DIGITS_MAX:
            return None
        sizes.append(right - left)
        end = right
        if (
            len(digits) >= DIGITS_MIN
            and _is_grouping(sizes)
            and brand_of(digits)
            and not _touches_letter(text, start, end)
            and (sizes[0] >= 4 or _is_whole(text, groups, first, index))
        ):
            if sizes == [4, 3, 3, 3] and text[max(0, start - 1) : start] == "+":
                return None
            return (start, end)
    return None


def _is_grouping(sizes: list[int]) -> bool:
    uniform = sizes[0]
    if sizes[-1] <= uniform and all(size == uniform for size in sizes[:-1]):
        return True
    return tuple(sizes) in _PRINTED


def _is_whole(text: str, groups: list[tuple[int, int]], first: int, last: int) -> bool:
    """Whether no group before or after is joined: a list of small numbers is no card number."""
    before = first > 0 and _joined(text, groups[first - 1][1], groups[first][0])
    after = last + 1 < len(groups) and _joined(text, groups[last][1], groups[last + 1][0])
    return not before and not after


# Masking is for excerpts and logs: it may hide too much, and must not hide too little.
_HIDE = re.compile(
    r"(?:[0-9]|%3[0-9]|\\u003[0-9])"
    r"(?:(?:[^0-9A-Za-z]|%20|%2[dD]|\\[tnr]|\\u[0-9A-Fa-f]{4}){0,3}(?:[0-9]|%3[0-9]|\\u003[0-9])){12,}"
)
_EPOCH_MS = re.compile(r"1[0-9]{12}")
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-]{17,}={0,2}")


def mask_card_numbers(raw: bytes) -> bytes:
    """`raw` as UTF-8 (other bytes as `\\xNN`) in which whatever may be a card number is stars.

    Any 13 or more digits are hidden, with separators between them, URL-encoded, or within base64;
    an epoch time in ms is left.

    >>> mask_card_numbers(b'{"note": "4111 1111 1111 1111", "event_time": 1524000000000}')
    b'{"note": "*******************", "event_time": 1524000000000}'
    """
    text = raw.decode("utf-8", "backslashreplace")
    if not text.isascii():
        text = "".join(str(int(unicodedata.decimal(char))) if char.isdecimal() else char for char in text)
    return _BASE64.sub(_mask_base64, _HIDE.sub(_mask_digits, text)).encode("utf-8", "backslashreplace")


def _mask_digits(match: re.Match[str]) -> str:
    found = match.group()
    return found if _EPOCH_MS.fullmatch(found) else "*" * len(found)


def _mask_base64(match: re.Match[str]) -> str:
    found = match.group()
    return "*" * len(found) if any(_HIDE.search(text) for text in _decodings(found)) else found


def _decodings(word: str) -> Iterator[str]:
    """What a base64 word may hold, at each of its four alignments."""
    body = word.rstrip("=").replace("-", "+").replace("_", "/")
    for shift in range(4):
        part = body[shift:]
        part = part[: len(part) - 1] if len(part) % 4 == 1 else part
        try:
            yield base64.b64decode(part + "=" * (-len(part) % 4)).decode("latin-1")
        except (binascii.Error, ValueError):
            continue
