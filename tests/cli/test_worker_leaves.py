import signal
import subprocess
import sys

import pytest

FRAUD = [sys.executable, "-X", "importtime", "-c", "from stream.cli.main import main; main()"]


@pytest.mark.parametrize("module", ["numpy", "stream.worker.app"], ids=["loading", "made"])
def test_a_worker_that_still_loads_leaves_in_order_when_asked_to(module: str, tmp_path) -> None:
    worker = subprocess.Popen(
        [*FRAUD, "worker", "--bootstrap", "127.0.0.1:1", "--state-dir", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert worker.stderr is not None
    with worker:
        for line in worker.stderr:  # one for each module that has been loaded
            if line.rsplit("|", 1)[-1].strip() == module:
                worker.send_signal(signal.SIGTERM)
                break
        assert worker.wait(30) == 0
