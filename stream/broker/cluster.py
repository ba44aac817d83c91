"""Three real Kafka servers on loopback, each broker and controller: replication 3, `min.insync.replicas` 2. For tests.

>>> with EmbeddedCluster(Path("kafka")) as cluster:          # doctest: +SKIP
...     cluster.nodes[2].kill()
...     AdminClient({"bootstrap.servers": cluster.bootstrap}).list_topics()
"""

from pathlib import Path
from types import TracebackType
from typing import Self

from stream.broker.embedded import EmbeddedBroker, Quorum
from stream.broker.kafka_home import new_cluster_id
from stream.broker.ports import free_ports

NODES = 3
HEAP_MB = 256


class EmbeddedCluster:
    """`directory`: one below it for each node. `nodes`: by node id; kill and start them one by one."""

    def __init__(self, directory: Path, *, heap_mb: int = HEAP_MB) -> None:
        ports = free_ports(2 * NODES)
        quorum = Quorum({node: ports[NODES + node - 1] for node in range(1, NODES + 1)}, new_cluster_id())
        self.nodes = {
            node: EmbeddedBroker(
                directory / f"node-{node}",
                port=ports[node - 1],
                controller_port=quorum.controller_ports[node],
                quorum=quorum,
                heap_mb=heap_mb,
            )
            for node in quorum.controller_ports
        }

    @property
    def bootstrap(self) -> str:
        """All three, for clients."""
        return ",".join(node.bootstrap for node in self.nodes.values())

    def start(self) -> Self:
        """Starts those that do not run, and returns when all answer. Raises `BrokerFailed`."""
        down = [node for node in self.nodes.values() if not node.running]
        try:
            for node in down:
                node.launch()
            for node in down:
                node.await_answers()
        except BaseException:
            self.kill()
            raise
        return self

    def kill(self) -> None:
        """SIGKILL to all at once."""
        for node in self.nodes.values():
            node.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
