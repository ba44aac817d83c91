"""The guard, tried with `sleep` in place of Kafka: it is the same guard."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from stream.broker.process import GuardedProcess, is_alive, start_detached

GONE_AFTER_S = 10.0


def _gone(pid: int) -> bool:
    until = time.monotonic() + GONE_AFTER_S
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def _guarded(tmp_path: Path, *command: str) -> GuardedProcess:
    return GuardedProcess(list(command), console=tmp_path / "console.log", remove=None)


def test_kill_and_exit_code(tmp_path):
    guarded = _guarded(tmp_path, "sleep", "600")
    assert guarded.exit_code is None
    guarded.kill()
    assert guarded.exit_code == 128 + signal.SIGKILL
    assert _gone(guarded.pid)


def test_orderly_end_reaches_a_suspended_program(tmp_path):
    guarded = _guarded(tmp_path, "sleep", "600")
    os.killpg(guarded.pid, signal.SIGSTOP)
    guarded.end()
    assert guarded.exit_code == 128 + signal.SIGTERM


def test_exit_code_is_the_programs(tmp_path):
    guarded = _guarded(tmp_path, "sh", "-c", "echo told; exit 7")
    assert _gone(guarded.pid)
    guarded.end()
    assert guarded.exit_code == 7
    assert (tmp_path / "console.log").read_text() == "told\n"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_orphan_when_the_owner_dies(tmp_path, how):
    doomed = tmp_path / "doomed"
    doomed.mkdir()
    # The forked child inherits the owner's end of the guard's pipe, and outlives the owner: the hard case.
    script = f"""
        import os, time
        from pathlib import Path
        from stream.broker.process import GuardedProcess
        guarded = GuardedProcess(["sleep", "600"], console=Path({str(tmp_path)!r}) / "c", remove=Path({str(doomed)!r}))
        survivor = os.fork()
        if survivor == 0:
            os.setsid()
            time.sleep(60)
            os._exit(0)
        print(guarded.pid, survivor, flush=True)
        time.sleep(600)
    """
    owner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert owner.stdout is not None
    pid, survivor = map(int, owner.stdout.readline().split())
    try:
        assert psutil.pid_exists(pid)
        owner.send_signal(how)
        owner.wait()
        assert _gone(pid)
        until = time.monotonic() + GONE_AFTER_S
        while doomed.exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert not doomed.exists()
    finally:
        os.kill(survivor, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_no_orphan_when_the_guard_dies(tmp_path):
    guarded = _guarded(tmp_path, "sleep", "600")
    psutil.Process(guarded.pid).parent().kill()
    assert _gone(guarded.pid)
    guarded.kill()


def test_a_detached_program_is_known_by_its_start_too(tmp_path):
    pid, created_s = start_detached(["sleep", "600"], console=tmp_path / "c")
    assert is_alive(pid, created_s)
    assert not is_alive(pid, created_s - 60), "a later process with the same number is another process"
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not is_alive(pid, created_s)
