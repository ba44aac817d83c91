"""The kernel against the codec, which is its oracle: what it calls plain it reads as `parse_payment` does, to the byte.

`PYTHONPATH=. python tests/columns/test_scan.py` prints a digest of what the kernel makes of fixed records.
"""

import hashlib
import json
import os
import random
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.columns import scan
from stream.columns.scan import Scanned, scan_joined, scan_payments
from stream.stages import keys
from topics.codec import Parsed, parse_payment
from topics.limits import Limits
from topics.payment import Payment

ROOT: Final = Path(__file__).resolve().parents[2]
make_load: Final = runpy.run_path(str(ROOT / "tests" / "bench" / "load.py"))["make_load"]
LIMITS: Final = Limits()
SMALL: Final[dict[str, Any]] = {
    "payment_id": "01HZX3V9Q6W3K8T4N2B7C5D1E0",
    "event_time": 1_524_000_000_000,
    "account_id": "acc-0004821",
    "amount": 5712,
    "currency": "EUR",
}
IDS: Final[dict[str, Any]] = {
    "payment_id": "p" * 128, "account_id": "a b/c:d{e}[f],\x7e", "tenant_id": "t" * 64, "parent_payment_id": "x" * 31,
    "order_id": "x" * 32, "customer_id": "C", "terminal_id": "T-1", "merchant_id": "m", "counterparty_id": "iban",
    "device_id": "d", "ip": "2001:db8::1",
}  # fmt: skip
INTS: Final[dict[str, Any]] = {
    "event_time": 253_402_300_799_999, "amount": 999_999_999_999, "billing_amount": 0,
    "respond_by": 1_524_000_000_500, "attempt": 1_000_000, "utc_offset_min": -1440,
}  # fmt: skip
FLOATS: Final[dict[str, Any]] = {"latitude": -48.856612345678, "longitude": 180}
CODED: Final[dict[str, Any]] = {
    "mode": "test", "operation": "refund", "direction": "inbound", "initiator": "merchant",
    "stored_credential": "recurring", "mcc": "5411", "merchant_country": "DE", "issuer_country": "FR",
    "channel": "ecom", "scheme": "s" * 32, "entry_mode": "credential_on_file", "funding": "prepaid",
    "currency": "JPY", "billing_currency": "EUR", "three_ds": "frictionless", "eci": "05", "liability_shift": True,
    "avs": "partial", "cvv": "no_match", "counterparty_bank": "BANK", "payee_check": "close_match",
}  # fmt: skip
DEFAULTS: Final = (("mode", "live"), ("operation", "authorisation"))
LARGE: Final[dict[str, Any]] = IDS | INTS | FLOATS | CODED | {"schema_version": 1, "references": None}


