"""A real, single-node Apache Kafka on free loopback ports, for as long as a `with` block lasts.

>>> with EmbeddedBroker() as broker:          # doctest: +SKIP
...     AdminClient({"bootstrap.servers": broker.bootstrap}).list_topics()
"""

import atexit
import os
import shutil
import signal
import tempfile
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from stream.broker.errors import BrokerFailed
from stream.broker.kafka_home import KafkaHome, new_cluster_id, server_command
from stream.broker.ports import free_ports, listens
from stream.broker.probe import answers
from stream.broker.process import GuardedProcess, memory_bytes, signal_group
from stream.broker.security import ADMIN, BrokerSecurity
from stream.broker.server_properties import Node, server_properties

START_TIMEOUT_S = 120.0  # 3 s on an idle machine; 25 s were seen on two busy cores
HEAP_MB = 512
PROBE_EVERY_S = 0.05
PORT_TRIES_MAX = 3
PORT_TAKEN = "Address already in use"


class Quorum(NamedTuple):
    """The servers of a cluster. `controller_ports`: by node id, all on loopback."""

    controller_ports: Mapping[int, int]
    cluster_id: str

    def node_of(self, controller_port: int) -> int:
        return next(node for node, port in self.controller_ports.items() if port == controller_port)


class EmbeddedBroker:
    """A Kafka server that is broker and controller, and never outlives this process.

    `directory`: where it keeps its data and logs (see `kafka_home.py`); None: a temporary one, removed at the end.
    Ports are chosen at the first start and kept, so `kill()` and `start()` bring the same broker back.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        port: int | None = None,
        controller_port: int | None = None,
        quorum: Quorum | None = None,
        properties: Mapping[str, str] | None = None,
        security: BrokerSecurity | None = None,
        heap_mb: int = HEAP_MB,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        """`port`, `controller_port`: fixed ones; None: free ones. `properties` win over ours.

        `quorum`: of which this server is one (`cluster.py`); both ports must be given then. None: it is alone.
        `security`: None lets everybody on this machine in.
        """
        self._temporary = directory is None
        self.home = KafkaHome((directory or Path(tempfile.mkdtemp(prefix="fraudstream-kafka-"))).absolute())
        self._wanted_ports = (port, controller_port)
        self._ports: tuple[int, int] | None = None
        self._quorum = quorum
        self._properties = dict(properties or {})
        self.security = security
        self._heap_mb = heap_mb
        self._start_timeout_s = start_timeout_s
        self._process: GuardedProcess | None = None
        self._owner_pid = os.getpid()
        atexit.register(_stop_at_exit, weakref.ref(self))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def bootstrap(self) -> str:
        """`host:port` for clients. Raises `BrokerFailed` before the first start."""
        return self._node().bootstrap

    def client(self, user: str = ADMIN) -> dict[str, str]:
        """Configuration for a confluent-kafka client; `user` matters with security only."""
        return {"bootstrap.servers": self.bootstrap} | ({} if self.security is None else self.security.client(user))

    @property
    def pid(self) -> int | None:
        """Process id of the Java process; None if it does not run."""
        return self._process.pid if self._process is not None and self._process.exit_code is None else None

    @property
    def running(self) -> bool:
        """True while the Java process lives, stopped by a signal or not."""
        return self.pid is not None

    @property
    def memory_bytes(self) -> int | None:
        """Resident memory of the Java process."""
        return memory_bytes(self.pid) if self.pid is not None else None

    def start(self) -> Self:
        """Formats if need be, boots, and returns when clients are answered. Again after `stop` or `kill`: same ports.

        Raises `BrokerFailed` (with the end of its log), `JavaMissing`, `JarsRefused`, `JarsUnreachable`.
        """
        if self.running:
            return self
        try:
            for tries_left in reversed(range(PORT_TRIES_MAX)):
                try:
                    self._boot()
                    return self
                except BrokerFailed as error:
                    # Another program may take a free port between our look and Kafka's bind.
                    if None not in self._wanted_ports or PORT_TAKEN not in str(error) or not tries_left:
                        raise
                    self._ports = None
        except BaseException:
            self.kill()
            raise
        raise AssertionError("the loop returns or raises")

    def stop(self) -> None:
        """Ends the broker: in order if its directory stays, at once if that is temporary and goes with it."""
        if self._process is not None and not self._temporary:
            self._process.end()
        self.kill()
        if self._temporary and os.getpid() == self._owner_pid:
            shutil.rmtree(self.home.directory, ignore_errors=True)

    def kill(self) -> None:
        """SIGKILL, as a crash of the broker; its data stay, and `start()` brings it back."""
        if self._process is not None and os.getpid() == self._owner_pid:
            self._process.kill()
            self._process = None

    def suspend(self) -> None:
        """SIGSTOP: connections stay open and nothing is answered, until `resume()`."""
        if self.pid is not None:
            signal_group(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT after `suspend()`."""
        if self.pid is not None:
            signal_group(self.pid, signal.SIGCONT)

    def _boot(self) -> None:
        self.launch()
        self.await_answers()

    def launch(self) -> None:
        """Starts the server, and does not wait for it: in a quorum it answers only when most of its peers run."""
        broker_port, controller_port = self._choose_ports()
        node = self._node()
        quorum = self._quorum or Quorum({node.node_id: controller_port}, new_cluster_id())
        if listens(broker_port):
            # Else the probe would take the other program's answers, or its silence, for Kafka's.
            raise BrokerFailed(f"another program listens on {node.bootstrap} ({PORT_TAKEN})")
        security = self.security
        self.home.write_properties(
            server_properties(
                node, quorum.controller_ports, security=None if security is None else security.properties()
            )
        )
        self.home.format(quorum.cluster_id)
        self._process = GuardedProcess(
            server_command(self.home, heap_mb=self._heap_mb),
            console=self.home.console,
            remove=self.home.directory if self._temporary else None,
        )

    def await_answers(self) -> None:
        """Returns when clients are answered. Raises `BrokerFailed` with the end of the server's log."""
        assert self._process is not None, "launch it first"
        node, security = self._node(), self.security
        give_up_at_s = time.monotonic() + self._start_timeout_s
        while not answers(node.bootstrap, None if security is None else security.client()):
            if self._process.exit_code is not None:
                raise BrokerFailed(
                    f"Kafka on port {node.broker_port} ended with code {self._process.exit_code}.\n{self.home.tail()}"
                )
            if time.monotonic() > give_up_at_s:
                raise BrokerFailed(
                    f"Kafka on port {node.broker_port} did not answer in {self._start_timeout_s:.0f} s.\n"
                    f"{self.home.tail()}"
                )
            time.sleep(PROBE_EVERY_S)
        if security is not None:
            security.create_users(node.bootstrap)

    def _choose_ports(self) -> tuple[int, int]:
        if self._ports is None:
            first, second = free_ports(2)
            self._ports = (self._wanted_ports[0] or first, self._wanted_ports[1] or second)
        return self._ports

    def _node(self) -> Node:
        if self._ports is None:
            raise BrokerFailed("the broker has no address before its first start: call start(), or use `with`")
        return Node(
            node_id=1 if self._quorum is None else self._quorum.node_of(self._ports[1]),
            broker_port=self._ports[0],
            controller_port=self._ports[1],
            data_dir=self.home.data,
            extra=self._properties,
        )


def _stop_at_exit(reference: "weakref.ref[EmbeddedBroker]") -> None:
    broker = reference()
    if broker is not None:
        broker.stop()
