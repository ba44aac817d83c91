"""A broker's life on real Kafka. Each start costs seconds, so a test tells one story."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from stream.broker.embedded import EmbeddedBroker
from stream.broker.errors import BrokerFailed
from stream.broker.topic_admin import Topic, create_topics, partition_counts, topic_ids

pytestmark = pytest.mark.kafka
ROOT = Path(__file__).parents[2]


def _gone(pid: int, within_s: float = 10.0) -> bool:
    until = time.monotonic() + within_s
    while _lives(pid) and time.monotonic() < until:
        time.sleep(0.05)
    return not _lives(pid)


def _lives(pid: int) -> bool:
    # Not every container's first process collects the exit codes it inherits.
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_killed_and_started_again_on_its_directory_it_keeps_its_address_and_topics(tmp_path):
    with EmbeddedBroker(tmp_path / "kafka", properties={"num.io.threads": "3"}) as broker:
        client = {"bootstrap.servers": broker.bootstrap}
        create_topics(client, [Topic(name="kept", partitions=3)])
        before = (broker.bootstrap, topic_ids(client, ["kept"]))
        first_pid = broker.pid
        assert first_pid is not None
        loopback_only = {
            connection.laddr.ip.removeprefix("::ffff:")
            for connection in psutil.Process(first_pid).net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        }
        assert loopback_only == {"127.0.0.1"}

        broker.kill()
        assert _gone(first_pid)
        assert not broker.running
        broker.start()

        assert broker.pid != first_pid
        assert (broker.bootstrap, topic_ids(client, ["kept"])) == before
        assert partition_counts(client, ["kept"]) == {"kept": 3}
        last_pid = broker.pid
    assert last_pid is not None
    assert _gone(last_pid)
    assert (tmp_path / "kafka" / "data").is_dir()
    assert "[BrokerServer id=1] shut down completed" in (tmp_path / "kafka" / "server.log").read_text()


def test_no_orphan_and_no_directory_after_sigkill_of_the_owner():
    script = (
        "import time; from stream.broker.embedded import EmbeddedBroker; b = EmbeddedBroker().start();"
        "print(b.pid, b.home.directory, flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert owner.stdout is not None
    told_pid, directory = owner.stdout.readline().split()
    pid = int(told_pid)
    assert "java" in psutil.Process(pid).name()
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert _gone(pid)
    until = time.monotonic() + 10
    while Path(directory).exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(directory).exists()


def test_a_broker_that_can_not_start_says_why_and_leaves_nothing(tmp_path):
    broker = EmbeddedBroker(tmp_path / "kafka", properties={"num.io.threads": "many"})
    with pytest.raises(BrokerFailed, match=r"num\.io\.threads"):
        broker.start()
    assert not broker.running


def test_a_taken_port_is_an_error_when_it_was_asked_for(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        broker = EmbeddedBroker(tmp_path / "kafka", port=taken.getsockname()[1])
        with pytest.raises(BrokerFailed, match="another program listens"):
            broker.start()
    assert not broker.running


def test_a_temporary_directory_goes_with_the_broker_that_never_started():
    broker = EmbeddedBroker()
    directory = broker.home.directory
    assert directory.is_dir()
    broker.stop()
    assert not directory.exists()
