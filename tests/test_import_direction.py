"""Imports point one way, from the outside in; the pure rooms import nothing that could decide differently twice.

The table below is design.md's "The house". A room that is not in it fails: whoever builds it says here what it may see.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).resolve().parents[1]

# Room -> the rooms of ours that it may import (itself always).
CORE: Final = frozenset(
    {
        "topics",
        "stream.errors",
        "stream.version",
        "stream.bits",
        "stream.windows",
        "stream.features",
        "stream.columns",
        "stream.model",
    }
)
INNER: Final = CORE | {"stream.rules", "stream.stages", "stream.runner"}
SEEN_BY: Final[dict[str, frozenset[str]]] = {
    "topics": frozenset(),
    "stream.errors": frozenset(),
    "stream.version": frozenset(),
    "stream.collector": frozenset(),
    "stream.bits": frozenset(),
    "stream.windows": frozenset({"topics", "stream.errors", "stream.bits"}),
    "stream.features": frozenset({"topics", "stream.errors", "stream.bits", "stream.windows"}),
    "stream.columns": frozenset({"topics", "stream.errors", "stream.bits", "stream.features"}),
    "stream.model": frozenset({"topics", "stream.errors", "stream.bits", "stream.features"}),
    "stream.rules": frozenset({"topics", "stream.errors", "stream.bits", "stream.features"}),
    "stream.stages": CORE | {"stream.rules"},
    # The runner drives stages by their protocol; stages know nothing of it.
    "stream.runner": frozenset({"topics", "stream.errors", "stream.bits", "stream.stages"}),
    "stream.self_check": CORE,
    "stream.settings": frozenset({"topics", "stream.errors"}),
    "stream.metrics": frozenset({"topics", "stream.errors"}),
    "stream.dataset": frozenset({"topics", "stream.errors"}),
    "stream.publish": frozenset({"topics", "stream.errors", "stream.dataset"}),
    "stream.broker": frozenset({"topics", "stream.errors", "stream.settings", "stream.stages"}),
    "stream.simulate": frozenset({"topics", "stream.errors", "stream.bits", "stream.dataset"}),
    "stream.replay": INNER | {"stream.settings", "stream.metrics", "stream.dataset"},
    "stream.evaluate": INNER | {"stream.settings", "stream.metrics", "stream.dataset", "stream.replay"},
    "stream.warm_up": INNER | {"stream.replay"},
    "stream.worker": INNER
    | {
        "stream.collector",
        "stream.self_check",
        "stream.warm_up",
        "stream.settings",
        "stream.metrics",
        "stream.broker",
    },
    "stream.control_files": frozenset({"topics", "stream.errors"}),
    "stream.in_force": INNER | {"stream.settings", "stream.broker"},
    "stream.operate": INNER | {"stream.settings", "stream.broker", "stream.control_files", "stream.in_force"},
    "stream.reconcile": frozenset({"topics", "stream.errors", "stream.broker"}),
    "stream.demo": INNER
    | {
        "stream.settings",
        "stream.dataset",
        "stream.broker",
        "stream.publish",
        "stream.simulate",
        "stream.evaluate",
        "stream.operate",
        "stream.reconcile",
    },
    "stream.cli": INNER
    | {
        "stream.collector",
        "stream.settings",
        "stream.metrics",
        "stream.dataset",
        "stream.broker",
        "stream.publish",
        "stream.simulate",
        "stream.replay",
        "stream.evaluate",
        "stream.worker",
        "stream.control_files",
        "stream.in_force",
        "stream.operate",
        "stream.reconcile",
        "stream.demo",
    },
}

PURE: Final = frozenset(INNER)
# What pure rooms may import from elsewhere. An allow-list: a module that nobody thought of is refused, too.
PURE_MODULES: Final = frozenset(
    {
        "__future__", "abc", "array", "base64", "binascii", "bisect", "collections", "contextlib", "copy",
        "dataclasses", "datetime", "decimal", "difflib", "enum", "fractions", "functools", "hashlib", "heapq",
        "ipaddress", "itertools", "json", "math", "operator", "re", "string", "struct", "textwrap", "types",
        "typing", "unicodedata", "urllib.parse", "zlib", "msgspec", "numba", "numpy",
        "xxhash",
    }
)  # fmt: skip
ONLY_IN: Final = {"river": "stream.model"}
# The clock, randomness, the disk, and what differs between two processes.
IMPURE_CALLS: Final = frozenset({"open", "input", "print", "hash", "id", "exec", "eval", "__import__", "breakpoint"})
IMPURE_ATTRIBUTES: Final = {
    ("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("date", "today"),
    ("np", "random"), ("numpy", "random"), ("np", "load"), ("numpy", "load"), ("np", "fromfile"), ("numpy", "fromfile"),
}  # fmt: skip

PICKLERS: Final = frozenset({"pickle", "_pickle", "marshal", "shelve", "joblib", "dill", "cloudpickle", "copyreg"})
PICKLING_NAMES: Final = frozenset({"allow_pickle", "read_pickle", "to_pickle"})


class Import(NamedTuple):
    line: int
    module: str


def _sources(root: Path) -> Iterator[tuple[str, Path, ast.Module]]:
    for top in ("stream", "topics"):
        for path in sorted((root / top).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            yield module, path.relative_to(root), ast.parse(path.read_text(encoding="utf-8"), str(path))


def _imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[Import]:
    """All of them: also those within functions, and those for type checkers only. Relative ones are resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if is_package else module.split(".")[:-1]
                package = package[: len(package) - node.level + 1]
                base = ".".join([*package, base] if base else package)
            for alias in node.names:
                # `from stream import windows` means the room stream.windows.
                yield Import(node.lineno, f"{base}.{alias.name}")


