"""Pending rows: many at once are what they are one by one."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.columns.pending_rows import LENGTH_MAX, pending_rows
from stream.features import PLAIN_ROWS
from stream.stages import keys, pending

PAYMENTS = st.lists(
    st.tuples(st.integers(0, 255), st.binary(max_size=40), st.booleans(), st.integers(0, 2**64 - 1)),
    min_size=1,
    max_size=3 * PLAIN_ROWS,
)


def columns_of(payments: list[tuple[int, bytes, bool, int]]) -> tuple[Any, ...]:
    flags, entities, named, _ = zip(*payments, strict=True)
    ends = np.cumsum([len(entity) for entity in entities])
    spans = np.array([(end - len(entity), end) for end, entity in zip(ends, entities, strict=True)], np.int32)
    texts = np.frombuffer(bytearray(b"".join(entities)) or bytearray(b"x"), np.uint8)
    features = np.arange(3 * len(payments), dtype=np.float32).reshape(-1, 3)
    return np.array(flags, np.uint8), texts, spans, np.array(named), features


@given(PAYMENTS)
def test_new_rows_are_as_packed_one_by_one(payments: list[tuple[int, bytes, bool, int]]) -> None:
    flags, texts, spans, named, features = columns_of(payments)
    entities = [entity if names else b"" for _, entity, names, _ in payments]
    plain = pending.pack_new(flags.tolist(), entities, [row.tobytes() for row in features])
    assert pending_rows(flags, texts, spans, named, features) == plain


@given(PAYMENTS)
def test_which_teach_does_not_depend_on_how_many_are_asked_for(payments: list[tuple[int, bytes, bool, int]]) -> None:
    rows = [
        (
            pending.pending_key(1_000, number.to_bytes(8, "little") + bytes(8)),
            pending.pack(pending.Row(flags, len(entity) % 3, 0, entity, b"1234")),
        )
        for flags, entity, _, number in payments
    ]
    assert pending.teaching(rows) == [i for i, row in enumerate(rows) if pending.teaching([row])]


def test_keys_of_times_are_as_one_by_one() -> None:
    pids = [bytes([i]) * keys.PID_BYTES for i in range(50)]
    times = [-5, 0, 1, 2**40 + 7, *range(46)]
    digests = np.frombuffer(b"".join(pids), np.uint64).reshape(-1, 2)
    assert keys.time_keys_of(b"P", np.array(times), digests) == keys.time_keys(b"P", times, pids)
    assert keys.pids_of(digests) == pids


@pytest.mark.parametrize("span", [(-1, 2), (0, 3), (2, 1)])
def test_a_key_outside_of_the_texts_is_refused(span: tuple[int, int]) -> None:
    texts, one = np.zeros(2, np.uint8), np.ones(1, np.bool_)
    with pytest.raises(ValueError, match="outside"):
        pending_rows(np.zeros(1, np.uint8), texts, np.array([span], np.int32), one, np.zeros((1, 3), np.float32))


def test_a_key_that_is_too_long_for_its_length_is_refused() -> None:
    texts, one = np.zeros(LENGTH_MAX + 1, np.uint8), np.ones(1, np.bool_)
    spans = np.array([(0, LENGTH_MAX + 1)], np.int32)
    with pytest.raises(ValueError, match="at most"):
        pending_rows(np.zeros(1, np.uint8), texts, spans, one, np.zeros((1, 3), np.float32))
