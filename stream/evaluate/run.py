"""One evaluation from files to figures."""

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from msgspec import Struct

from stream.dataset import LABEL_TIME, Dataset
from stream.evaluate import inputs
from stream.evaluate.answers import AnswerReader, Answers, DecisionsFile
from stream.evaluate.prequential import Prequential
from stream.evaluate.scores import Report, Scores, frauds_of
from stream.evaluate.settings import Evaluation
from stream.model.learner import Learner
from stream.replay.journal_files import Head, JournalWriter
from stream.replay.log import local_topic_id
from stream.replay.rerun import RECORDED
from stream.stages.answers import DECISIONS
from stream.stages.stage import Record
from stream.stages.terminal import EXAMPLES
from stream.version import ENGINE_VERSION

AUTO = "auto"


class Files(Struct, frozen=True, kw_only=True):
    """What to read and write. `limit`: so many payments from the start. `without_source`: whose labels to leave out.
    `journals`: a directory for everything that `stream.replay.rerun` needs to give the same answers again."""

    payments: Path
    labels: Path
    updates: Path | None = None
    decisions: Path | None = None
    journals: Path | None = None
    limit: int | None = None
    without_source: str | None = None


class Watch:
    """What else to look at in a run: readers of its answers; kept of it are the journal `examples` and the learner."""

    def __init__(self, readers: Sequence[AnswerReader] = ()) -> None:
        self.readers = readers
        self.examples: list[Record] = []
        self.learner: Learner | None = None


class Evaluated(Struct, frozen=True, kw_only=True):
    """What came of it. Counts of records; times in ms; `cpu_us_per_payment` includes reading and writing files."""

    payments: int
    decided: int
    refused: int
    refused_by_cause: dict[str, int]
    repeated: int
    labels: int
    updates: int
    base_currency: str
    without_rate: int
    maturity_ms: int
    examples_fraud: int
    examples_legitimate: int
    model_versions: int
    model_versions_held: int
    seconds: float
    cpu_us_per_payment: float
    report: Report


def evaluate(
    files: Files,
    settings: Evaluation,
    *,
    from_ms: int | None = None,
    to_ms: int | None = None,
    watch: Watch | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluated:
    """Answer every payment of the file in order of time. `settings.base_currency` may be "auto".

    `from_ms`, `to_ms`: which payments the figures are about. `watch`: what else is kept of the run. Raises
    `DatasetError` naming file, column and row.
    """
    begun, cpu_begun = time.perf_counter(), time.process_time()
    with ExitStack() as stack:
        payments, labels = _prepared(files, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        dataset = Dataset(payments, labels, files.updates)
        if settings.base_currency == AUTO:
            settings = Evaluation(
                maturity_ms=settings.maturity_ms,
                base_currency=inputs.most_frequent_currency(payments),
                tick_ms=settings.tick_ms,
                clock_ms=settings.clock_ms,
                batch=settings.batch,
                plain=settings.plain,
            )
        scores = Scores(frauds_of(files.labels))
        readers: list[AnswerReader] = [scores, *(watch.readers if watch else ())]
        if files.decisions is not None:
            readers.append(stack.enter_context(DecisionsFile(files.decisions)))
        answers = Answers(readers)

        writers = {} if files.journals is None else _writers(files.journals, stack)

        def read(topic: str, records: Sequence[Record]) -> None:
            if topic in writers:
                writers[topic].add(records)
            if topic == EXAMPLES and watch is not None:
                watch.examples.extend(records)
            if topic == DECISIONS:
                answers.read(records)

        topics = RECORDED if writers else (DECISIONS,) if watch is None else (DECISIONS, EXAMPLES)
        way = Prequential(settings, read=read, topics=topics)
        for events in dataset.event_batches(clock_every_ms=settings.clock_ms):
            way.feed(events)
            progress(way.taken["payment"], dataset.payment_rows)
        way.finish()
        without_rate = inputs.without_rate(payments, settings.base_currency)
    counts = way.learn.learner.counts
    if watch is not None:
        watch.learner = way.learn.learner
    paid = way.taken["payment"]
    return Evaluated(
        payments=paid,
        decided=answers.counts["decided"],
        refused=answers.counts["refused"],
        refused_by_cause=dict(answers.causes),
        repeated=answers.counts["repeated"],
        labels=way.taken["label"],
        updates=way.taken["update"],
        base_currency=settings.base_currency,
        without_rate=without_rate,
        maturity_ms=settings.maturity_ms,
        examples_fraud=counts.frauds,
        examples_legitimate=counts.legitimate,
        model_versions=counts.published,
        model_versions_held=counts.held,
        seconds=round(time.perf_counter() - begun, 3),
        cpu_us_per_payment=round((time.process_time() - cpu_begun) / max(1, paid) * 1e6, 2),
        report=scores.report(from_ms, to_ms),
    )


def _writers(directory: Path, stack: ExitStack) -> dict[str, JournalWriter]:
    directory.mkdir(parents=True, exist_ok=True)
    heads = [
        Head(topic=topic, topic_id=local_topic_id(topic), partition=0, partitions=1, engine=ENGINE_VERSION)
        for topic in RECORDED
    ]
    return {head.topic: stack.enter_context(JournalWriter(directory, head)) for head in heads}


def _prepared(files: Files, room: Path) -> tuple[Path, Path]:
    """The files as they are to be evaluated; both are checked first."""
    payments, labels = files.payments, files.labels
    Dataset(payments, labels, files.updates)
    if files.limit is not None:
        payments = inputs.first_rows(payments, files.limit, room / "payments.parquet")
        labels = inputs.rows_until(labels, LABEL_TIME, inputs.last_event_ms(payments), room / "early-labels.parquet")
    if files.without_source is not None:
        labels = inputs.without_source(labels, files.without_source, room / "labels.parquet")
    return payments, labels
