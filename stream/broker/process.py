"""The Java process of a broker: guarded (dies with us) or detached (outlives us)."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from stream.broker.errors import BrokerFailed

GUARD = Path(__file__).with_name("guard.py")
GUARD_ANSWER_S = 30
END_S = 30


class GuardedProcess:
    """A program that ends when this process does, however this process ends (see `guard.py`).

    `pid`: of the program, which leads a process group of its own.
    """

    def __init__(self, command: list[str], *, console: Path, remove: Path | None) -> None:
        """Starts `command`; `remove` is the directory that the guard deletes if this process dies."""
        guard = [sys.executable, "-I", "-S", str(GUARD), str(os.getpid()), str(remove or ""), *command]
        with console.open("ab") as errors:
            self._guard = subprocess.Popen(
                guard, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True, bufsize=0
            )
        assert self._guard.stdout is not None
        with self._guard.stdout as answer:
            told = answer.readline()
        if not told.strip():
            self._guard.kill()
            self._guard.wait()
            raise BrokerFailed(f"the broker's guard did not start {command[0]}; see {console}")
        self.pid = int(told)

    @property
    def exit_code(self) -> int | None:
        """None while the program runs; 128 + n if signal n ended it."""
        return self._guard.poll()

    def end(self) -> None:
        """Asks for an orderly end (SIGTERM, after 20 s SIGKILL), and waits for it."""
        if self._guard.poll() is None:
            with contextlib.suppress(BrokenPipeError):
                self._pipe_write(b"T")
            try:
                self._guard.wait(END_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._close()

    def kill(self) -> None:
        """SIGKILL to the program's group; returns when it is gone."""
        if self._guard.poll() is None:
            signal_group(self.pid, signal.SIGKILL)
            self._guard.wait()
        self._close()

    def _pipe_write(self, request: bytes) -> None:
        assert self._guard.stdin is not None
        self._guard.stdin.write(request)

    def _close(self) -> None:
        assert self._guard.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._guard.stdin.close()


def signal_group(pid: int, what: signal.Signals) -> None:
    """Sends a signal to the process group that `pid` leads; none is fine."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, what)


def start_detached(command: list[str], *, console: Path) -> tuple[int, float]:
    """Starts `command` so that it outlives us. Returns its pid and its start time (s since the epoch)."""
    with console.open("ab") as out:
        started = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, cwd="/"
        )
    return started.pid, psutil.Process(started.pid).create_time()


def is_alive(pid: int, created_s: float) -> bool:
    """True if `pid` still is the process that started at `created_s`, and no later one with its number."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - created_s) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def memory_bytes(pid: int) -> int | None:
    """Resident memory of a process; None if it is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return None
