"""README.md says nothing that does not work: every fenced command runs, in the order in which it stands there.

Installing is `.ci/run`'s part; the demo runs in its short form; a line that ends in `&` goes on until the end.
"""

import ast
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
INSTALL = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[test,java]' && "
METRICS_PORT = "9464"
COMMAND_S_MAX = 600
READY_S_MAX = 180


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language.

    >>> all("fraud" in block for block in blocks("bash"))
    True
    """
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every line of every bash block."""
    return [line for block in blocks("bash") for line in block.splitlines() if line.strip()]


def test_the_first_two_commands_do_their_own_set_up():
    first, second = commands()[:2]
    assert first == INSTALL + ".venv/bin/fraud demo"
    assert second == INSTALL + ".venv/bin/pytest"
    assert sum(line.startswith("python3 -m venv") for line in commands()) == 2


def _fraud_commands() -> list[str]:
    pages = [README, *(path.read_text(encoding="utf-8") for path in sorted((ROOT / "deploy").glob("*.md")))]
    inline = [text for page in pages for text in re.findall(r"`(fraud [^`]+)`", page)]
    fenced = [part for line in commands()[2:] for part in line.split("|") if part.strip().startswith("fraud ")]
    return sorted({part.strip().rstrip("& ").strip() for part in [*inline, *fenced]})


@pytest.mark.parametrize("text", _fraud_commands())
def test_a_command_that_is_named_exists_with_its_options(text: str):
    from typer.main import get_command

    from stream.cli.commands import app

    found: Any = get_command(app)
    words = shlex.split(text)[1:]
    while words and hasattr(found, "commands"):
        assert words[0] in found.commands, f"no such command: {text}"
        found = found.commands[words.pop(0)]
    known = {option for parameter in found.params for option in parameter.opts}
    for word in words:
        assert not word.startswith("--") or word in known, f"{word} is no option of: {text}"


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A directory and an environment of one's own; whatever was left running in it is ended."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("FRAUD_") or name == "FRAUD_CACHE_DIR"
    }
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["FRAUD_BROKER_DIR"] = str(tmp_path / "broker")
    yield environment
    subprocess.run(["fraud", "broker", "stop"], env=environment, cwd=tmp_path, check=False, capture_output=True)


@pytest.mark.kafka
@pytest.mark.timeout(1800)
def test_every_fenced_command_runs(desk: dict[str, str], tmp_path: Path):
    port = _free_port()
    background: list[subprocess.Popen[bytes]] = []
    try:
        for line in [line.replace(METRICS_PORT, str(port)) for line in commands()[2:]]:
            if line.startswith("curl") and shutil.which("curl") is None:
                continue
            if line.endswith("&"):
                with (tmp_path / "background.log").open("ab") as log:
                    background.append(
                        subprocess.Popen(
                            ["bash", "-c", "exec " + line.rstrip("& ")],
                            env=desk,
                            cwd=tmp_path,
                            stdout=log,
                            stderr=log,
                            start_new_session=True,
                        )
                    )
                _await_port(port, background[-1], tmp_path / "background.log")
                continue
            if line == "fraud reconcile":
                _await_answers(desk, tmp_path)
                _blocker_reads(desk, tmp_path)
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", line],
                env=desk,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=COMMAND_S_MAX,
                check=False,
            )
            assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            if line == "fraud broker stop":
                break
        assert (tmp_path / "answers.parquet").stat().st_size > 0
    finally:
        for each in background:
            os.killpg(each.pid, signal.SIGKILL)
            each.wait()


def _blocker_reads(desk: dict[str, str], tmp_path: Path) -> None:
    """The reader in the README, as it stands, prints answers and refusals."""
    (reader,) = blocks("python")
    ast.parse(reader)
    found = json.loads(_output(["fraud", "broker", "status", "--json"], desk, tmp_path))
    reading = subprocess.Popen(
        [sys.executable, "-u", "-c", reader],
        env={**desk, "FRAUD_BOOTSTRAP": found["bootstrap"]},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(READY_S_MAX, reading.kill)
    watchdog.start()
    try:
        assert reading.stdout is not None
        wanted = {"p-1 approve", "None refused"}  # one whose fields cannot be read claims no payment id
        for printed in reading.stdout:
            wanted = {words for words in wanted if not printed.startswith(words)}
            if not wanted:
                return
    finally:
        watchdog.cancel()
        reading.kill()
        reading.wait()
    raise AssertionError(f"never printed: {wanted}")


def _await_answers(desk: dict[str, str], tmp_path: Path) -> None:
    """The tour goes on when a person would see that all is answered."""
    end_s = time.monotonic() + READY_S_MAX
    while subprocess.run(["fraud", "reconcile"], env=desk, cwd=tmp_path, capture_output=True, check=False).returncode:
        assert time.monotonic() < end_s, "not all payments are answered"
        time.sleep(1.0)


def _await_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end_s = time.monotonic() + READY_S_MAX
    while time.monotonic() < end_s:
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def _output(command: list[str], desk: dict[str, str], tmp_path: Path) -> str:
    return subprocess.run(command, env=desk, cwd=tmp_path, capture_output=True, text=True, check=True).stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
