"""Where a partition begins and ends, asked for as long as its leader may still be on the way."""

import time

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

RETRY_S = 0.2
_PASSING = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError._TRANSPORT,
        KafkaError._TIMED_OUT,
    }
)


def watermarks(consumer: Consumer, topic: str, partition: int, *, timeout_s: float = 30.0) -> tuple[int, int]:
    """The first offset, and the one after the last. A topic that was just made is waited for.

    Raises `KafkaException` for a lasting error, or when `timeout_s` is over.
    """
    end_s = time.monotonic() + timeout_s
    while True:
        left_s = max(0.1, end_s - time.monotonic())
        try:
            return consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=min(left_s, 10.0))
        except KafkaException as error:
            cause = error.args[0]
            passing = isinstance(cause, KafkaError) and cause.code() in _PASSING
            if not passing or time.monotonic() >= end_s:
                raise
            time.sleep(RETRY_S)