def _room_of(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] == "topics":
        return "topics"
    return ".".join(parts[:2]) if parts[0] == "stream" and len(parts) > 1 else None


def _is_pure_module(module: str) -> bool:
    return any(module == known or module.startswith(known + ".") for known in PURE_MODULES)


def direction_violations(root: Path) -> list[str]:
    """Each as `path:line: what`."""
    found: list[str] = []
    for module, path, tree in _sources(root):
        room = _room_of(module)
        if room is None:  # stream/__init__.py
            continue
        if room not in SEEN_BY:
            found.append(f"{path}:1: room {room} is not in the table of this test")
            continue
        for line, imported in _imports(tree, module, path.name == "__init__.py"):
            target = _room_of(imported)
            top = imported.split(".")[0]
            if target is not None:
                if target != room and target not in SEEN_BY[room]:
                    found.append(f"{path}:{line}: {room} may not import {target}")
            elif ONLY_IN.get(top, room) != room:
                found.append(f"{path}:{line}: {top} is imported in {ONLY_IN[top]} only")
            elif top in ("stream", "tests"):
                found.append(f"{path}:{line}: import the module that you need, not {imported}")
            elif room in PURE and top not in ONLY_IN and not _is_pure_module(imported):
                found.append(f"{path}:{line}: pure room {room} may not import {imported}")
        if room in PURE:
            found.extend(f"{path}:{line}: pure room {room} may not use {what}" for line, what in _impure_uses(tree))
    return list(dict.fromkeys(found))


