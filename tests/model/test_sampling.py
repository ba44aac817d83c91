import numpy as np
import pytest

from stream.model.sampling import keep_legitimate, kept_legitimate


@pytest.mark.parametrize("one_in", [1, 4, 10, 100])
def test_weights_add_up_to_all_payments(one_in: int):
    n = 200_000
    total = sum(keep_legitimate(h * 0x9E3779B97F4A7C15 % 2**64, one_in=one_in) for h in range(n))
    assert abs(total / n - 1.0) < 0.02


def test_the_choice_is_independent_of_the_low_bits():
    kept = [h for h in range(100_000) if keep_legitimate((h * 0x9E3779B97F4A7C15 % 2**32) << 32 | 7)]
    assert 24_000 < len(kept) < 26_000


def test_many_at_once_are_chosen_as_one_by_one():
    hashes = [*(h * 0x9E3779B97F4A7C15 % 2**64 for h in range(10_000)), 0, 2**62 - 1, 2**62, 2**64 - 1]
    assert kept_legitimate(np.array(hashes, np.uint64)).tolist() == [keep_legitimate(h) > 0 for h in hashes]
