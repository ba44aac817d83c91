"""The simulated world: the same seed gives the same bytes, accounts have habits, and the truth comes late."""

import numpy as np
import pandas as pd
import pytest

from stream.dataset import PAYMENT_FIELDS, Dataset, encode_rows, write_dataset
from stream.simulate import SHORT_DELAY, LabelDelay, Simulation, SimulationSettings, demo_settings, simulate
from topics.codec import Parsed, ParsedLabel, ParsedUpdate, parse_label, parse_payment, parse_update
from topics.label import Label
from topics.limits import LIMITS_DEFAULT
from topics.truth import truth_of

DAY_MS = 86_400_000
SMALL = SimulationSettings(seed=5, accounts=300, terminals=200, days=45, payments_per_day=700, fraud_rate=0.03)


@pytest.fixture(scope="module")
def world() -> Simulation:
    return simulate(SMALL)


@pytest.fixture(scope="module")
def payments(world: Simulation) -> pd.DataFrame:
    frame = world.payments.to_pandas()
    kinds = world.truth.to_pandas().set_index("payment_id")["kind"]
    frame["fraud"] = frame["payment_id"].map(kinds).fillna("legitimate")
    local_ms = frame["event_time"] + frame["utc_offset_min"] * 60_000
    frame["hour"] = local_ms // 3_600_000 % 24
    return frame


@pytest.fixture(scope="module")
def labels(world: Simulation) -> pd.DataFrame:
    frame = world.labels.to_pandas()
    times = world.payments.to_pandas().set_index("payment_id")["event_time"]
    frame["delay_days"] = (frame["observed_at"] - frame["payment_id"].map(times)) / DAY_MS
    return frame


def test_the_same_seed_gives_the_same_bytes(tmp_path, world):
    first = write_dataset(tmp_path / "a", world.tables())
    second = write_dataset(tmp_path / "b", simulate(SMALL).tables())
    for name, path in first.items():
        assert path.read_bytes() == second[name].read_bytes(), name


def test_another_seed_gives_other_payments_under_other_ids(world):
    other = simulate(SimulationSettings(**{**{f: getattr(SMALL, f) for f in SMALL.__struct_fields__}, "seed": 6}))
    assert not set(other.payments["payment_id"].to_pylist()) & set(world.payments["payment_id"].to_pylist())
    assert other.payments["amount"].to_pylist()[:50] != world.payments["amount"].to_pylist()[:50]


def test_sizes_and_order_are_as_asked(world, payments):
    expected = SMALL.payments_per_day * SMALL.days
    assert abs(len(payments) - expected) < 0.1 * expected
    assert payments["event_time"].is_monotonic_increasing
    assert payments["payment_id"].is_unique
    end_ms = SMALL.start_ms + SMALL.days * DAY_MS
    assert payments["event_time"].between(SMALL.start_ms, end_ms - 1).all()
    assert 0.02 < (payments["fraud"] != "legitimate").mean() < 0.04
    for table, time in ((world.labels, "observed_at"), (world.updates, "observed_at")):
        assert np.all(np.diff(table[time].to_numpy()) >= 0)


def test_every_kind_of_fraud_is_there(payments):
    assert set(payments["fraud"]) == {
        "legitimate",
        "stolen",
        "testing",
        "terminal",
        "counterfeit",
        "takeover",
        "first_party",
        "mule",
        "app_scam",
    }


def test_every_record_is_what_the_contracts_parse(world, tmp_path):
    paths = write_dataset(tmp_path, world.tables())
    parse = {"payment": parse_payment, "label": parse_label, "clock": parse_label, "update": parse_update}
    seen = set()
    for event in Dataset(paths["payments"], paths["labels"], paths["updates"]).events():
        parsed = parse[event.kind](event.value, LIMITS_DEFAULT)
        assert isinstance(parsed, Parsed | ParsedLabel | ParsedUpdate), (event, parsed)
        assert parsed.unknown_fields == 0
        seen.add(event.kind)
    assert seen == {"payment", "label", "clock", "update"}


def test_no_payment_tells_that_it_is_fraud(world):
    assert set(world.payments.column_names) <= set(PAYMENT_FIELDS)
    row = encode_rows(world.payments.to_batches()[0].slice(0, 1), PAYMENT_FIELDS)[0]
    assert b"fraud" not in row


def test_accounts_have_hours_of_their_own(payments):
    honest = payments[payments["fraud"] == "legitimate"]
    busy = honest.groupby("account_id").filter(lambda group: len(group) >= 80)
    within = busy.groupby("account_id")["hour"].apply(lambda hours: (hours.value_counts(normalize=True) ** 2).sum())
    everyone = (honest["hour"].value_counts(normalize=True) ** 2).sum()
    assert within.median() > 1.15 * everyone


def test_accounts_have_favourite_places(payments):
    honest = payments[(payments["fraud"] == "legitimate") & payments["terminal_id"].notna()]
    busy = honest.groupby("account_id").filter(lambda group: len(group) >= 80)
    favourite = busy.groupby("account_id")["terminal_id"].apply(lambda ids: ids.value_counts(normalize=True).iloc[0])
    assert favourite.median() > 0.1
    assert honest["terminal_id"].value_counts(normalize=True).iloc[0] < 0.1


def test_accounts_have_amounts_of_their_own(payments):
    honest = payments[
        (payments["fraud"] == "legitimate") & (payments["mcc"] == "5411") & (payments["currency"] == "EUR")
    ]
    logs = np.log(honest["amount"].clip(lower=1))
    spread_within = logs.groupby(honest["account_id"]).std().median()
    assert spread_within < 0.97 * logs.std()


