"""The same journal gives the same bytes: in any batches, without numba, under another hash seed, in every release."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from golden_journal import RECORDED, SAID, Answered, answered, as_json, recorded
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.version import ENGINE_VERSION
from topics.journal import Judged, Marker, Placed, Raw, Repeat, decode_block

CHANGED = (
    "The answers to the golden journals have changed. If that is meant, it is a new engine: raise ENGINE_VERSION in "
    "stream/version.py, keep the old one readable, and record with `python tests/golden --record`."
)


@cache
def once() -> Answered:
    return answered()


def said() -> dict[str, object]:
    return json.loads(SAID.read_text())


def test_answers_change_only_with_the_engine() -> None:
    assert said()["engine"] == ENGINE_VERSION, "a new engine needs golden journals of its own: record them"
    assert as_json(once()) == said(), CHANGED


@pytest.mark.parametrize(
    ("batch", "plain", "checkpoint_every"), [(1, False, 7), (7, True, 0), (1_000, True, 1), (13, False, 3)]
)
def test_batches_checkpoints_and_numba_do_not_matter(batch: int, plain: bool, checkpoint_every: int) -> None:
    assert answered(sizes=(batch,), plain=plain, checkpoint_every=checkpoint_every) == once()


@settings(deadline=None, max_examples=8)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(0, 4))
def test_any_cut_of_the_journals_gives_the_same_bytes(sizes: list[int], checkpoint_every: int) -> None:
    assert answered(sizes=sizes, checkpoint_every=checkpoint_every) == once()


def test_another_process_without_numba_and_with_another_hash_seed_gives_the_same_bytes() -> None:
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).parent)],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONHASHSEED": "4711"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(ran.stdout) == as_json(once())


def test_the_journals_hold_what_a_day_holds() -> None:
    assert RECORDED.stat().st_size < 300_000
    records = [record for journal in recorded().values() for record in journal]
    items = [item for record in records for item in decode_block(record.value or b"").items]
    kinds = {type(item): sum(isinstance(other, type(item)) for other in items) for item in items}
    assert kinds[Placed] > 200
    assert kinds[Raw] > kinds[Placed]
    assert kinds[Judged] >= 10
    assert kinds[Repeat] >= 5
    assert {item.kind for item in items if isinstance(item, Marker)} >= {"settings", "policy", "model"}
