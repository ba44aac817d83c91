"""One stage over a state in memory, fed items by hand; what it emits, sorted by where it goes."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from stream.stages.account import AccountStage
from stream.stages.stage import Header, Row, Step
from stream.stages.state import MemoryStore, State
from stream.stages.terminal import TerminalStage
from topics.control import encode_control
from topics.journal import LABELS, PAYMENTS, UPDATES, Item, Marker, PlacedRun, Raw
from topics.limits import Limits

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
NOW_MS = 1_735_689_600_000
SENDER = (b"p" * 16, 0)


class Collected:
    """An outbox that keeps everything."""

    def __init__(self) -> None:
        self.items: list[tuple[str, int, Item]] = []
        self.kept: list[tuple[str, int, bytes | None, bytes, list[Header]]] = []

    def journal(self, step: Step, topic: str, partition: int, item: Item) -> None:
        parts = item.spread() if isinstance(item, PlacedRun) else (item,)
        self.items += [(topic, partition, part) for part in parts]

    def records(self, steps: Sequence[Step], topic: str, rows: Iterable[Row]) -> None:
        self.kept += [(topic, *row) for _, row in zip(steps, rows, strict=True)]

    def of(self, kind: type) -> list[Any]:
        return [item for _, _, item in self.items if isinstance(item, kind)]

    def values(self, topic: str) -> list[dict[str, Any]]:
        return [msgspec.json.decode(value) for to, _, _, value, _ in self.kept if to == topic]


class Bench:
    """Feeds a stage a step at a time. `sender` per item; offsets count up."""

    def __init__(self, stage: str = "account", store: MemoryStore | None = None, offset: int = 0) -> None:
        self.store = store or MemoryStore()
        self.state = State(self.store, scanned=b"P")
        self.stage: Any
        if stage == "account":
            self.stage = AccountStage(
                self.state, partition=0, partitions=1, terminal_partitions=1, decision_partitions=1, plain=True
            )
        else:
            self.stage = TerminalStage(self.state, partition=0, account_partitions=2, decision_partitions=1, plain=True)
        self.kind = stage
        self.offset = offset

    def feed(self, *items: Item, sender: tuple[bytes, int] = SENDER) -> Collected:
        out = Collected()
        steps = [Step(self.offset + i, 0, NOW_MS, sender, item) for i, item in enumerate(items)]
        self.offset += len(items)
        self.stage.apply(steps, out)
        return out

    def again(self) -> "Bench":
        """The same partition after a checkpoint and a restart."""
        self.stage.settle()
        self.store.write(self.state.freeze())
        self.state.written()
        return Bench(self.kind, self.store, self.offset)


def limits(**changes: Any) -> Marker:
    body = encode_control(kind="settings", by="test", why="test", payload=Limits(**changes))
    return Marker(0, 0, "settings", body)


def control(kind: str, payload: object) -> Marker:
    return Marker(0, 0, kind, encode_control(kind=kind, by="test", why="test", payload=payload))


def payment(number: int = 1, *, at_ms: int = NOW_MS, value: bytes | None = None, **changes: Any) -> Raw:
    fields = {
        "payment_id": f"p{number}",
        "event_time": at_ms,
        "account_id": "a1",
        "amount": 1_000,
        "currency": "EUR",
        "terminal_id": "t1",
        **changes,
    }
    return Raw(number, 0, PAYMENTS, at_ms, msgspec.json.encode(fields) if value is None else value)


def label(number: int = 1, *, at_ms: int = NOW_MS, taken_ms: int | None = None, **changes: Any) -> Raw:
    fields = {"kind": "chargeback", "payment_id": f"p{number}", "account_id": "a1", "observed_at": at_ms, **changes}
    return Raw(number, 0, LABELS, at_ms if taken_ms is None else taken_ms, msgspec.json.encode(fields))


def clock(at_ms: int) -> Raw:
    return Raw(0, 0, LABELS, at_ms, msgspec.json.encode({"kind": "clock", "observed_at": at_ms}))


def update(number: int, kind: str, *, at_ms: int = NOW_MS) -> Raw:
    fields = {"kind": kind, "payment_id": f"p{number}", "account_id": "a1", "observed_at": at_ms}
    return Raw(number, 0, UPDATES, at_ms, msgspec.json.encode(fields))


def causes(out: Collected) -> Sequence[str]:
    return [value["cause"] for value in out.values("decisions")]
