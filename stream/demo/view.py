"""What one sees while the demonstration runs, and what is said at its end."""

import time
from types import TracebackType
from typing import Final, Self

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stream.demo.report import Report
from stream.demo.run import Progress
from stream.demo.tally import Tally
from stream.evaluate.figures import average_precision

QUALITY_EVERY_S: Final = 1.0
LINE_EVERY_S: Final = 5.0
BARS: Final = "▁▂▃▄▅▆▇█"
BARS_MAX: Final = 24
CAUSES_SHOWN: Final = 6
LATEST: Final = 10_000


class View:
    """Redrawn in place on a terminal, else one line every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._phase = ""
        self._said_s = 0.0
        self._quality_s = 0.0
        self._quality = "–"
        self._stops = "–"
        self._rising = ""
        self._started_s = time.monotonic()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def look(self, progress: Progress, tally: Tally | None) -> None:
        """Called some times a second."""
        now_s = time.monotonic()
        if tally is not None and now_s - self._quality_s > QUALITY_EVERY_S:
            self._quality_s = now_s
            self._reckon(progress, tally)
        if self._live is not None:
            self._live.update(self._drawn(progress, tally))
        elif progress.phase != self._phase or (tally is not None and now_s - self._said_s > LINE_EVERY_S):
            self._said_s = now_s
            self._console.print(self._line(progress, tally), highlight=False, markup=False, soft_wrap=True)
        self._phase = progress.phase

    def _reckon(self, progress: Progress, tally: Tally) -> None:
        """Quality of the latest answers, against what the simulation knows; and how it rose."""
        n = min(len(tally.probability), len(tally.fraud), len(tally.stopped))
        if not n:
            return
        probability = np.array(tally.probability[:n])
        fraud = np.array(tally.fraud[:n], np.bool_)
        stopped = np.array(tally.stopped[:n], np.bool_)[-LATEST:]
        value = average_precision(fraud[-LATEST:], probability[-LATEST:])
        self._quality = "–" if value is None else f"{value:.3f}"
        self._stops = f"{fraud[-LATEST:][stopped].mean():.3f}" if stopped.any() else "–"
        width = max(1, progress.plan.payments // BARS_MAX)
        bars = ""
        for start in range(0, n - width // 2, width):
            part = average_precision(fraud[start : start + width], probability[start : start + width]) or 0.0
            bars += BARS[min(len(BARS) - 1, int(part * len(BARS)))]
        self._rising = bars

    def _line(self, progress: Progress, tally: Tally | None) -> str:
        head = f"{time.monotonic() - self._started_s:5.1f} s  {progress.phase}"
        if tally is None or not tally.answered:
            return head
        p50, p99 = _latency(tally)
        return (
            f"{head}: {progress.sent:,} payments, {tally.answered:,} answers, {len(tally.refused):,} refused, "
            f"{tally.labels_joined:,} of {progress.labels_sent:,} labels joined, {len(tally.versions)} versions, "
            f"average precision {self._quality}, latency p50 {p50} p99 {p99} ms"
        )

    def _drawn(self, progress: Progress, tally: Tally | None) -> Panel:
        plan = progress.plan
        title = f"[bold]Fraudstream[/bold] · {progress.phase} · {time.monotonic() - self._started_s:.0f} s"
        if tally is None:
            return Panel(Text("A real Apache Kafka and real workers are being made ready …"), title=title)
        p50, p99 = _latency(tally)
        bar = ProgressBar(total=plan.payments, completed=tally.answered, width=None)
        road = Table(title="payments", show_header=False, box=None)
        road.add_row("sent", f"{progress.sent:,}")
        road.add_row("answered", f"{tally.answered:,}")
        for outcome in ("approve", "challenge", "review", "decline", "refused"):
            road.add_row(f"  {outcome}", f"{tally.outcomes[outcome]:,}")
        road.add_row("latency p50", f"{p50} ms")
        road.add_row("latency p99", f"{p99} ms")
        refused = Table(title="refused, by cause", show_header=False, box=None)
        for cause, count in tally.letters.most_common(CAUSES_SHOWN):
            refused.add_row(cause, f"{count:,}")
        rest = sum(tally.letters.values()) - sum(count for _, count in tally.letters.most_common(CAUSES_SHOWN))
        refused.add_row(f"{max(0, len(tally.letters) - CAUSES_SHOWN)} others", f"{rest:,}")
        learned = Table(title="learned", show_header=False, box=None)
        learned.add_row("labels sent", f"{progress.labels_sent:,}")
        learned.add_row("joined", f"{tally.labels_joined:,}")
        learned.add_row("examples", f"{tally.examples_in_all:,}")
        learned.add_row("model versions", f"{len(tally.versions)}")
        learned.add_row("  held back", f"{tally.held_versions}")
        learned.add_row("  latest", tally.versions[-1].name if tally.versions else "rules alone")
        quality = Table(title=f"of the latest {LATEST:,}", show_header=False, box=None)
        quality.add_row("average precision", f"[bold green]{self._quality}[/]")
        quality.add_row("fraud among the stopped", self._stops)
        quality.add_row("from the start on", self._rising)
        side_by_side = Table.grid(padding=(0, 3))
        side_by_side.add_row(road, refused, learned, quality)
        return Panel(Group(Padding(bar, (0, 0, 1, 0)), side_by_side), title=title)


def _latency(tally: Tally) -> tuple[str, str]:
    recent = list(tally.recent_ms)
    if not recent:
        return "–", "–"
    p50, p99 = np.percentile(np.array(recent), [50, 99])
    return f"{p50:.0f}", f"{p99:.0f}"


def summary(report: Report, console: Console) -> None:
    """The end of the demonstration, for people."""
    table = Table(title="What happened", show_header=False)
    latency = report.latency_ms
    table.add_row("payments", f"{report.payments:,} ({report.repeats_sent} of them sent twice)")
    table.add_row("answers", f"{report.decisions:,}: {report.missing} missing, {report.conflicting} conflicting")
    table.add_row("refused", f"{report.bad_refused} of {report.bad_injected} bad payments, each by its cause")
    table.add_row("outcomes", ", ".join(f"{count:,} {outcome}" for outcome, count in report.outcomes.items()))
    table.add_row("learned", f"{report.labels:,} labels, {report.examples:,} examples")
    table.add_row("models", f"{report.model_versions} versions decided; {report.model_versions_held} were held back")
    table.add_row("latency", f"p50 {latency.p50:g} ms, p99 {latency.p99:g} ms, p999 {latency.p999:g} ms")
    table.add_row("pace", f"{report.payments_per_second:,.0f} payments/s, chosen for the show; {report.seconds:.0f} s")
    console.print(table)
    quality = Table(
        title=f"Average precision on the last {report.compared_payments:,} payments, {report.compared_frauds} frauds"
    )
    quality.add_column("ranked by")
    quality.add_column("average precision", justify="right")
    for name, value in (
        ("the model's last version, which decided them", report.average_precision),
        ("the model's first version", report.average_precision_first_version),
        ("rules alone", report.average_precision_rules_only),
        ("amount alone", report.average_precision_amount_only),
    ):
        quality.add_row(name, "–" if value is None else f"{value:.3f}")
    console.print(quality)
    for failure in report.failures:
        console.print(failure, style="bold red")
    console.print("What to try next:", style="bold")
    for command, what in _next_steps(report):
        console.print(f"  [cyan]{command}[/cyan]\n      {what}", highlight=False)


def _next_steps(report: Report) -> list[tuple[str, str]]:
    if report.embedded_broker or not report.prefix:
        return [
            ("fraud broker start", "a broker that stays, for the commands below"),
            ("fraud init --from earliest --mode enforce", "topics and settings, once"),
            ("fraud worker --state-dir state/a", "in a second terminal; a third one may run another, with state/b"),
            ("fraud simulate --days 30 --out data", "a data set of your own size"),
            ("fraud publish data/payments.parquet --labels data/labels.parquet --rate 500", "as a processor would"),
            ("fraud reconcile", "is every payment answered, once?"),
        ]
    place = f"--bootstrap {report.bootstrap} --prefix {report.prefix}"
    return [
        (f"fraud reconcile {place}", "is every payment answered, once?"),
        (f"fraud topics check {place}", "what stays on the broker"),
    ]