def text_of(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode()


def agree(scanned: Scanned, row: int, raw: bytes, limits: Limits = LIMITS) -> bool:
    """Whether the row is plain; if it is, that all of it is what the codec says."""
    if not scanned.plain[row]:
        return False
    parsed, blob = parse_payment(raw, limits), scanned.blob

    def span(spans: Any, first: int = 0, last: int = 1) -> bytes:
        return blob[spans[row, first] : spans[row, last]]

    fields = json.loads(raw)
    pairs = [(name, fields[name]) for name in Payment.__struct_fields__ if name in CODED and name in fields]
    set_pairs = [pair for pair in pairs if pair[1] is not None and pair not in DEFAULTS]
    codes = b"".join(msgspec.msgpack.encode(part) for pair in set_pairs for part in pair)
    assert span(scanned.codes_at) == codes, raw
    if not isinstance(parsed, Parsed):
        assert parsed.path.removeprefix("$.") in CODED, (parsed, raw)
        return True
    payment = parsed.payment
    assert span(scanned.canonical_at) == parsed.canonical, raw
    assert span(scanned.print_at) == parsed.fingerprint_source, raw
    canonical_pairs = msgspec.msgpack.decode(parsed.canonical).items()
    assert [pair for pair in canonical_pairs if pair[0] in CODED] == set_pairs
    is_test = payment.mode == "test"
    account = keys.entity_key(payment.tenant_id, payment.account_id)
    terminal = payment.terminal_id and keys.entity_key(payment.tenant_id, payment.terminal_id)
    assert span(scanned.account_at) == account
    assert span(scanned.terminal_at) == (terminal or account)
    hashed = hashlib.blake2b(span(scanned.account_at, 0, 2)[1:], digest_size=keys.PID_BYTES).digest()
    assert hashed == keys.payment_hash(payment.tenant_id, payment.account_id, payment.payment_id, is_test)
    names = tuple(span(scanned.names_at, i, i + 1).decode() for i in (0, 2, 4, 6))
    assert names == (payment.tenant_id, payment.payment_id, payment.account_id, payment.terminal_id or "")
    assert payment.terminal_id or not scanned.names_at[row, 6:].any()
    found = (
        scanned.event_ms[row], scanned.amount[row], scanned.billing_amount[row], scanned.respond_by[row],
        scanned.attempt[row], scanned.utc_offset_min[row], scanned.has_terminal[row], scanned.test[row],
    )  # fmt: skip
    assert found == (
        payment.event_time,
        payment.amount,
        -1 if payment.billing_amount is None else payment.billing_amount,
        -1 if payment.respond_by is None else payment.respond_by,
        payment.attempt or 0,
        payment.utc_offset_min or 0,
        payment.terminal_id is not None,
        is_test,
    )
    for column, degrees in ((scanned.latitude, payment.latitude), (scanned.longitude, payment.longitude)):
        expected = np.array([np.nan if degrees is None else degrees], np.float32)
        assert column.dtype == np.float32
        assert column[row : row + 1].tobytes() == expected.tobytes()
    return True


def is_plain(raw: bytes, limits: Limits = LIMITS) -> bool:
    return agree(scan_payments([raw], limits), 0, raw, limits)


def test_every_field_of_the_contract_has_its_place() -> None:
    assert IDS | INTS | FLOATS | CODED == {**IDS, **INTS, **FLOATS, **CODED}
    known = {*IDS, *INTS, *FLOATS, *CODED, "schema_version", "references", "attributes"}
    assert known == set(Payment.__struct_fields__)
    fields, _, slots = scan.table(LIMITS.amount_max)
    kinds = dict(zip(scan.FIELDS, fields[:, scan.KIND].tolist(), strict=True))
    assert {name for name in kinds if kinds[name] == scan.ID} == set(IDS)
    assert {name for name in kinds if kinds[name] in (scan.CODED, scan.FLAG)} == set(CODED)
    assert {name for name in kinds if kinds[name] == scan.INT} == set(INTS) == set(scan.INT_COLUMNS)
    assert {name for name in kinds if kinds[name] == scan.FLOAT} == set(FLOATS) == set(scan.FLOAT_COLUMNS)
    assert sorted(slots[slots >= 0].tolist()) == list(range(len(scan.FIELDS)))


def test_payments_as_they_come_are_plain() -> None:
    values = [value for _, value in make_load(300).payments]
    scanned = scan_payments(values, LIMITS)
    assert all(agree(scanned, row, value) for row, value in enumerate(values))


def test_a_payment_with_every_field_is_plain_in_any_order_and_layout() -> None:
    rng = random.Random(1)
    for indent in (None, 0, 2, "\t"):
        order = rng.sample(sorted(LARGE), len(LARGE))
        raw = b" \r\n\t" + json.dumps({name: LARGE[name] for name in order}, indent=indent).encode() + b"\n "
        assert is_plain(raw)
        assert isinstance(parse_payment(raw, LIMITS), Parsed)
    for name in set(Payment.__struct_fields__) - SMALL.keys():
        nullable = name not in ("tenant_id", "mode", "operation", "schema_version")
        assert is_plain(text_of({**LARGE, name: None})) == nullable
        assert is_plain(text_of({key: value for key, value in LARGE.items() if key != name}))
        if name in LARGE:
            assert is_plain(text_of({**SMALL, name: LARGE[name]}))
    for name in SMALL:
        assert not is_plain(text_of({**LARGE, name: None}))
        assert not is_plain(text_of({key: value for key, value in LARGE.items() if key != name}))


PLAIN: Final[list[tuple[str, list[str]]]] = [
    ("tenant_id", ['"default"', '"Default"', '"defaul"', '"defaults"']),
    ("mode", ['"live"', '"test"', '"backfill"', '"tesT"', '"prod"']),
    ("operation", ['"authorisation"', '"verification"']),
    ("liability_shift", ["true", "false", "null"]),
    ("latitude", ["0", "0.0", "1", "90", "-90", "90.0", "-0.1", "0.1", "0.3", "7.000000000001", "-89.999999999999"]),
    ("longitude", ["180", "-180.00", "179.999999999999", "0.000000000001"]),
    ("utc_offset_min", ["0", "1", "-1", "-32", "-33", "-128", "-129", "1440", "-1440", "127", "128", "255", "256"]),
    ("attempt", ["1", "65535", "65536", "1000000"]),
    ("amount", ["0", "4294967295", "4294967296", "999999999999"]),
    ("event_time", ["0", "999999999999", "1000000000000", "253402300799999"]),
    ("respond_by", ["0", "999999999999", "1000000000000", "253402300799999"]),
    ("order_id", ['"1234 5678-9012"', '"123456789012a1"', '"' + "x" * 128 + '"', '"a\'<>/"']),
    ("eci", ['"5"', '"05"', '"005"', "null"]),
    ("currency", ['"EUR"', '"EUX"', '"eur"', '"euros"']),
    ("scheme", ['"' + "x" * 31 + '"', '"' + "x" * 32 + '"']),
]
NOT_PLAIN: Final[list[tuple[str, list[str]]]] = [
    ("tenant_id", ['""', '"' + "x" * 65 + '"', "null", "1"]),
    ("mode", ['""', "null", "true", "1", '"' + "x" * 33 + '"', '"te\\u0073t"']),
    ("liability_shift", ['"true"', "truE", "tru", "falsE", "fals", "1", "nul", "nulL"]),
    ("latitude", ["-0", "-0.0", "90.000000000001", "91", "-90.5", "1e1", "1.", ".5", "01", "+1", "1.0000000000001",
                  "1000", '"1"', "true", "NaN", "-", "Infinity", "1_0", "--1"]),
    ("utc_offset_min", ["-0", "1441", "-1441", "1.0", "1e2", "00", "01", "-01", "+1", "--1", "-", "- 1", '"1"', "[]"]),
    ("attempt", ["0", "-1", "1000001", "99999999999999999999999", "false"]),
    ("amount", ["-1", "1000000000000", "1.0", "1E2", "18446744073709551617", "0x1", "null", "{}"]),
    ("event_time", ["-1", "253402300800000", "1524000000000.0", '"1524000000000"']),
    ("order_id", ['""', '"' + "x" * 129 + '"', '"1234567890123"', '"1234 5678-9012 3"', '"4111111111111111"', '"%31"',
                  '"\\"', '"a\\n"', '"a\nb"', '"\x7f"', '"caf\u00e9"', '"a\0b"', "x", "'x'", '"x""y"']),
    ("eci", ['""', "5", '"' + "x" * 33 + '"', "false"]), ("currency", ['""', "null"]),
    ("ip", ['"1"', '"' + "1" * 46 + '"', '"' + ":" * 46 + '"']),
    ("schema_version", ["2", "0", "-1", "null", "1.0", "01", '"1"']),
    ("references", ["{}", '{"arn": "1"}', "[]", "1", '"x"']),
    ("attributes", ["{}", '{"a": 1}', "true"]),
    ("unknown", ["1", "null"]), ("", ["null"]), ("Amount", ["1"]), ("amount ", ["1"]), ("amoun", ["1"]),
]  # fmt: skip


@pytest.mark.parametrize(("plain", "name", "spellings"), [
    *((True, *case) for case in PLAIN), *((False, *case) for case in NOT_PLAIN),
])  # fmt: skip
def test_what_is_plain_and_what_is_left_to_the_codec(plain: bool, name: str, spellings: list[str]) -> None:
    others = json.dumps({key: value for key, value in SMALL.items() if key != name})[1:-1]
    for spelling in spellings:
        for text in (f'{{"{name}":{spelling},{others}}}', f'{{{others},\n"{name}" : {spelling} }}'):
            assert is_plain(text.encode()) == plain, text


@pytest.mark.parametrize("tail", [
    b"x", b",", b"}", b"\0", b"{}", b"\x0b", b"\xc2\xa0", b"\xef\xbb\xbf", b"//",
])  # fmt: skip
def test_what_stands_around_a_payment_is_blank_or_not_plain(tail: bytes) -> None:
    raw = text_of(SMALL)
    assert is_plain(b" \n" + raw + b"\t\r ")
    assert not is_plain(raw + tail)
    assert not is_plain(tail + raw)
    assert not is_plain(raw[:-1] + b"," + tail)


def test_no_key_stands_twice() -> None:
    raw = text_of(LARGE)
    for name in LARGE:
        for value in (LARGE[name], None):
            assert not is_plain(raw[:-1] + b', "%b": %b}' % (name.encode(), json.dumps(value).encode()))


def test_limits_are_kept() -> None:
    raw = text_of(SMALL)
    limits = Limits(payload_bytes_max=256, amount_max=5712)
    padded = raw + b" " * (256 - len(raw))
    assert is_plain(padded, limits)
    assert not is_plain(padded + b" ", limits)
    assert not is_plain(text_of({**SMALL, "amount": 5713}), limits)
    assert not is_plain(text_of({**SMALL, "billing_amount": 5713}), limits)
    assert is_plain(text_of({**SMALL, "amount": 5713}))
    scanned = scan_payments([raw, padded + b" ", padded], limits)
    assert scanned.plain.tolist() == [True, False, True]
    assert agree(scanned, 2, padded, limits)
    generous = Limits(amount_max=10**15)
    assert not is_plain(text_of({**SMALL, "amount": 10**12}), generous), "13 digits that are no time"


def test_what_takes_the_most_room_in_proportion_has_it() -> None:
    tenants = ({}, {"tenant_id": "t" * 64})
    for tenant in tenants:
        few = dict.fromkeys(("payment_id", "account_id", "terminal_id"), "x") | {"event_time": 0, "amount": 0}
        few |= {"currency": "EUR", "latitude": 0, "longitude": 0, "respond_by": 0, "mode": "test", **tenant}
        raw = json.dumps(few, separators=(",", ":")).encode()
        assert is_plain(raw)
        assert len(scan_payments([raw], LIMITS).blob) <= 3 * len(raw) + scan.ROOM_A_RECORD
    values = [text_of(SMALL | tenants[i % 2]) for i in range(3 * scan.BLOCK_ROWS + 1)]
    scanned = scan_payments(values, LIMITS)
    assert all(agree(scanned, row, raw) for row, raw in enumerate(values))


@pytest.mark.parametrize("lengths", [[2, 2], [1, 3], [-1, 5], [6, -2], [4], [1, 1, 0, 1]])
def test_lengths_that_do_not_fit_are_refused_before_a_kernel_sees_them(lengths: list[int]) -> None:
    good = scan_joined(bytearray(b"{}\0{ \0"), np.array([2, 2]), LIMITS)
    assert not good.plain.any()
    with pytest.raises(ValueError, match="do not agree"):
        scan_joined(bytearray(b"{}\0{a}\0"), np.array(lengths), LIMITS)


COLUMNS: Final = (
    *("plain", "has_terminal", "test", "event_ms", "amount", "billing_amount", "respond_by", "attempt"),
    *("utc_offset_min", "latitude", "longitude", "canonical_at", "print_at", "codes_at", "account_at", "terminal_at"),
    "names_at",
)


def test_no_payments_are_no_columns() -> None:
    scanned = scan_payments([], LIMITS)
    assert scanned.blob == b""
    assert {len(getattr(scanned, name)) for name in COLUMNS} == {0}
    assert scanned.spans.shape == (0, 19)
    assert scan_payments([b"", b"", b"\0"], LIMITS).plain.tolist() == [False, False, False]


BAD: Final = st.sampled_from([
    *(spelling for _, spellings in PLAIN + NOT_PLAIN for spelling in spellings), "[1,2]", "1e400", '"', "\\", "tru",
])  # fmt: skip
NUMBERS: Final = st.integers(-(2**70), 2**70) | st.integers(-2000, 2000) | st.integers(10**11, 10**14)
DEGREES: Final = st.floats(-200, 200) | st.decimals(-200, 200, places=6, allow_nan=False) | st.integers(-200, 200)
TEXTS: Final = (
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=140)
    | st.text("0123456789 -a", max_size=30)
    | st.text(max_size=20)
)


