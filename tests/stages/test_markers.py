"""Markers that a stage must not obey blindly: a model that cannot score, an engine that this release does not hold."""

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from stage_bench import Bench, Collected, control
from test_terminal_stage import placed

from stream.features import FEATURES_VERSION, MODEL_FEATURES
from stream.model.bins import CUTS, STRIDE
from stream.model.compiled import Compiled, Corrupt, build
from stream.rules.policy import Policy
from stream.stages import control as control_module
from stream.stages.control import ModelPayload, OtherEngine, refused_because
from topics.control import Engine, parse_control
from topics.journal import Marker
from topics.refusals import Refusal

FEATURES = len(MODEL_FEATURES)
POLICY = control("policy", Policy(mode="enforce", matured_frauds_min=0))


def model(offset: int, **changes: Any) -> Compiled:
    """A version that gives every payment the same probability; `changes` may spoil it, and its hash stays right."""
    compiled = build(
        offset=offset,
        features_version=FEATURES_VERSION,
        ready=True,
        frauds=1_000,
        cuts=np.full((FEATURES, CUTS), np.inf, np.float32),
        weights=np.zeros(FEATURES * STRIDE),
        intercept=float(offset),
        baseline=np.zeros(FEATURES),
    )
    compiled = msgspec.structs.replace(compiled, **changes)
    return msgspec.structs.replace(compiled, version=compiled.expected_version())


def marker(compiled: Compiled) -> Marker:
    payload = ModelPayload(
        version=compiled.version, offset=compiled.offset, features=FEATURES_VERSION, compiled=compiled.encode()
    )
    return control("model", payload)


def spoilt(compiled: Compiled, value: float) -> Compiled:
    weights = np.frombuffer(compiled.weights, np.float64).copy()
    weights[7] = value
    return model(compiled.offset, weights=weights.tobytes())


def decided(out: Collected) -> list[tuple[str | None, float | None]]:
    return [(value["versions"].get("model"), value.get("probability")) for value in out.values("decisions")]


BAD: dict[str, Callable[[], Compiled]] = {
    "nan": lambda: spoilt(model(2), np.nan),
    "infinite": lambda: spoilt(model(2), np.inf),
    "sums to no number": lambda: spoilt(model(2), 1e300),
    "nan intercept": lambda: model(2, intercept=np.nan),
    "too few weights": lambda: model(2, weights=b"\0" * 8),
    "other features": lambda: model(
        2,
        features=1,
        cuts=model(2).cuts[: len(model(2).cuts) // FEATURES],
        weights=bytes(STRIDE * 8),
        baseline=bytes(8),
    ),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_version_that_cannot_score_changes_nothing_and_is_named(bad: Callable[[], Compiled]) -> None:
    good, spoilt_one = model(1), bad()
    bench = Bench("terminal")
    out = bench.feed(POLICY, marker(spoilt_one), placed(1), marker(good), placed(2), marker(spoilt_one), placed(3))
    (first, alone), (second, scored), (third, as_before) = decided(out)
    assert (first, alone) == (None, None)  # rules alone
    assert second == third == good.version
    assert scored == as_before is not None
    assert bench.stage.decider.refused_model.startswith(spoilt_one.version)
    restarted = bench.again()
    assert restarted.stage.decider.refused_model.startswith(spoilt_one.version)
    assert decided(restarted.feed(placed(4))) == [(good.version, scored)]
    newer = model(3)
    assert decided(restarted.feed(marker(newer), placed(5)))[0][0] == newer.version
    assert restarted.again().stage.decider.refused_model == ""


def test_a_version_whose_weights_do_not_match_its_hash_stops_the_partition() -> None:
    damaged = msgspec.structs.replace(spoilt(model(2), np.nan), version=model(2).version)
    with pytest.raises(Corrupt, match="its content makes"):
        Bench("terminal").feed(POLICY, marker(damaged))


@pytest.fixture
def two_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_module, "ENGINE_VERSION", 2)


def engine(number: int) -> Marker:
    return control("engine", Engine(engine=number))


def engines(out: Collected) -> list[int]:
    return [value["versions"]["engine"] for value in out.values("decisions")]


def test_the_engine_changes_at_its_marker_and_not_with_the_release(two_engines: None) -> None:
    bench = Bench("terminal")
    out = bench.feed(placed(1), engine(2), placed(2))
    assert engines(out) == [1, 2]
    restarted = bench.again()
    assert engines(restarted.feed(placed(3), engine(1), placed(4))) == [2, 1]


def test_a_release_without_that_engine_refuses_marker_and_state(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OtherEngine, match="run a release that holds it"):
        Bench("terminal").feed(engine(2))
    with monkeypatch.context() as newer:
        newer.setattr(control_module, "ENGINE_VERSION", 2)
        bench = Bench("account")
        bench.feed(engine(2))
        bench.again()
    with pytest.raises(OtherEngine, match="engine 2 is in force"):
        Bench("account", bench.store, bench.offset)


def test_an_engine_that_this_release_does_not_hold_is_not_passed_on() -> None:
    record = parse_control(engine(2).body)
    assert not isinstance(record, Refusal)
    assert "this release holds 1 to 1" in (refused_because(record) or "")


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("settings", {"maturity_ms": 2**63, "road_ms": 2**63 + 1}),
        ("model", {"version": "v", "offset": 2**63, "features": FEATURES_VERSION, "compiled": ""}),
    ],
)
def test_a_number_that_no_64_bits_hold_is_not_passed_on(kind: str, payload: dict[str, Any]) -> None:
    """It would pass into every journal, and stop each partition at its next payment, or checkpoint."""
    body = msgspec.json.encode({"kind": kind, "by": "x", "why": "y", "payload": payload})
    record = parse_control(body)
    assert not isinstance(record, Refusal)
    assert refused_because(record) is not None
