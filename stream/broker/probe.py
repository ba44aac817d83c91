"""Asks a broker for its metadata: the only sign of readiness that means it."""

from collections.abc import Mapping

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from stream.broker.ports import listens

PROBE_TIMEOUT_S = 2.0


def answers(bootstrap: str, security: Mapping[str, str] | None = None) -> bool:
    """True if the broker at `host:port` (loopback) tells of at least one live broker within 2 s.

    `security`: librdkafka's options to log in with.
    """
    # Without this look the client would print a refused connection for every try.
    if not listens(int(bootstrap.rpartition(":")[2])):
        return False
    try:
        client = {"bootstrap.servers": bootstrap, "log_level": 0, "socket.timeout.ms": 2_000}
        admin = AdminClient({**client, **(security or {})})
        return bool(admin.list_topics(timeout=PROBE_TIMEOUT_S).brokers)
    except KafkaException:
        return False