def value_of(name: str) -> st.SearchStrategy[str]:
    """Spellings of a field's value: most of them right."""
    right = st.just(json.dumps(LARGE.get(name)))
    if name in INTS:
        own = NUMBERS.map(str)
    elif name in FLOATS:
        own = DEGREES.map(str)
    else:
        own = TEXTS.map(json.dumps) | TEXTS.map(lambda text: json.dumps(text, ensure_ascii=False))
    return st.one_of(right, right, right, own, own, st.just("null"), BAD)


@st.composite
def spelled(draw: st.DrawFn) -> bytes:
    """A payment in some spelling, good or bad."""
    more = draw(st.lists(st.sampled_from([*Payment.__struct_fields__, "unknown", "amoun"]), max_size=8))
    if draw(st.booleans()):
        more = list(dict.fromkeys(name for name in more if name not in SMALL))
    names = draw(st.permutations([*SMALL, *more]))
    blank = st.sampled_from(["", "", " ", "\n", "\t\r\n "])
    before, between, after = draw(blank), draw(blank), draw(blank)
    pairs = [
        f'{before}"{name}"{between}:{after}{json.dumps(SMALL[name]) if name in SMALL else draw(value_of(name))}'
        for name in names
    ]
    return (before + "{" + ",".join(pairs) + after + "}" + between).encode("utf-8", "surrogatepass")


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """The bytes of a payment, some of them changed, cut out or moved."""
    raw = bytearray(draw(spelled() | st.sampled_from([text_of(SMALL), text_of(LARGE)])))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(0, len(raw) - 1)))
        raw[at : at + draw(st.integers(0, 2))] = draw(
            st.binary(max_size=2)
            | st.sampled_from([b'"', b",", b":", b"}", b"{", b"0", b"-", b".", b"\\", b" ", b"\0"])
        )
    return bytes(raw[: draw(st.integers(0, len(raw)))] if draw(st.integers(0, 9)) == 0 else raw)


