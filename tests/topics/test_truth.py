import itertools

import pytest

from topics.label import Label
from topics.truth import UNKNOWN, Truth, says_fraud, truth_of


def label(kind: str, at: int, **fields: object) -> Label:
    return Label(kind=kind, observed_at=at, payment_id="p", account_id="a", **fields)  # type: ignore[arg-type]


CASES = [
    ([label("chargeback", 1)], True, "confirmed", "merchant"),
    ([label("chargeback", 1, reason_code="4853")], None, "none", "merchant"),
    ([label("chargeback", 1, reason_code="4837")], True, "confirmed", "merchant"),
    ([label("chargeback", 1, reason_code="unheard")], None, "none", "merchant"),
    ([label("dispute_other", 1)], None, "none", "merchant"),
    ([label("dispute_other", 1, reason_code="10.4")], None, "none", "merchant"),
    ([label("fraud_report", 1)], True, "provisional", "none"),
    ([label("fraud_report", 1), label("dispute_other", 2)], True, "provisional", "merchant"),
    ([label("chargeback", 1), label("chargeback_reversed", 2)], False, "provisional", "issuer"),
    ([label("chargeback", 1), label("chargeback_reversed", 2, result="liability")], True, "provisional", "issuer"),
    ([label("chargeback", 1), label("chargeback_reversed", 2, result="evidence")], False, "provisional", "cardholder"),
    ([label("chargeback", 1, dispute_id="x"), label("chargeback_reversed", 2, dispute_id="y")], True, "confirmed",
     "issuer"),
    ([label("chargeback", 1), label("chargeback_reversed", 2), label("chargeback", 3, stage="pre_arbitration")], True,
     "confirmed", "merchant"),
    ([label("chargeback", 1), label("confirmed_legit", 2)], False, "confirmed", "merchant"),
    ([label("confirmed_legit", 1), label("confirmed_fraud", 2)], True, "confirmed", "none"),
    ([label("fraud_report", 1), label("chargeback", 2), label("chargeback_reversed", 3)], False, "provisional",
     "issuer"),
]  # fmt: skip


@pytest.mark.parametrize(("labels", "fraud", "weight", "loss_bearer"), CASES)
def test_precedence(labels: list[Label], fraud: bool | None, weight: str, loss_bearer: str) -> None:
    for order in itertools.permutations(labels):
        truth = truth_of(order)
        assert (truth.fraud, truth.weight, truth.loss_bearer) == (fraud, weight, loss_bearer)


def test_no_label_and_a_clock_say_nothing() -> None:
    assert truth_of([]) == truth_of([Label(kind="clock", observed_at=5)]) == UNKNOWN
    assert isinstance(UNKNOWN, Truth)


def test_a_dispute_about_goods_never_says_fraud() -> None:
    assert says_fraud(label("dispute_other", 1, reason_code="10.4")) is None
    assert says_fraud(label("chargeback", 1, reason_code="13.1")) is None
