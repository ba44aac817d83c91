"""Every kernel once, before a process has anything to do.

Numba compiles a kernel when it is first called with arguments of its types, which takes seconds on a machine that has
never done it, and loads it from its cache in some hundredths of one later. In the way of payments that would be a
stall of all partitions: some three seconds at the first payment, and again at the first label and the first version.
"""

import msgspec
import numpy as np

from stream.features import MODEL_FEATURES
from stream.model.learner import MATURITY_SOURCE, Learner, Published
from stream.replay.local import Local
from stream.replay.log import LocalLog
from stream.rules.policy import Policy
from stream.stages.account import TERMINAL_JOURNAL, AccountStage
from stream.stages.control import CONTROL, model_record
from stream.stages.intake import ACCOUNT_JOURNAL
from stream.stages.learn import fresh_learner, teach, teach_silences
from stream.stages.observe import keep
from stream.stages.terminal import TerminalStage
from stream.stages.wiring import Partitions
from topics.control import encode_control
from topics.journal import EXAMPLE_CORRECTED, EXAMPLE_LABELLED, EXAMPLE_MATURED, EXAMPLE_UNLABELLED, Example
from topics.limits import DAY_MS, LIMITS_DEFAULT

ONE = Partitions(payments=1, account=1, terminal=1, decisions=1)
ROUNDS = (1, 3, 30, 300)  # payments at a time: small rounds go other ways than large ones
START_MS = 1_750_000_000_000
FRAUDS = 130  # more than a calibration needs


def warm_up() -> None:
    """Call before the first payment. About half a second; a minute, on a machine that has never compiled these."""
    learner = fresh_learner()
    versions = [version for _ in range(2) if (version := _version(learner)) is not None]
    local = Local(LocalLog(), ONE)
    local.now_ms = START_MS
    policy = Policy(mode="enforce", challenge_from=1e-6, review_from=1e-6, decline_from=1e-6, matured_frauds_min=1)
    limits = msgspec.structs.replace(LIMITS_DEFAULT, maturity_ms=DAY_MS)
    for kind, payload in (("settings", limits), ("policy", policy)):
        record = encode_control(kind=kind, by="warm-up", why="warm-up", payload=payload)
        local.log.append(CONTROL, 0, record, at_ms=START_MS)
    for version in versions:
        local.log.append(CONTROL, 0, model_record(version.compiled, None), at_ms=START_MS)
    number = 0
    for size in ROUNDS:
        for i in range(number, number + size):
            local.log.append("payments", 0, _payment(i), at_ms=local.now_ms)
        local.pump()
        local.log.append("labels", 0, _label(number, local.now_ms), at_ms=local.now_ms)
        number += size
        local.now_ms += 2 * DAY_MS
        local.log.append("labels", 0, _clock(local.now_ms), at_ms=local.now_ms)
        local.pump()
        local.tick()
        local.pump()
        for topic in (ACCOUNT_JOURNAL, TERMINAL_JOURNAL):
            local.checkpoint((topic, 0))
            runner = local.runners[topic, 0]
            assert isinstance(runner.stage, AccountStage | TerminalStage)
            keep(runner.stage.windows, runner.state, 0)  # none stay in memory: the next round reads its own


def _payment(i: int) -> bytes:
    payment = {
        "payment_id": f"warm-{i}",
        "event_time": START_MS - DAY_MS + i * 60_000,
        "account_id": f"a{i % 7}",
        "amount": 100 + i * 37 % 9_000,
        "currency": "EUR",
        "channel": "pos",
    }
    return msgspec.json.encode(payment if i % 10 == 9 else {**payment, "terminal_id": f"t{i % 11}", "mcc": "5411"})


def _label(i: int, observed_ms: int) -> bytes:
    """Of the `i`-th payment."""
    label = {"payment_id": f"warm-{i}", "account_id": f"a{i % 7}", "observed_at": observed_ms, "kind": "chargeback"}
    return msgspec.json.encode(label)


def _clock(observed_ms: int) -> bytes:
    return msgspec.json.encode({"kind": "clock", "observed_at": observed_ms})


def _version(learner: Learner) -> Published | None:
    """Teaches what every kind of example can, and ticks; the rows are noise from a seed."""
    rng = np.random.default_rng(1)
    rows = [row.tobytes() for row in rng.random((5 * FRAUDS, len(MODEL_FEATURES)), np.float32)]

    def example(i: int, kind: int, *, fraud: bool) -> Example:
        was = (True, 1.0) if kind == EXAMPLE_CORRECTED else (False, 0.0)
        return Example(i, 0, kind, b"", START_MS, START_MS, fraud, 1.0, rows[i], False, MATURITY_SOURCE, *was)

    def learn(i: int, kind: int, *, fraud: bool = False) -> None:
        teach(learner, example(i, kind, fraud=fraud), np.frombuffer(rows[i], np.float32))

    for i in range(len(rows)):  # twice through the bins
        learn(i, EXAMPLE_UNLABELLED)
    for i in range(FRAUDS):
        learn(i, EXAMPLE_LABELLED, fraud=True)
        learn(FRAUDS + i, EXAMPLE_LABELLED)
    learn(0, EXAMPLE_CORRECTED)
    teach_silences(learner, [example(i, EXAMPLE_MATURED, fraud=False) for i in range(2 * FRAUDS, len(rows))])
    found = learner.tick(1)
    return found if isinstance(found, Published) else None
