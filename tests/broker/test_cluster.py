"""Three servers: one may die, and what was acknowledged is there."""

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from stream.broker.cluster import EmbeddedCluster
from stream.broker.topic_admin import Topic, create_topics, describe_topics

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(300)]  # six starts of Java


def test_a_killed_leader_loses_nothing_and_comes_back(tmp_path):
    with EmbeddedCluster(tmp_path) as cluster:
        client = {"bootstrap.servers": cluster.bootstrap, "log_level": 0}
        create_topics(client, [Topic(name="t", partitions=1)])
        partition = describe_topics(client, ["t"])["t"].partitions[0]
        assert len(partition.replicas) == 3
        producer = Producer({**client, "acks": "all", "enable.idempotence": True})
        producer.produce("t", b"before", partition=0)
        assert producer.flush(60) == 0

        cluster.nodes[partition.leader.id].kill()
        producer.produce("t", b"after", partition=0)
        assert producer.flush(60) == 0

        cluster.start()
        assert all(node.running for node in cluster.nodes.values())
        consumer = Consumer({**client, "group.id": "g", "enable.auto.commit": False})
        consumer.assign([TopicPartition("t", 0, 0)])
        assert [message.value() for message in consumer.consume(2, 60)] == [b"before", b"after"]
        consumer.close()
    assert not any(node.running for node in cluster.nodes.values())