@settings(max_examples=200, deadline=None)
@given(st.lists(spelled() | damaged() | st.binary(max_size=40), min_size=1, max_size=8))
def test_what_is_plain_is_what_the_codec_says_in_any_batch(values: list[bytes]) -> None:
    together = scan_payments(values, LIMITS)
    for row, raw in enumerate(values):
        alone = scan_payments([raw], LIMITS)
        assert agree(together, row, raw) == agree(alone, 0, raw)
    assert_whose(together, scan_payments(values, LIMITS, whole=False))


def assert_whose(whole: Scanned, less: Scanned) -> None:
    """Both say the same of which are plain, and whose they are."""
    assert less.plain.tolist() == whole.plain.tolist()
    for row in np.flatnonzero(whole.plain).tolist():
        for of in ("account_at", "terminal_at", "names_at"):
            in_less, in_whole = getattr(less, of)[row].tolist(), getattr(whole, of)[row].tolist()
            for first in range(0, len(in_less) // 2 * 2, 2):
                text = less.blob[in_less[first] : in_less[first + 1]]
                assert text == whole.blob[in_whole[first] : in_whole[first + 1]]


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(LARGE)), st.none(), max_size=40), st.data())
def test_good_values_of_all_fields_are_plain(absent: dict[str, None], data: st.DataObject) -> None:
    letters = st.text("abcXYZ/:_{}[],. ", min_size=2, max_size=45)
    fields = {name: value for name, value in LARGE.items() if name not in absent or name in SMALL}
    fields |= {name: data.draw(letters) for name in fields.keys() & IDS.keys()}
    assert is_plain(text_of(fields))


