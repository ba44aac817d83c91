"""`fraud evaluate`: how good are the answers, each given by what had been observed by then?"""

import datetime
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from stream import collector
from stream.cli.durations import parse_duration_ms
from stream.dataset import DatasetError
from stream.evaluate.figures import Figures
from stream.evaluate.run import AUTO, Evaluated, Files, evaluate
from stream.evaluate.settings import Evaluation
from topics.limits import DAY_MS, LIMITS_DEFAULT, Limits, contradictions

WRONG_USE: Final = 2
EPILOG: Final = "Example: fraud evaluate payments.parquet labels.parquet --maturity 7d --decisions decisions.parquet"


def maturity_ms_of(text: str | None) -> int:
    """The maturity horizon that an option names; the default if it is not set."""
    if text is None:
        return LIMITS_DEFAULT.maturity_ms
    maturity_ms = parse_duration_ms(text)
    found = contradictions(Limits(maturity_ms=maturity_ms))
    if found:
        raise typer.BadParameter(found[0], param_hint="--maturity")
    return maturity_ms


def day_ms(text: str | None) -> int | None:
    """The begin of a day (UTC), ms."""
    if text is None:
        return None
    try:
        day = datetime.date.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a day; write 2018-08-08") from error
    return (day - datetime.date(1970, 1, 1)).days * DAY_MS


def command(
    payments: Annotated[Path, typer.Argument(help="payments.parquet, in order of event_time.")],
    labels: Annotated[Path, typer.Argument(help="labels.parquet, in order of observed_at.")],
    updates: Annotated[Path | None, typer.Option(help="updates.parquet: what became of payments.")] = None,
    maturity: Annotated[
        str | None, typer.Option(help="7d, 12h: after so long without a fraud label a payment is legitimate.")
    ] = None,
    decisions: Annotated[Path | None, typer.Option(help="Write one row an answer to this Parquet file.")] = None,
    keep_journals: Annotated[
        Path | None, typer.Option(help="Write the journals here; `fraud journals verify` gives the same answers again.")
    ] = None,
    base_currency: Annotated[
        str, typer.Option(help="In which amounts are compared; auto: the most frequent of the first 10,000 payments.")
    ] = AUTO,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first payments.")] = None,
    without_source: Annotated[str | None, typer.Option(help="As if this source had sent no label.")] = None,
    from_day: Annotated[str | None, typer.Option("--from", help="First day (UTC) of the figures.")] = None,
    to_day: Annotated[str | None, typer.Option("--to", help="The figures end before this day (UTC).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Answer a file of payments off-line, through the stages of the live way, and measure the answers.

    Each payment is scored by a model that has learned only from what had been observed by then. A label counts from
    its observed_at on. Deleting later rows changes no earlier answer. Columns that no contract knows are not read.
    """
    errors = Console(stderr=True)
    settings = Evaluation(maturity_ms=maturity_ms_of(maturity), base_currency=base_currency)
    files = Files(
        payments=payments,
        labels=labels,
        updates=updates,
        decisions=decisions,
        journals=keep_journals,
        limit=limit,
        without_source=without_source,
    )
    from_ms, to_ms = day_ms(from_day), day_ms(to_day)
    columns = (
        TextColumn("evaluating"),
        BarColumn(),
        TaskProgressColumn(show_speed=True),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    collector.settle(collector.OFFLINE_YOUNG_MAX)
    try:
        with Progress(*columns, console=errors, transient=True) as progress:
            task = progress.add_task("evaluating")
            done = evaluate(
                files,
                settings,
                from_ms=from_ms,
                to_ms=to_ms,
                progress=lambda count, total: progress.update(task, completed=count, total=total),
            )
    except (DatasetError, OSError) as error:
        errors.print(str(error), style="red", highlight=False)
        raise typer.Exit(WRONG_USE) from error
    if as_json:
        print(msgspec.json.encode(done).decode())
        return
    _show(done)


def _figure(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _row(name: str, f: Figures) -> list[str]:
    return [
        name,
        f"{f.payments:,}",
        f"{f.frauds:,}",
        _figure(f.average_precision),
        _figure(f.auc),
        f"{_figure(f.cp100)} / {_figure(f.cp100_max)}",
        _figure(f.recall_half_percent),
        _figure(f.recall_one_percent),
        _figure(f.expected_over_observed, 2),
    ]


def _show(done: Evaluated) -> None:
    console = Console()
    table = Table(title="Quality of the answers, each by what had been observed by then")
    heads = ("month", "payments", "frauds", "AP", "AUC", "CP@100 / best", "recall 0.5 %", "recall 1 %", "exp/obs")
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left")
    for month in done.report.months:
        table.add_row(*_row(month.month, month.figures))
    table.add_section()
    table.add_row(*_row("all", done.report.figures))
    console.print(table)
    tenths = Table(title="Calibration by tenth of score")
    for i, head in enumerate(("probability", "payments", "frauds", "expected", "exp/obs")):
        tenths.add_column(head, justify="right" if i else "left")
    for decile in done.report.deciles:
        tenths.add_row(
            f"{decile.score_from:.2g} to {decile.score_to:.2g}",
            f"{decile.payments:,}",
            f"{decile.frauds:,}",
            f"{decile.expected:,.1f}",
            _figure(decile.expected_over_observed, 2),
        )
    console.print(tenths)
    unscored = done.report.figures.unscored
    console.print(
        f"{done.payments:,} payments: {done.decided:,} decided, {done.refused:,} refused, {done.repeated:,} repeated; "
        f"{unscored:,} came before there was a model\n"
        f"{done.labels:,} labels taught {done.examples_fraud:,} frauds and {done.examples_legitimate:,} legitimate "
        f"examples; {done.model_versions:,} versions, {done.model_versions_held:,} held by the gate\n"
        f"{done.seconds:,.0f} s, {done.cpu_us_per_payment:.0f} CPU us a payment",
        highlight=False,
    )
    if done.without_rate:
        console.print(
            f"{done.without_rate:,} payments are not in {done.base_currency} and have no rate: their amount is absent "
            f"from windows and features",
            highlight=False,
            style="yellow",
        )
