"""Answers as they come from `decisions`, as rows: for a Parquet file, and for the figures."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from stream.stages.stage import Record
from topics.payment import TENANT_DEFAULT

ROW_GROUP: Final = 131_072
REPEAT: Final = ("answer", b"repeat")


class _Versions(Struct, gc=False):
    model: str | None = None


class Answer(Struct, gc=False):
    """As much of a decision as an evaluation needs."""

    outcome: str
    verdict: str
    versions: _Versions
    tenant_id: str | None = None
    payment_id: str | None = None
    account_id: str | None = None
    event_time: int | None = None
    probability: float | None = None
    reasons: list[str] = []
    cause: str | None = None


SCHEMA: Final[Any] = pa.schema(
    [
        ("payment_id", pa.string()),
        ("event_time", pa.int64()),
        ("account_id", pa.string()),
        ("tenant_id", pa.string()),
        ("probability", pa.float64()),
        ("verdict", pa.string()),
        ("outcome", pa.string()),
        ("model_version", pa.string()),
        ("reasons", pa.list_(pa.string())),
        ("cause", pa.string()),
    ]
)
"""One row an answer, in the order in which they were given; a repeat's answer is its first's and has no row.

`event_time`: ms UTC. `probability`: null while no model scores. `cause`: of a refusal; such a row may lack what could
not be read. `model_version`: null while there is none.
"""

decode_answers = msgspec.json.Decoder(list[Answer]).decode


class AnswerReader(Protocol):
    def add(self, answers: Sequence[Answer]) -> None: ...


class Answers:
    """Decodes answers once, counts them, and hands them on."""

    def __init__(self, readers: Sequence[AnswerReader]) -> None:
        self._readers = readers
        self.counts: Counter[str] = Counter()
        self.causes: Counter[str] = Counter()

    def read(self, records: Sequence[Record]) -> None:
        """Records of `decisions`, in order."""
        values = [record.value or b"" for record in records if REPEAT not in record.headers]
        self.counts["repeated"] += len(records) - len(values)
        answers = decode_answers(b"[%b]" % b",".join(values))
        causes = [answer.cause for answer in answers if answer.cause is not None]
        self.causes.update(causes)
        self.counts["refused"] += len(causes)
        self.counts["decided"] += len(answers) - len(causes)
        for reader in self._readers:
            reader.add(answers)


class DecisionsFile:
    """Writes answers as Parquet, a row group at a time. A context manager; the file is whole only after it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: list[Answer] = []
        self._writer: Any = None

    def __enter__(self) -> "DecisionsFile":
        self._writer = pq.ParquetWriter(self._path, SCHEMA, compression="zstd")
        return self

    def __exit__(self, *_: object) -> None:
        self._write(len(self._waiting))
        self._writer.close()

    def add(self, answers: Sequence[Answer]) -> None:
        self._waiting.extend(answers)
        while len(self._waiting) >= ROW_GROUP:
            self._write(ROW_GROUP)

    def _write(self, count: int) -> None:
        if not count:
            return
        rows, self._waiting = self._waiting[:count], self._waiting[count:]
        columns = {
            "payment_id": [row.payment_id for row in rows],
            "event_time": [row.event_time for row in rows],
            "account_id": [row.account_id for row in rows],
            "tenant_id": [row.tenant_id or TENANT_DEFAULT for row in rows],
            "probability": [row.probability for row in rows],
            "verdict": [row.verdict for row in rows],
            "outcome": [row.outcome for row in rows],
            "model_version": [row.versions.model for row in rows],
            "reasons": [row.reasons for row in rows],
            "cause": [row.cause for row in rows],
        }
        self._writer.write_table(pa.Table.from_pydict(columns, schema=SCHEMA), row_group_size=ROW_GROUP)