def test_card_present_payments_have_a_place_and_others_a_device(payments):
    present = payments["channel"].isin(["pos", "atm"])
    assert payments.loc[present, ["latitude", "longitude", "terminal_id", "entry_mode"]].notna().all().all()
    assert payments.loc[~present, ["device_id", "ip"]].notna().all().all()
    assert payments.loc[~present, "latitude"].isna().all()
    transfer = payments["channel"] == "transfer"
    assert payments.loc[transfer, "counterparty_id"].notna().all()
    assert payments.loc[transfer, "terminal_id"].isna().all()
    foreign = payments["currency"] != "EUR"
    assert foreign.any()
    assert (payments.loc[foreign, "billing_currency"] == "EUR").all()
    assert payments.loc[~foreign, "billing_amount"].isna().all()


def test_frauds_look_as_they_should(payments):
    honest = payments[payments["fraud"] == "legitimate"]
    by_kind = dict(list(payments.groupby("fraud")))
    counterfeit = by_kind["counterfeit"]
    assert (counterfeit["entry_mode"] == "magstripe").mean() > 0.7
    assert (counterfeit["merchant_country"] != counterfeit["issuer_country"]).mean() > 0.8
    assert by_kind["testing"]["amount"].median() < 250 < by_kind["testing"]["amount"].max()
    known_devices = set(honest["device_id"].dropna())
    assert not by_kind["takeover"]["device_id"].isin(known_devices).any()
    assert by_kind["app_scam"]["device_id"].isin(known_devices).mean() > 0.8
    assert by_kind["terminal"]["terminal_id"].nunique() < len(by_kind["terminal"]) / 2


def test_chargebacks_come_after_one_day_to_120(labels):
    frauds = labels[
        (labels["kind"] == "chargeback") & ~labels["reason_code"].str.startswith(("12", "13", "4853"), na=False)
    ]
    assert frauds["delay_days"].between(1.0, 120.0).all()
    assert 12 < frauds["delay_days"].median() < 27
    assert frauds["delay_days"].quantile(0.95) > 45


def test_short_delays_end_within_14_days():
    world = simulate(demo_settings(8_000, seed=3))
    times = dict(zip(world.payments["payment_id"].to_pylist(), world.payments["event_time"].to_pylist(), strict=True))
    rows = world.labels.select(["payment_id", "kind", "observed_at"]).to_pylist()
    delays = [
        (row["observed_at"] - times[row["payment_id"]]) / DAY_MS
        for row in rows
        if row["kind"] in ("chargeback", "confirmed_fraud")
    ]
    assert len(delays) > 60
    assert max(delays) <= SHORT_DELAY.max_days
    assert 2.5 < np.median(delays) < 6


def test_labels_are_late_early_wrong_and_missing(world, payments, labels):
    frauds = set(world.truth["payment_id"].to_pylist())
    proven = labels[labels["kind"].isin(["chargeback", "confirmed_fraud"]) & ~labels["reason_code"].isin(["4853"])]
    declined = set(world.updates.to_pandas().query("kind == 'declined'")["payment_id"])
    assert not set(labels["payment_id"]) & declined, "nobody loses anything by a declined payment"
    missed = frauds - declined - set(proven["payment_id"])
    assert 0.03 < len(missed) / len(frauds) < 0.3
    reports = labels[labels["kind"] == "fraud_report"]
    first = reports.merge(proven, on="payment_id", suffixes=("", "_proof"))
    assert len(first) > 50
    assert (first["observed_at"] < first["observed_at_proof"]).all()
    false_alarms = set(reports["payment_id"]) - frauds
    cleared = set(labels[labels["kind"] == "confirmed_legit"]["payment_id"])
    assert false_alarms
    assert false_alarms <= cleared


def test_what_is_no_fraud_is_never_labelled_as_one_in_the_end(world, labels):
    frauds = set(world.truth["payment_id"].to_pylist())
    columns = ["payment_id", "account_id", "observed_at", "kind", "reason_code", "dispute_id", "stage", "result"]
    of_payment: dict[str, list[Label]] = {}
    for row in world.labels.select(columns).to_pylist():
        of_payment.setdefault(row["payment_id"], []).append(Label(**row))
    said = {payment_id: truth_of(group).fraud for payment_id, group in of_payment.items()}
    assert {payment_id for payment_id, fraud in said.items() if fraud} <= frauds
    disputed = {row["payment_id"] for row in world.labels.to_pylist() if row["dispute_id"]} - frauds
    assert disputed
    assert all(said[payment_id] is None for payment_id in disputed)
    assert any(fraud is False for payment_id, fraud in said.items() if payment_id in frauds), "some were reversed"


def test_a_tiny_or_honest_world_works():
    tiny = simulate(SimulationSettings(accounts=1, terminals=1, days=1, payments_per_day=3, fraud_rate=0.0))
    assert tiny.truth.num_rows == 0
    assert simulate(SimulationSettings(accounts=2, terminals=3, days=2, payments_per_day=0.01)).payments.num_rows < 3
    assert simulate(SimulationSettings(accounts=30, terminals=20, days=3, payments_per_day=50)).payments.num_rows > 50


def test_settings_that_cannot_be_are_refused():
    for wrong in ({"accounts": 0}, {"fraud_rate": 0.9}, {"payments_per_day": 0.0}, {"start_ms": 5}, {"seed": -1}):
        with pytest.raises(ValueError):
            SimulationSettings(**wrong)
    with pytest.raises(ValueError):
        LabelDelay(median_days=200.0)
