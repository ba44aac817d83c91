"""The report on quality: its numbers against plain computations, its page as a browser would get it."""

import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve
from typer.testing import CliRunner

from stream.cli.commands import app
from stream.evaluate.ablation import weighted_average_precision
from stream.evaluate.page import write_page
from stream.evaluate.quality import Quality, curve_of, quality, weeks_of
from stream.evaluate.run import Files
from stream.evaluate.settings import Evaluation
from topics.limits import DAY_MS

SECTIONS = (
    "Precision and recall", "Calibration", "Learning over time", "Precision by reason",
    "What a group of features is worth",
)  # fmt: skip


@pytest.fixture(scope="module")
def found(small: Files) -> Quality:
    return quality(small, Evaluation(maturity_ms=3 * DAY_MS, base_currency="auto"))


def test_the_curve_is_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    fraud = rng.random(3_000) < 0.1
    score = np.round(np.clip(rng.normal(0.2 + 0.3 * fraud, 0.2), 0.0, 1.0), 2)
    precision, recall, threshold = precision_recall_curve(fraud, score)
    theirs = {round(float(t), 2): (float(r), float(p)) for p, r, t in zip(precision, recall, threshold, strict=False)}
    points = curve_of(fraud, score)
    assert len(points) > 30
    for point in points:
        assert theirs[round(point.probability, 2)] == pytest.approx((point.recall, point.precision))
    assert points[-1].recall == 1.0


def test_the_weighted_average_precision_is_that_of_rows_repeated() -> None:
    rng = np.random.default_rng(2)
    fraud = rng.random(2_000) < 0.1
    score = rng.normal(fraud * 1.0)
    weight = np.where(fraud, 1, rng.integers(1, 5, 2_000))
    repeated = average_precision_score(np.repeat(fraud, weight), np.repeat(score, weight))
    assert weighted_average_precision(fraud, score, weight.astype(float)) == pytest.approx(repeated)


def test_weeks_hold_every_payment_once(found: Quality) -> None:
    figures = found.evaluated.report.figures
    assert sum(week.payments for week in found.weeks) == figures.payments
    assert sum(week.frauds for week in found.weeks) == figures.frauds
    assert all(week.begin_ms % (7 * DAY_MS) == 0 for week in found.weeks)
    assert max(week.versions for week in found.weeks) > 5
    times = np.array([0, 1, 7 * DAY_MS], np.int64)
    weeks = weeks_of(times, np.array([True, False, False]), np.array([0.5, -1.0, -1.0]), np.array([0, -1, -1]))
    assert [(w.payments, w.expected_over_observed, w.versions) for w in weeks] == [(2, 0.5, 1), (1, None, 0)]


def test_watching_changes_no_answer(small: Files, found: Quality, tmp_path: Path) -> None:
    from stream.evaluate.run import evaluate

    again = evaluate(small, Evaluation(maturity_ms=3 * DAY_MS, base_currency="auto"))
    assert again.report == found.evaluated.report


def test_what_a_model_costs_is_told(found: Quality) -> None:
    assert found.cost is not None
    assert 0.0 < found.cost.predict_us < 50.0
    assert found.cost.predict_us < found.cost.learn_us < 1_000.0
    assert 10_000 < found.cost.weights_bytes <= 65_536


def test_the_ablation_begins_with_the_whole_model(found: Quality) -> None:
    whole, *groups = found.ablation
    assert whole.group == ""
    assert sum(group.features for group in groups) <= whole.features
    assert len({group.average_precision for group in groups}) > 3
    assert min(group.average_precision for group in groups) < whole.average_precision


def test_reasons_count_answers(found: Quality) -> None:
    assert found.reasons
    assert all(0 <= row.frauds <= row.answers for row in found.reasons)
    assert all(0.0 <= row.precision <= 1.0 for row in found.reasons)


def test_the_page_stands_alone(found: Quality, tmp_path: Path) -> None:
    page = tmp_path / "quality.html"
    write_page(found, page, title="Payments <of> a test")
    text = page.read_text(encoding="utf-8")
    for section in SECTIONS:
        assert f"<h2>{section}</h2>" in text
    assert text.count("Plotly.newPlot(") >= len(SECTIONS)
    assert "<of>" not in text
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=", text)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")
def test_a_browser_draws_every_plot(found: Quality, tmp_path: Path) -> None:
    page = tmp_path / "quality.html"
    write_page(found, page, title="Quality")
    drawn = subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000",
            f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    assert drawn.count('class="main-svg"') >= 2 * len(SECTIONS)


def test_the_command_writes_both_forms(small: Files, tmp_path: Path) -> None:
    page = tmp_path / "q.html"
    given = ["quality", str(small.payments), str(small.labels), "--maturity", "3d", "--limit", "6000"]
    ran = CliRunner().invoke(app, [*given, "--ablation", "0", "--html", str(page), "--json"])
    assert ran.exit_code == 0, ran.output
    told = msgspec.json.decode(ran.stdout.splitlines()[-1])
    assert told["evaluated"]["payments"] == 6_000
    assert told["ablation"] == []
    assert page.stat().st_size > 1_000_000


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["quality", str(tmp_path / "none.parquet"), str(tmp_path / "none.parquet")])
    assert ran.exit_code == 2
    assert "none.parquet" in ran.output
