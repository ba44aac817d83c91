import math
import os
import subprocess
import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from stream import bits
from stream.model import compiled

ROOT = Path(__file__).resolve().parents[2]
FINITE = st.floats(-700.0, 700.0)


@given(FINITE)
@settings(deadline=None)  # the first call compiles
def test_exp_is_within_two_ulp_of_libm(x: float):
    assert abs(bits.exp(x) - math.exp(x)) <= 2 * math.ulp(math.exp(x))


@given(st.floats(1e-300, 1e300))
@settings(deadline=None)  # the first call compiles
def test_log_is_within_two_ulp_of_libm(x: float):
    assert abs(bits.log(x) - math.log(x)) <= 2 * max(math.ulp(math.log(x)), 2.3e-16 * abs(math.log(x)))


@given(FINITE)
@settings(deadline=None)  # the first call compiles
def test_sigmoid_is_a_probability_and_its_complement_is_that_of_the_negative(x: float):
    p = bits.sigmoid(x)
    assert 0.0 < p <= 1.0
    assert math.isclose(p + bits.sigmoid(-x), 1.0, rel_tol=1e-15)


@given(FINITE, FINITE)
@settings(deadline=None)  # the first call compiles
def test_sigmoid_keeps_order(a: float, b: float):
    low, high = sorted((a, b))
    assert bits.sigmoid(low) <= bits.sigmoid(high) + 2e-16


@given(FINITE)
@settings(deadline=None)  # the first call compiles
def test_softplus_is_the_log_loss(x: float):
    assert math.isclose(bits.softplus(x), max(x, 0.0) + math.log1p(math.exp(-abs(x))), rel_tol=1e-14, abs_tol=2e-16)


def test_ends():
    assert math.isnan(bits.exp(math.nan))
    assert math.isnan(bits.log(-1.0))
    assert bits.log(0.0) == -math.inf
    assert bits.sigmoid(math.inf) == 1.0
    assert bits.exp(math.inf) == bits.exp(bits.EXP_MAX)


def test_mix_spreads_neighbours_over_both_values_of_the_low_bit():
    ones = sum(bits.mix(i) & 1 for i in range(10_000))
    assert 4_800 < ones < 5_200


# The engine's recorded values: they change only with the engine version.
KERNEL_HASHES = "fdca981df178d2a800298701ae08380d a1a0e0f6dda52970d5cf8d718979174f"


def test_kernels_hash_to_the_recorded_value():
    assert f"{bits.kernel_hash()} {compiled.kernel_hash()}" == KERNEL_HASHES


def test_plain_python_has_the_same_bits():
    code = (
        "from stream import bits; from stream.model import compiled; print(bits.kernel_hash(), compiled.kernel_hash())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONHASHSEED": "7"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == KERNEL_HASHES
