"""The kernel's BLAKE2b beside hashlib's."""

from hashlib import blake2b
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stream.columns.hashes import DIGEST_BYTES, digests


@given(st.lists(st.binary(max_size=300), max_size=40))
@example([bytes(size) for size in (0, 1, 127, 128, 129, 255, 256, 257, 1_000)])
@example([b"\xff" * size for size in range(140)])
def test_digests_are_hashlibs(texts: list[bytes]) -> None:
    bounds = list(np.cumsum([0, *map(len, texts)]))
    spans = np.array(list(pairwise(bounds)), np.int32).reshape(-1, 2)
    found = digests(np.frombuffer(bytearray(b"".join(texts)), np.uint8), *spans.T).tobytes()
    expected = [blake2b(text, digest_size=DIGEST_BYTES).digest() for text in texts]
    assert found == b"".join(expected)


@pytest.mark.parametrize("span", [(-1, 1), (0, 4), (2, 1)])
def test_a_text_outside_is_refused(span: tuple[int, int]) -> None:
    starts, ends = np.array([span], np.int32).T
    with pytest.raises(ValueError, match="outside"):
        digests(np.zeros(3, np.uint8), starts, ends)