def _impure_uses(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
            yield node.lineno, f"{node.func.id}()"
        elif isinstance(node, ast.Attribute):
            owner = node.value
            name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
            if (name, node.attr) in IMPURE_ATTRIBUTES:
                yield node.lineno, f"{name}.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module in ("numpy", "numpy.random"):
            for alias in node.names:
                if node.module == "numpy.random" or alias.name == "random":
                    yield node.lineno, "numpy.random"
        elif isinstance(node, ast.Import) and any(alias.name.startswith("numpy.random") for alias in node.names):
            yield node.lineno, "numpy.random"


def pickle_violations(root: Path) -> list[str]:
    """Imports of a pickler, its name as a codec or as a dynamic import, numpy's and pandas' doors to it, and
    rocksdict's, which pickles whatever it is given unless its options say `raw_mode=True`.
    """
    found: list[str] = []
    for module, path, tree in _sources(root):
        for line, imported in _imports(tree, module, path.name == "__init__.py"):
            if PICKLERS & set(imported.split(".")):
                found.append(f"{path}:{line}: imports {imported}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if PICKLERS & set(node.value.split("|")):
                    found.append(f"{path}:{node.lineno}: names {node.value!r}")
            elif isinstance(node, ast.keyword) and node.arg in PICKLING_NAMES:
                found.append(f"{path}:{node.value.lineno}: passes {node.arg}")
            elif isinstance(node, ast.Attribute) and node.attr in PICKLING_NAMES:
                found.append(f"{path}:{node.lineno}: uses {node.attr}")
        found.extend(f"{path}:{line}: {what}" for line, what in _rocksdict_pickling(tree, module, path))
    return found


def _rocksdict_pickling(tree: ast.Module, module: str, path: Path) -> Iterator[tuple[int, str]]:
    imported = {each.module for each in _imports(tree, module, path.name == "__init__.py")}
    if not any(each.split(".")[0] == "rocksdict" for each in imported):
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        raw = [
            keyword.value.value
            for keyword in node.keywords
            if keyword.arg == "raw_mode" and isinstance(keyword.value, ast.Constant)
        ]
        if called == "Options" and raw != [True]:
            yield node.lineno, "rocksdict.Options without raw_mode=True pickles"
        if called == "Rdict" and not any(keyword.arg == "options" for keyword in node.keywords) and len(node.args) < 2:
            yield node.lineno, "rocksdict.Rdict without options pickles"


def test_imports_point_inwards_and_pure_rooms_are_pure() -> None:
    assert direction_violations(ROOT) == []


def test_nothing_is_pickled() -> None:
    assert pickle_violations(ROOT) == []


def test_there_is_something_to_check() -> None:
    assert len(list(_sources(ROOT))) > 10


def test_the_table_itself_points_one_way() -> None:
    done: set[str] = set()
    while done != set(SEEN_BY):
        ready = {room for room, seen in SEEN_BY.items() if seen <= done} - done
        assert ready, f"these rooms see each other in a circle: {sorted(set(SEEN_BY) - done)}"
        done |= ready


def _plant(root: Path, path: str, text: str) -> Path:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("path", "text", "complaint"),
    [
        ("stream/windows/a.py", "import time", "may not import time"),
        (
            "stream/windows/a.py",
            "def f():\n    import random",
            "a.py:2: pure room stream.windows may not import random",
        ),
        ("stream/stages/a.py", "from confluent_kafka import Producer", "may not import confluent_kafka.Producer"),
        ("stream/runner/a.py", "from asyncio import sleep", "may not import asyncio.sleep"),
        ("stream/rules/a.py", "import os.path", "may not import os.path"),
        ("stream/model/a.py", "import rocksdict", "may not import rocksdict"),
        ("topics/a.py", "import faust, aiokafka", "may not import aiokafka"),
        ("stream/bits.py", "import threading", "may not import threading"),
        ("stream/features.py", "import socket", "may not import socket"),
        ("stream/stages/a.py", "import urllib.request", "may not import urllib.request"),
        ("stream/stages/a.py", "from river import linear_model", "river is imported in stream.model only"),
        ("stream/worker/a.py", "import river", "river is imported in stream.model only"),
        ("stream/rules/a.py", "from stream.stages.stage import Step", "stream.rules may not import stream.stages"),
        ("stream/rules/a.py", "from ..stages import stage", "stream.rules may not import stream.stages"),
        ("stream/rules/__init__.py", "from ..model import gam", "stream.rules may not import stream.model"),
        ("stream/stages/a.py", "from stream import worker", "stream.stages may not import stream.worker"),
        ("topics/a.py", "from stream.errors import OperatorError", "topics may not import stream.errors"),
        ("stream/worker/a.py", "import stream.cli.main", "stream.worker may not import stream.cli"),
        ("stream/broker/a.py", "from stream.worker import app", "stream.broker may not import stream.worker"),
        ("stream/stages/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import stream.cli", "a.py:3"),
        ("stream/attic/a.py", "", "room stream.attic is not in the table"),
        ("stream/worker/a.py", "import stream", "import the module that you need"),
        ("stream/stages/a.py", "x = hash('a')", "may not use hash()"),
        ("stream/stages/a.py", "import datetime\nx = datetime.datetime.now()", "may not use datetime.now"),
        ("stream/stages/a.py", "import numpy as np\nx = np.random.default_rng()", "may not use np.random"),
        ("stream/stages/a.py", "from numpy.random import default_rng", "may not use numpy.random"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, path: str, text: str, complaint: str) -> None:
    found = direction_violations(_plant(tmp_path, path, text))
    assert any(complaint in each for each in found), found


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("stream/stages/a.py", "import numpy as np\nimport math\nfrom collections.abc import Sequence"),
        ("stream/stages/a.py", "from stream.rules.policy import verdicts\nfrom topics.payment import Payment"),
        ("stream/stages/a.py", "from . import stage\nfrom .stage import Step"),
        ("stream/stages/a.py", "from stream import windows"),
        ("stream/model/a.py", "from river import linear_model"),
        ("stream/worker/a.py", "import time, asyncio, confluent_kafka\nfrom stream.runner.partition import Partition"),
        ("stream/cli/a.py", "import stream.worker.app"),
        ("stream/__init__.py", ""),
    ],
)
def test_what_the_house_allows_passes(tmp_path: Path, path: str, text: str) -> None:
    assert direction_violations(_plant(tmp_path, path, text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import marshal",
        "import shelve as s",
        "from joblib import dump",
        "import dill",
        "import cloudpickle",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import pandas as pd\npd.read_pickle('x')",
        "import importlib\nimportlib.import_module('pickle')",
        "import faust\nfaust.App('x', value_serializer='pickle')",
        "codec = 'binary|pickle'",
        "from rocksdict import Rdict\nRdict('x')",
        "from rocksdict import Options\nOptions()",
        "import rocksdict\nrocksdict.Options(raw_mode=False)",
    ],
)
@pytest.mark.parametrize("place", ["stream/worker/a.py", "topics/a.py"])
def test_a_planted_pickle_is_found(tmp_path: Path, place: str, text: str) -> None:
    assert pickle_violations(_plant(tmp_path, place, text))


@pytest.mark.parametrize(
    "text",
    [
        '"""Nothing is pickled here; no pickle."""\nx = "pickled herring"',
        "from rocksdict import Options, Rdict\nRdict('x', options=Options(raw_mode=True))",
        "from rocksdict import Options, Rdict\nRdict('x', Options(raw_mode=True))",
    ],
)
def test_speaking_of_pickles_is_no_crime(tmp_path: Path, text: str) -> None:
    assert pickle_violations(_plant(tmp_path, "stream/worker/a.py", text)) == []
