"""The tables of features, and the features that a payment has by itself."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.features import (
    ACCOUNT_COLUMNS,
    CODED_FIELDS,
    CODES,
    ENTITY_FEATURES,
    ENTITY_INDEX,
    MODEL_FEATURES,
    MODEL_NAMES,
    PAYMENT_FEATURES,
    PAYMENT_INDEX,
    PLAIN_ROWS,
    TERMINAL_COLUMNS,
    local_minutes,
    model_rows,
    payment_features,
    whole_rows,
)
from stream.windows import kernel
from topics.payment import Payment

SUNDAY_23_30_MS = 1_700_436_600_000  # 2023-11-19T23:30Z


def payment(**fields: object) -> Payment:
    required = {"payment_id": "p", "event_time": SUNDAY_23_30_MS, "account_id": "a", "amount": 1250, "currency": "EUR"}
    return Payment(**{**required, **fields})  # type: ignore[arg-type]


def value(name: str, **fields: object) -> float:
    return float(payment_features([payment(**fields)])[0, PAYMENT_INDEX[name]])


def test_the_table_names_the_columns_that_the_kernel_writes():
    singles = [f.name for f in ENTITY_FEATURES[5 * kernel.WINDOWS :]]
    assert [getattr(kernel, name.upper()) for name in singles] == list(range(5 * kernel.WINDOWS, kernel.COLUMNS))
    assert [f.name for f in ENTITY_FEATURES[:10:5]] == ["payments_5m_count", "payments_1h_count"]
    for i, what in enumerate(("count", "sum", "mean", "deviation", "max")):
        assert getattr(kernel, what.upper()) == i
        assert ENTITY_FEATURES[i].name.endswith(what)


def test_every_feature_says_what_it_is():
    for feature in (*ENTITY_FEATURES, *PAYMENT_FEATURES, *MODEL_FEATURES):
        assert feature.name.isidentifier()
        assert feature.window
        assert feature.formula
    assert {f.entity for f in MODEL_FEATURES} == {"account", "terminal", "payment"}


def test_local_time_moves_the_hour_and_the_weekend():
    assert value("local_hour") == 23.5
    assert value("is_weekend") == 1
    assert value("local_hour", utc_offset_min=60) == 0.5
    assert value("is_weekend", utc_offset_min=60) == 0
    assert local_minutes([payment(), payment(utc_offset_min=60)]).tolist() == [10_080 - 30, 30]


def test_absent_is_not_a_number_and_present_is_its_place_in_the_contract():
    assert all(math.isnan(value(field)) for field in CODED_FIELDS)
    assert value("channel", channel="ecom") == 0
    assert value("channel", channel="mobile_money") == 4
    assert value("three_ds", three_ds="none") == CODES["three_ds"]["none"] == 4
    assert math.isnan(value("cross_border", merchant_country="DE"))
    assert value("cross_border", merchant_country="DE", issuer_country="DE") == 0
    assert value("cross_border", merchant_country="DE", issuer_country="FR") == 1
    assert value("foreign_currency", billing_currency="USD") == 1


def test_amounts_without_a_rate_are_absent():
    features = payment_features([payment(), payment()], np.array([-1, 77]))
    assert math.isnan(features[0, 0])
    assert features[1, 0] == 77


_PAYMENTS = st.builds(
    payment,
    event_time=st.integers(0, 4_102_444_800_000),
    amount=st.integers(0, 10**15),
    utc_offset_min=st.one_of(st.none(), st.integers(-840, 840)),
    channel=st.sampled_from([None, "ecom", "pos"]),
    mcc=st.sampled_from([None, "5411", "x"]),
    cvv=st.sampled_from([None, "match"]),
)


@settings(deadline=None)
@given(st.lists(_PAYMENTS, min_size=PLAIN_ROWS, max_size=3 * PLAIN_ROWS), st.data())
def test_rows_do_not_depend_on_their_neighbours(payments: list[Payment], data: st.DataObject):
    """Many at once go another way than a few: not a bit may differ."""
    amounts = [data.draw(st.sampled_from([-1, p.amount, 2**53 + 2**29 + 1])) for p in payments]
    minutes = local_minutes(payments)
    assert minutes.tolist() == [local_minutes([p]).item() for p in payments]
    together = payment_features(payments, np.array(amounts))
    alone = [payment_features([p], np.array([amount])) for p, amount in zip(payments, amounts, strict=True)]
    assert together.tobytes() == b"".join(row.tobytes() for row in alone)


def test_no_payments_have_no_rows():
    assert payment_features([]).shape == (0, len(PAYMENT_FEATURES))


def test_model_rows_have_each_column_under_its_name():
    n = 3
    account = np.arange(n * kernel.COLUMNS, dtype=np.float32).reshape(n, -1)
    terminal = -account
    account[:, ENTITY_INDEX["coverage_30d_share"]] = terminal[:, ENTITY_INDEX["coverage_30d_share"]] = 1.0
    own = payment_features([payment(amount=i) for i in range(n)])
    whole = model_rows(whole_rows(account, terminal, own))
    assert whole.shape == (n, len(MODEL_FEATURES))
    for at, name in enumerate(MODEL_NAMES):
        entity, _, rest = name.partition("_")
        expected = (
            account[:, ENTITY_INDEX[rest]] if entity == "account" and rest in ENTITY_INDEX
            else terminal[:, ENTITY_INDEX[rest]] if entity == "terminal" else own[:, PAYMENT_INDEX[name]]
        )  # fmt: skip
        np.testing.assert_array_equal(whole[:, at], expected)


@pytest.mark.parametrize("entity", ["account", "terminal"])
def test_an_age_is_absent_for_the_model_while_its_store_is_young(entity: str):
    blocks = {name: np.full((2, kernel.COLUMNS), 7.0, np.float32) for name in ("account", "terminal")}
    blocks[entity][:, ENTITY_INDEX["coverage_30d_share"]] = 0.999, 1.0
    own = payment_features([payment(), payment()])
    rows = model_rows(whole_rows(blocks["account"], blocks["terminal"], own))
    assert rows[:, MODEL_NAMES.index(f"{entity}_age_s")].tolist() == [pytest.approx(np.nan, nan_ok=True), 7.0]
    assert np.isnan(rows[:, : len(ACCOUNT_COLUMNS) + len(TERMINAL_COLUMNS)]).sum() == 1


@pytest.mark.parametrize("field", CODED_FIELDS)
def test_codes_are_dense_from_zero(field: str):
    assert sorted(CODES[field].values()) == list(range(len(CODES[field])))
