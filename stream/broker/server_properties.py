"""The server.properties of an embedded broker: a pure function of where it listens and who its peers are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

HOST = "127.0.0.1"
BROKER_LISTENER = "BROKER"
CONTROLLER_LISTENER = "CONTROLLER"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One Kafka server that is broker and controller at once.

    `data_dir`: its logs and metadata. `extra`: properties that win over ours.
    """

    node_id: int
    broker_port: int
    controller_port: int
    data_dir: Path
    extra: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def bootstrap(self) -> str:
        """`host:port` for clients."""
        return f"{HOST}:{self.broker_port}"


def server_properties(
    node: Node, peers: Mapping[int, int], *, security: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Properties of `node` in a quorum of `peers` (node id -> controller port, itself included).

    Small and quick rather than large: few partitions for offsets and transactions, no wait before the first
    rebalance, replication over at most three nodes. `security` turns the clients' listener to SASL_SSL.
    """
    replicas = str(min(3, len(peers)))
    in_sync_min = str(2 if len(peers) >= 3 else 1)
    protocol = "SASL_SSL" if security else "PLAINTEXT"
    return {
        "process.roles": "broker,controller",
        "node.id": str(node.node_id),
        "controller.quorum.voters": ",".join(f"{peer}@{HOST}:{port}" for peer, port in sorted(peers.items())),
        "listeners": (
            f"{BROKER_LISTENER}://{HOST}:{node.broker_port},{CONTROLLER_LISTENER}://{HOST}:{node.controller_port}"
        ),
        "advertised.listeners": f"{BROKER_LISTENER}://{HOST}:{node.broker_port}",
        "listener.security.protocol.map": f"{BROKER_LISTENER}:{protocol},{CONTROLLER_LISTENER}:PLAINTEXT",
        "inter.broker.listener.name": BROKER_LISTENER,
        "controller.listener.names": CONTROLLER_LISTENER,
        "log.dirs": str(node.data_dir),
        # A topic that nobody created has a name that somebody misspelt.
        "auto.create.topics.enable": "false",
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync_min,
        "offsets.topic.replication.factor": replicas,
        "offsets.topic.num.partitions": "8",
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync_min,
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": in_sync_min,
        "share.coordinator.state.topic.num.partitions": "4",
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "1000",
        # A broker that was killed may register again only when its former session has run out: 9 s by default.
        "broker.session.timeout.ms": "4000",
        "broker.heartbeat.interval.ms": "1000",
        # The default, 128 MB, would be a quarter of the heap; our compacted topics are small.
        "log.cleaner.dedupe.buffer.size": "16777216",
        "num.network.threads": "2",
        "num.io.threads": "4",
        "background.threads": "2",
        "num.recovery.threads.per.data.dir": "2",
        **(security or {}),
        **node.extra,
    }


def rendered(properties: Mapping[str, str]) -> str:
    """The text of a Java properties file.

    >>> rendered({"b": "x\\\\y", "a": "1"})
    'a=1\\nb=x\\\\\\\\y\\n'
    """
    return "".join(f"{name}={value.replace(chr(92), chr(92) * 2)}\n" for name, value in sorted(properties.items()))
