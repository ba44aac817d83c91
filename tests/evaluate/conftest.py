"""A small simulated deployment, with enough days for the model to come, to mature and to change."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest

from stream.dataset import write_dataset
from stream.evaluate.run import Evaluated, Files, evaluate
from stream.evaluate.settings import Evaluation
from stream.simulate import SHORT_DELAY, SimulationSettings, simulate
from topics.limits import DAY_MS

START_MS = 1_735_689_600_000
DAYS = 15

Row = dict[str, Any]


class Answered(NamedTuple):
    """Every answer as a row, and the report."""

    rows: list[Row]
    done: Evaluated


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """About 15,000 payments of 15 days; labels after 1 to 14 days."""
    settings = SimulationSettings(
        seed=5,
        accounts=300,
        terminals=80,
        days=DAYS,
        payments_per_day=1_000.0,
        fraud_rate=0.05,
        label_delay=SHORT_DELAY,
        start_ms=START_MS,
    )
    paths = write_dataset(tmp_path_factory.mktemp("small"), simulate(settings).tables())
    return Files(payments=paths["payments"], labels=paths["labels"], updates=paths["updates"])


@pytest.fixture(scope="session")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Answered]:
    """Evaluates files with a maturity of three days, and settings as given."""

    def answer(files: Files, **settings: Any) -> Answered:
        out: Path = tmp_path_factory.mktemp("answers") / "decisions.parquet"
        given: dict[str, Any] = {"maturity_ms": 3 * DAY_MS, "base_currency": "auto", **settings}
        named = Files(
            payments=files.payments,
            labels=files.labels,
            updates=files.updates,
            decisions=out,
            journals=files.journals,
            limit=files.limit,
            without_source=files.without_source,
        )
        done = evaluate(named, Evaluation(**given))
        return Answered(pq.read_table(out).to_pylist(), done)

    return answer


@pytest.fixture(scope="session")
def journals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("journals")


@pytest.fixture(scope="session")
def whole(small: Files, answered: Callable[..., Answered], journals: Path) -> Answered:
    """The answers to all of it; the journals are kept."""
    return answered(Files(payments=small.payments, labels=small.labels, updates=small.updates, journals=journals))
