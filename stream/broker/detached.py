"""A broker that outlives the command which started it: `fraud broker start`, `stop`, `status`.

DIR/broker.json    its process, address and start time; there while it runs, or after a crash
DIR/broker.lock    held while a command starts or stops it
DIR/kafka/         its directory (see `kafka_home.py`)
"""

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Generator
from pathlib import Path

import msgspec

from stream.broker.directories import broker_dir
from stream.broker.embedded import HEAP_MB, PROBE_EVERY_S, START_TIMEOUT_S
from stream.broker.errors import BrokerFailed
from stream.broker.jars import KAFKA_VERSION
from stream.broker.kafka_home import KafkaHome, new_cluster_id, server_command
from stream.broker.ports import free_ports, listens
from stream.broker.probe import answers
from stream.broker.process import is_alive, memory_bytes, signal_group, start_detached
from stream.broker.server_properties import Node, server_properties

STOP_TIMEOUT_S = 30.0
NODE_ID = 1


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of broker.json.

    `created_s`: start of the process, seconds since the epoch; with `pid` it names one process for ever.
    """

    pid: int
    created_s: float
    bootstrap: str
    controller_port: int
    kafka_version: str


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What `fraud broker status --json` prints. `answers`: clients get metadata. `memory_bytes`: resident."""

    running: bool
    answers: bool
    directory: str
    log: str
    bootstrap: str | None = None
    pid: int | None = None
    up_s: float | None = None
    memory_bytes: int | None = None
    kafka_version: str | None = None


class DetachedBroker:
    """The one broker of a directory (default: `broker_dir()`)."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = (directory or broker_dir()).expanduser().absolute()
        self.home = KafkaHome(self.directory / "kafka")
        self._record = self.directory / "broker.json"

    def running(self) -> Running | None:
        """Its record, if its process lives."""
        record = self._last()
        return record if record is not None and is_alive(record.pid, record.created_s) else None

    def status(self) -> Status:
        """What can be said of it now; takes up to 3 s when it does not answer."""
        found = self.running()
        if found is None:
            return Status(running=False, answers=False, directory=str(self.directory), log=str(self.home.log))
        return Status(
            running=True,
            answers=answers(found.bootstrap),
            directory=str(self.directory),
            log=str(self.home.log),
            bootstrap=found.bootstrap,
            pid=found.pid,
            up_s=round(time.time() - found.created_s, 1),
            memory_bytes=memory_bytes(found.pid),
            kafka_version=found.kafka_version,
        )

    def start(
        self, *, port: int | None = None, heap_mb: int = HEAP_MB, start_timeout_s: float = START_TIMEOUT_S
    ) -> tuple[Running, bool]:
        """Starts it, unless it runs. Returns its record, and whether this call started it.

        `port`: None means the one it had, else a free one. Raises `BrokerFailed`, and then nothing is left running.
        """
        with self._locked():
            found = self.running()
            if found is not None:
                if port is not None and not found.bootstrap.endswith(f":{port}"):
                    raise BrokerFailed(f"the broker runs on {found.bootstrap} already: stop it first")
                return found, False
            return self._boot(port, heap_mb, start_timeout_s), True

    def stop(self) -> bool:
        """Ends it in order, after 30 s by SIGKILL. False if it did not run. Its data stay."""
        with self._locked():
            found = self.running()
            if found is not None:
                self._end(found, signal.SIGTERM)
            return found is not None

    def _boot(self, port: int | None, heap_mb: int, start_timeout_s: float) -> Running:
        node, controller_port = self._node(port)
        if listens(node.broker_port):
            raise BrokerFailed(f"another program listens on {node.bootstrap}: choose another --port, or end it")
        self.home.write_properties(server_properties(node, {NODE_ID: controller_port}))
        self.home.format(new_cluster_id())
        pid, created_s = start_detached(server_command(self.home, heap_mb=heap_mb), console=self.home.console)
        record = Running(
            pid=pid,
            created_s=created_s,
            bootstrap=node.bootstrap,
            controller_port=controller_port,
            kafka_version=KAFKA_VERSION,
        )
        try:
            # Written before it answers: should this command be killed meanwhile, `stop` still finds the process.
            self._write(record)
            give_up_at_s = time.monotonic() + start_timeout_s
            while not answers(node.bootstrap):
                if not is_alive(pid, created_s):
                    raise BrokerFailed(f"Kafka ended while it started.\n{self.home.tail()}")
                if time.monotonic() > give_up_at_s:
                    raise BrokerFailed(f"Kafka did not answer in {start_timeout_s:.0f} s.\n{self.home.tail()}")
                time.sleep(PROBE_EVERY_S)
        except BaseException:
            self._end(record, signal.SIGKILL)
            raise
        return record

    def _node(self, port: int | None) -> tuple[Node, int]:
        last = self._last()
        free = free_ports(2)
        # Clients were told the former address, so a restart keeps it.
        kept = None if last is None else int(last.bootstrap.rpartition(":")[2])
        broker_port = port or kept or free[0]
        controller_port = free[1] if free[1] != broker_port else free[0]
        node = Node(node_id=NODE_ID, broker_port=broker_port, controller_port=controller_port, data_dir=self.home.data)
        return node, controller_port

    def _end(self, record: Running, how: signal.Signals) -> None:
        signal_group(record.pid, how)
        kill_at_s = time.monotonic() + STOP_TIMEOUT_S
        while is_alive(record.pid, record.created_s):
            if time.monotonic() > kill_at_s:
                signal_group(record.pid, signal.SIGKILL)
            _reap(record.pid)
            time.sleep(PROBE_EVERY_S)

    def _last(self) -> Running | None:
        try:
            return msgspec.json.decode(self._record.read_bytes(), type=Running)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def _write(self, record: Running) -> None:
        part = self._record.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(record))
        part.replace(self._record)

    @contextlib.contextmanager
    def _locked(self) -> Generator[None]:
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "broker.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _reap(pid: int) -> None:
    """If the broker is our own child (started and stopped by one process), takes its exit code."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
