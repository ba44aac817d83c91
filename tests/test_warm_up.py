"""After `warm_up` nothing is left to compile, nor to load: whatever work calls has been called."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("kernels_at_work.py")


def _at_work(*options: str) -> dict[str, Any]:
    """In a process of its own: in this one other tests have called the kernels."""
    done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_nothing_is_compiled_at_work():
    found = _at_work()
    assert found["before"] > 20
    assert found["versions"] > 3
    assert not found["new"]


def test_without_it_much_would_be():
    assert len(_at_work("--cold")["new"]) > 15
