"""Whether a payment was fraud, and who bears the loss: two values, from all of its labels.

Precedence, the first that applies decides `fraud`:

| rank | labels | fraud | weight |
|---|---|---|---|
| 1 | `confirmed_fraud`, `confirmed_legit`: the latest | true, false | confirmed |
| 2 | a `chargeback` with a fraud code, or without a code, whose dispute was not reversed | true | confirmed |
| 3 | a `fraud_report` after the last reversal | true | provisional |
| 4 | a reversed fraud `chargeback` (not for `liability`) | false | provisional |
| 5 | a `chargeback` reversed for `liability`: the loss moved, and nothing was said about fraud | true | provisional |
| 6 | `dispute_other`, or a chargeback with a code for something else | none | none |

A reversal concerns the chargebacks of its `dispute_id`; without one, every chargeback up to its `observed_at`.
The result depends on the set of labels only, not on the order in which they came.
"""

from collections.abc import Iterable
from types import MappingProxyType
from typing import Final, Literal

import msgspec
from msgspec import Struct

from topics.label import Label

Weight = Literal["none", "provisional", "confirmed"]
LossBearer = Literal["none", "merchant", "issuer", "cardholder"]

# Visa: fraud. Mastercard: no authorisation, not recognised, chip liability. American Express. Discover.
_FRAUD: Final = """
    10.1 10.2 10.3 10.4 10.5
    4837 4863 4870 4871
    F10 F14 F24 F29 F30 F31 FR2 FR4 FR6
    UA01 UA02 UA05 UA06
"""
# Authorisation, processing errors and consumer disputes, in the same order of schemes.
_OTHER: Final = """
    11.1 11.2 11.3 12.1 12.2 12.3 12.4 12.5 12.6 12.6.1 12.6.2 12.7 13.1 13.2 13.3 13.4 13.5 13.6 13.7 13.8 13.9
    4808 4831 4834 4841 4842 4846 4853 4854 4855 4859 4860
    A01 A02 A08 C02 C04 C05 C08 C14 C18 C28 C31 C32 P01 P03 P04 P05 P07 P08
    AA AP AT AW CD DP EX IC IN LP NF PM RG RM RN
"""


def _codes(text: str) -> list[str]:
    return text.split()


FRAUD_BY_REASON_CODE: Final = MappingProxyType(
    dict.fromkeys(_codes(_FRAUD), True) | dict.fromkeys(_codes(_OTHER), False)
)
"""Whether a scheme's chargeback code says fraud. A code that is not here says nothing, and trains nothing."""


class Truth(Struct, frozen=True, kw_only=True, gc=False):
    """`fraud` None: nothing is known, as before any label. `decided_by`: the kind of the label that decided.

    `observed_at`: UTC epoch in ms of that label; None without one.
    """

    fraud: bool | None
    weight: Weight
    loss_bearer: LossBearer
    decided_by: str | None
    observed_at: int | None


UNKNOWN: Final = Truth(fraud=None, weight="none", loss_bearer="none", decided_by=None, observed_at=None)


def says_fraud(label: Label) -> bool | None:
    """What this one label says by itself; None: nothing.

    >>> says_fraud(Label(kind="chargeback", observed_at=1, reason_code="13.1")) is None
    True
    >>> says_fraud(Label(kind="chargeback", observed_at=1, reason_code="10.4"))
    True
    """
    if label.kind in ("fraud_report", "confirmed_fraud"):
        return True
    if label.kind == "confirmed_legit":
        return False
    if label.kind == "chargeback":
        return True if label.reason_code is None else FRAUD_BY_REASON_CODE.get(label.reason_code.upper()) or None
    return None


def truth_of(labels: Iterable[Label]) -> Truth:
    """The truth about one payment from all of its labels, by the table above."""
    ordered = sorted((label for label in labels if label.kind != "clock"), key=_order)
    if not ordered:
        return UNKNOWN
    loss_bearer = _loss_bearer(ordered)
    confirmed = [label for label in ordered if label.kind in ("confirmed_fraud", "confirmed_legit")]
    if confirmed:
        return _truth(confirmed[-1].kind == "confirmed_fraud", "confirmed", loss_bearer, confirmed[-1])

    reversals = [label for label in ordered if label.kind == "chargeback_reversed"]
    frauds = [label for label in ordered if label.kind == "chargeback" and says_fraud(label)]
    standing = [label for label in frauds if not any(_reverses(reversal, label) for reversal in reversals)]
    if standing:
        return _truth(True, "confirmed", loss_bearer, standing[-1])

    cleared = [reversal for reversal in reversals if reversal.result != "liability"]
    reports = [label for label in ordered if label.kind == "fraud_report"]
    if reports and (not cleared or reports[-1].observed_at > cleared[-1].observed_at):
        return _truth(True, "provisional", loss_bearer, reports[-1])
    if cleared and (frauds or reports):
        return _truth(False, "provisional", loss_bearer, cleared[-1])
    if frauds:
        return _truth(True, "provisional", loss_bearer, frauds[-1])
    return _truth(None, "none", loss_bearer, ordered[-1])


def _order(label: Label) -> tuple[int, bytes]:
    """By time; equal times by content, so that the order of arrival does not matter."""
    return label.observed_at, msgspec.msgpack.encode(label)


def _truth(fraud: bool | None, weight: Weight, loss_bearer: LossBearer, label: Label) -> Truth:
    return Truth(
        fraud=fraud, weight=weight, loss_bearer=loss_bearer, decided_by=label.kind, observed_at=label.observed_at
    )


def _reverses(reversal: Label, chargeback: Label) -> bool:
    if reversal.dispute_id is not None and chargeback.dispute_id is not None:
        return reversal.dispute_id == chargeback.dispute_id and reversal.observed_at >= chargeback.observed_at
    return reversal.observed_at >= chargeback.observed_at


def _loss_bearer(ordered: list[Label]) -> LossBearer:
    """Who bears it after the last step of a dispute."""
    bearer: LossBearer = "none"
    for label in ordered:
        if label.kind in ("chargeback", "dispute_other") and label.stage != "inquiry":
            bearer = "merchant"
        elif label.kind == "chargeback_reversed":
            bearer = {"liability": "issuer", "evidence": "cardholder", "withdrawn": "none"}.get(  # type: ignore[assignment]
                label.result or "", "issuer"
            )
    return bearer
