"""May a new version replace the active one? Only if it is not worse, as far as the latest matured labels can tell."""

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.bits import kernel, softplus
from stream.model.compiled import Compiled

DEVIATIONS = 2.5  # an equal version is held in 0.6 % of cases, a tick's neighbours being alike
LOSS_SLACK = 0.01  # and it may be this share worse: less than the drift of a day
EXAMPLES_MIN = 20  # of each truth, or nothing can be said
ALERT_SHARE = 0.01  # the active version's alerts, of the latest unlabelled payments
ALERT_JUMP = 4.0  # by which factor they may grow, or how many there may be for each fraud
ALERT_LOGIT_MIN = -2.2  # a probability of .1. Less is no alert: else one that is far too quiet would hold all others
ALERT_ROWS_MIN = 500


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate found. `why` is empty if the version may pass.

    `worse`: difference of the expected log loss a payment, new minus active; `deviation`: its standard error;
    `alert_share`: of unlabelled payments, at the limit where the active version's is `active_alert_share`: that of its
    highest hundredth, or a probability of .1 if that is more.
    """

    why: str
    worse: float = 0.0
    deviation: float = 0.0
    alert_share: float = 0.0
    active_alert_share: float = 0.0


@kernel
def _losses(logit: NDArray[np.float64], sign: float, out: NDArray[np.float64]) -> None:
    for i in range(logit.shape[0]):
        out[i] = softplus(sign * logit[i])


def _mean(change: NDArray[np.float64], weight: NDArray[np.float64]) -> tuple[float, float]:
    """The weighted mean, and its variance as an estimate. Weights are those of examples that stand for several."""
    total = float(weight.sum())
    mean = float((weight * change).sum()) / total
    return mean, float((weight * weight * (change - mean) ** 2).sum()) / (total * total)


def _loss(model: Compiled, rows: NDArray[np.float32], fraud: bool) -> NDArray[np.float64]:
    _, logit = model.score(rows)
    out = np.empty(len(logit))
    _losses(logit, -1.0 if fraud else 1.0, out)
    return out


def judge(
    new: Compiled,
    active: Compiled | None,
    *,
    frauds: NDArray[np.float32],
    legitimate: NDArray[np.float32],
    unlabelled: NDArray[np.float32],
    fraud_share: float,
    fraud_weights: NDArray[np.float64] | None = None,
    legitimate_weights: NDArray[np.float64] | None = None,
) -> Verdict:
    """Compare two versions on the same rows (float32 [n, features]). `fraud_share`: of all payments, in 0..1.

    Weights: > 0, how many payments a row stands for; None: one each.

    Where the active version is none, or not ready, or of other features, any version passes.
    """
    if active is None or not active.ready or active.features_version != new.features_version:
        return Verdict(why="")
    if not new.ready:
        return Verdict(why="not ready, but the active version is")
    alert_share = active_alert_share = 0.0
    if len(unlabelled) >= ALERT_ROWS_MIN:
        was = np.sort(active.score(unlabelled)[1])
        limit = max(float(was[int(len(was) * (1.0 - ALERT_SHARE))]), ALERT_LOGIT_MIN)
        active_alert_share = float((was > limit).mean())
        alert_share = float((new.score(unlabelled)[1] > limit).mean())
    if min(len(frauds), len(legitimate)) < EXAMPLES_MIN:
        worse = deviation = slack = 0.0
    else:
        on_fraud = _loss(active, frauds, True)
        on_legitimate = _loss(active, legitimate, False)
        fraud_change = _loss(new, frauds, True) - on_fraud
        legitimate_change = _loss(new, legitimate, False) - on_legitimate
        of_fraud = np.ones(len(frauds)) if fraud_weights is None else fraud_weights
        of_legitimate = np.ones(len(legitimate)) if legitimate_weights is None else legitimate_weights
        rest = 1.0 - fraud_share
        fraud_mean, fraud_spread = _mean(fraud_change, of_fraud)
        legitimate_mean, legitimate_spread = _mean(legitimate_change, of_legitimate)
        worse = fraud_share * fraud_mean + rest * legitimate_mean
        deviation = float(np.sqrt(fraud_share**2 * fraud_spread + rest**2 * legitimate_spread))
        slack = LOSS_SLACK * (
            fraud_share * _mean(on_fraud, of_fraud)[0] + rest * _mean(on_legitimate, of_legitimate)[0]
        )
    why = ""
    if worse > DEVIATIONS * deviation + slack:
        why = f"log loss a payment worse by {worse:.2e}, more than {DEVIATIONS} x {deviation:.2e} + {slack:.2e}"
    elif alert_share > ALERT_JUMP * max(ALERT_SHARE, fraud_share):
        why = f"alerts would jump from {active_alert_share:.2%} to {alert_share:.2%} of payments"
    return Verdict(
        why=why, worse=worse, deviation=deviation, alert_share=alert_share, active_alert_share=active_alert_share
    )