def mutations(seed: int, count: int) -> list[bytes]:
    """Payments, each with some bytes changed."""
    rng = random.Random(seed)
    found: list[bytes] = []
    for _ in range(count):
        raw = bytearray(text_of(rng.choice((SMALL, LARGE))))
        for _ in range(rng.randrange(4)):
            raw[rng.randrange(len(raw))] = (
                rng.choice(b'"\\,:{}0123456789-. %\0antEx\xc3') if rng.random() < 0.9 else 255
            )
        found.append(bytes(raw))
    return found


def digest_of(values: Sequence[bytes]) -> str:
    """How many are plain, and a hash of all that is said of them."""
    scanned = scan_payments(values, LIMITS)
    columns = [np.ascontiguousarray(getattr(scanned, name)[scanned.plain]) for name in COLUMNS]
    content = b"".join([scanned.blob, scanned.plain.tobytes(), *(column.tobytes() for column in columns)])
    return f"{int(scanned.plain.sum())} {hashlib.blake2b(content, digest_size=16).hexdigest()}"


def fixed() -> list[bytes]:
    return [text_of(SMALL), text_of(LARGE), b"", *(value for _, value in make_load(20).payments), *mutations(5, 300)]


def test_plain_python_finds_the_same() -> None:
    done = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    compiled = digest_of(fixed())
    assert int(compiled.split()[0]) > 100
    assert done.stdout.strip() == compiled


if __name__ == "__main__":
    print(digest_of(fixed()))
