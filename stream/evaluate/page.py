"""A report on quality as one HTML file that needs nothing else: plots that answer the mouse, and their numbers."""

import datetime
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from stream.errors import ConfigurationError
from stream.evaluate.quality import Quality

MISSING: Final = "plots need the package plotly: pip install 'fraudstream[report]'"
INK: Final = "#1f3a5f"
ACCENT: Final = "#c0504d"
STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; }
th, td { padding: 0.2rem 0.8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
p.note { color: #555; max-width: 46rem; }
"""


def _figure(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def write_page(quality: Quality, path: Path, *, title: str) -> None:
    """Write the report, about 5 MB, most of it plotly's own code. Raises `ConfigurationError` where plotly is not."""
    try:
        import plotly.graph_objects as go  # pyright: ignore[reportMissingTypeStubs, reportMissingImports]
        import plotly.io as pio  # pyright: ignore[reportMissingTypeStubs, reportMissingImports]
    except ImportError as error:
        raise ConfigurationError(MISSING) from error
    graph: Any = go
    parts: list[str] = []
    first = True

    def plot(name: str, note: str, traces: list[Any], x: str, y: str, **layout: Any) -> None:
        nonlocal first
        figure = graph.Figure(traces)
        figure.update_layout(
            template="plotly_white", height=420, xaxis_title=x, yaxis_title=y, margin={"t": 20}, **layout
        )
        drawn = pio.to_html(figure, full_html=False, include_plotlyjs=first, div_id=f"plot-{len(parts)}")
        parts.append(f'<section><h2>{html.escape(name)}</h2><p class="note">{html.escape(note)}</p>{drawn}</section>')
        first = False

    _plots(quality, graph, plot)
    body = f"<h1>{html.escape(title)}</h1>{_summary(quality)}{''.join(parts)}{_tables(quality)}"
    path.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>{body}</body></html>\n",
        encoding="utf-8",
    )


def _plots(quality: Quality, graph: Any, plot: Any) -> None:
    curve = quality.curve
    if curve:
        plot(
            "Precision and recall",
            "Of the alerts at a threshold, how many are frauds; of the frauds, how many are alerts.",
            [
                graph.Scatter(
                    x=[p.recall for p in curve],
                    y=[p.precision for p in curve],
                    customdata=[p.probability for p in curve],
                    mode="lines",
                    line={"color": INK},
                    hovertemplate="recall %{x:.3f}<br>precision %{y:.3f}<br>probability %{customdata:.4f}",
                )
            ],
            "recall",
            "precision",
            yaxis_range=[0, 1.02],
            xaxis_range=[0, 1.0],
        )
    deciles = [d for d in quality.evaluated.report.deciles if d.payments]
    if deciles:
        mean = [d.expected / d.payments for d in deciles]
        share = [d.frauds / d.payments for d in deciles]
        plot(
            "Calibration",
            "Each point is a tenth of the scored payments: on the line, as many frauds came as were expected. Tenths "
            "without a fraud cannot be drawn on these scales.",
            [
                graph.Scatter(x=mean, y=mean, mode="lines", name="as expected", line={"color": "#999", "dash": "dot"}),
                graph.Scatter(
                    x=mean,
                    y=share,
                    mode="markers",
                    name="a tenth of payments",
                    marker={"color": ACCENT, "size": 9},
                    customdata=[d.frauds for d in deciles],
                    hovertemplate="expected %{x:.2e}<br>came %{y:.2e}<br>%{customdata} frauds",
                ),
            ],
            "mean probability",
            "share of frauds",
            xaxis_type="log",
            yaxis_type="log",
        )
    weeks = quality.weeks
    if weeks:
        days = [_day(week.begin_ms) for week in weeks]
        plot(
            "Learning over time",
            "Average precision of each week, and the frauds expected for each that came. Before the first version "
            "there is neither.",
            [
                graph.Scatter(
                    x=days, y=[w.average_precision for w in weeks], name="average precision", line={"color": INK}
                ),
                graph.Scatter(
                    x=days,
                    y=[w.expected_over_observed for w in weeks],
                    name="expected / observed",
                    line={"color": ACCENT, "dash": "dash"},
                ),
            ],
            "week",
            "",
            yaxis_range=[0, 2],
        )
    if quality.reasons:
        rows = quality.reasons[::-1]
        plot(
            "Precision by reason",
            "Of the answers that carry a reason, how many were frauds. An answer may carry up to five.",
            [
                graph.Bar(
                    x=[row.precision for row in rows],
                    y=[row.reason for row in rows],
                    orientation="h",
                    marker={"color": INK},
                    text=[f"{row.frauds:,} of {row.answers:,}" for row in rows],
                )
            ],
            "precision",
            "",
            yaxis_automargin=True,
        )
    if len(quality.ablation) > 1:
        whole, *groups = quality.ablation
        rows = groups[::-1]
        plot(
            "What a group of features is worth",
            "By how much average precision on the learner's later examples falls if it never sees the group. A group "
            "is named by the reason that its features stand for. Below about .005 a difference is noise.",
            [
                graph.Bar(
                    x=[whole.average_precision - row.average_precision for row in rows],
                    y=[f"{row.group} ({row.features})" for row in rows],
                    orientation="h",
                    marker={"color": INK},
                )
            ],
            "loss of average precision",
            "",
            yaxis_automargin=True,
        )


def _day(at_ms: int) -> str:
    return datetime.datetime.fromtimestamp(at_ms / 1_000, datetime.UTC).strftime("%Y-%m-%d")


def _summary(quality: Quality) -> str:
    done = quality.evaluated
    figures = done.report.figures
    rows: list[tuple[str, str]] = [
        ("payments in the figures", f"{figures.payments:,}"),
        ("frauds", f"{figures.frauds:,}"),
        ("answered before there was a model", f"{figures.unscored:,}"),
        ("average precision", _figure(figures.average_precision)),
        ("area under the ROC curve", _figure(figures.auc)),
        ("CP@100 (best attainable)", f"{_figure(figures.cp100)} ({_figure(figures.cp100_max)})"),
        ("recall at 1 % alerts", _figure(figures.recall_one_percent)),
        ("expected over observed frauds", _figure(figures.expected_over_observed)),
        ("versions published (held by the gate)", f"{done.model_versions:,} ({done.model_versions_held:,})"),
        ("seconds for the run", f"{done.seconds:,.0f}"),
    ]
    if quality.cost is not None:
        rows += [
            ("predict, us a payment in batches of 1,000", f"{quality.cost.predict_us:.2f}"),
            ("learn, us an example", f"{quality.cost.learn_us:.1f}"),
            ("a version, bytes", f"{quality.cost.weights_bytes:,}"),
        ]
    return _table(("", "measured"), rows)


def _tables(quality: Quality) -> str:
    deciles = [
        (
            f"{d.score_from:.2g} to {d.score_to:.2g}",
            f"{d.payments:,}",
            f"{d.frauds:,}",
            f"{d.expected:,.1f}",
            _figure(d.expected_over_observed, 2),
        )
        for d in quality.evaluated.report.deciles
    ]
    weeks = [
        (
            _day(w.begin_ms),
            f"{w.payments:,}",
            f"{w.frauds:,}",
            _figure(w.average_precision),
            _figure(w.expected_over_observed, 2),
            w.versions,
        )
        for w in quality.weeks
    ]
    return (
        "<h2>Calibration by tenth of score</h2>"
        + _table(("probability", "payments", "frauds", "expected", "expected / observed"), deciles)
        + "<h2>Weeks</h2>"
        + _table(("week", "payments", "frauds", "average precision", "expected / observed", "versions"), weeks)
    )
