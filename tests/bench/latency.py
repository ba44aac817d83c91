"""Payment acknowledged → answer readable: open loop; producer and consumer in processes of their own.

Beside it the same from the broker's own timestamp of the payment, which is before its acknowledgement: what a sender
that waits for a core sees late makes the first figure smaller than it is, and cannot touch the second.
"""

import math
import multiprocessing
import threading
import time
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import OFFSET_END, Consumer, Producer, TopicPartition
from load import make_load
from meter import Answers, BenchFailed, cpu_s
from ours import PARTITIONS, Labeller, deploy, publish_payments, worker

from stream.broker.offsets import watermarks

WARM_PAYMENTS = 2_000
WARM_S_MAX = 120.0
TICK_S = 0.002  # what falls due meanwhile is sent together: a thread that is woken for each takes a third of a core
ANSWER_S_MAX = 20.0  # after the last payment; an answer that comes later has not come


class _Answer(msgspec.Struct):
    payment_id: str


def produce(
    bootstrap: str, topic: str, payments: list[tuple[bytes, bytes]], ids: list[str], rate: float, out: "Queue[Any]"
) -> None:
    """Payment i is due at i / rate, however long sending takes. Gives back id → (time of the acknowledgement, ns; the
    broker's timestamp, ns of the same clock and up to 1 ms early)."""
    # Its linger is librdkafka's own, 5 ms: what it costs lies before the acknowledgement, where the clock starts.
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "enable.idempotence": True})
    acked: dict[str, tuple[int, int]] = {}
    wall_ns = time.time_ns() - time.monotonic_ns()
    over = threading.Event()

    def listen() -> None:
        """`poll` sleeps until there is an acknowledgement: nobody looks in vain."""
        while not over.is_set():
            producer.poll(0.2)

    def delivered(payment_id: str) -> Any:
        def report(error: Any, message: Any) -> None:
            if error is None:
                acked[payment_id] = (time.monotonic_ns(), message.timestamp()[1] * 1_000_000 - wall_ns)

        return report

    listener = threading.Thread(target=listen)
    listener.start()
    began = time.monotonic()
    sent = 0
    while sent < len(payments):
        for i in range(sent, min(len(payments), int((time.monotonic() - began) * rate) + 1)):
            key, value = payments[i]
            producer.produce(topic, value, key, on_delivery=delivered(ids[i]))
            sent += 1
        time.sleep(max(TICK_S, began + sent / rate - time.monotonic()))
    late_s = time.monotonic() - (began + len(payments) / rate)
    producer.flush(30)
    over.set()
    listener.join()
    out.put((acked, late_s))


def consume(
    bootstrap: str, topic: str, partitions: int, wanted: int, seconds: float, ready: Any, out: "Queue[Any]"
) -> None:
    """Reads answers from now on. Gives back id → time at which its answer was read (ns)."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "bench-reader",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 50,
        }
    )
    for partition in range(partitions):
        watermarks(consumer, topic, partition)
    consumer.assign([TopicPartition(topic, partition, OFFSET_END) for partition in range(partitions)])
    consumer.poll(1.0)
    ready.set()
    decode = msgspec.json.Decoder(_Answer).decode
    read: dict[str, int] = {}
    end_s = time.monotonic() + seconds
    while len(read) < wanted and time.monotonic() < end_s:
        message = consumer.poll(0.5)
        if message is None or message.error() is not None:
            continue
        at_ns = time.monotonic_ns()
        read.setdefault(decode(message.value() or b"").payment_id, at_ns)
    consumer.close()
    out.put(read)


def percentile(sorted_ms: list[float], q: float) -> float:
    """The smallest value that at least the share `q` does not exceed; NaN of nothing."""
    return sorted_ms[min(len(sorted_ms) - 1, math.ceil(q * len(sorted_ms)) - 1)] if sorted_ms else math.nan


def _figures(ms: list[float]) -> dict[str, float | None]:
    """Percentiles; null: it is a payment that was never answered."""
    ms.sort()
    figures = {name: percentile(ms, q) for name, q in (("p50", 0.5), ("p99", 0.99), ("p99_9", 0.999), ("max", 1.0))}
    return {name: None if math.isinf(value) else round(value, 2) for name, value in figures.items()}


def _per_second(read_ns: list[int], began_ns: int, seconds: float) -> float:
    """Answers read a second while the load was sent, without its first fifth."""
    first_ns, last_ns = began_ns + seconds / 5 * 1e9, began_ns + seconds * 1e9
    return sum(first_ns <= at_ns < last_ns for at_ns in read_ns) / (0.8 * seconds)


def latency(
    bootstrap: str,
    directory: Path,
    *,
    rate: float,
    seconds: float,
    tick_s: float,
    snapshot_s: float,
    partitions: int = PARTITIONS,
) -> dict[str, Any]:
    """p50, p99, p99.9 in ms; an unanswered payment counts as infinite (null in JSON). Raises `BenchFailed`."""
    measured = int(rate * seconds)
    load = make_load(WARM_PAYMENTS + measured, seed=2)
    deployment = deploy(bootstrap, directory, partitions)
    prefix = deployment.settings.prefix
    publish_payments(bootstrap, prefix + "payments", load.payments[:WARM_PAYMENTS])
    spawn = multiprocessing.get_context("spawn")
    payments = load.payments[WARM_PAYMENTS:]
    ids = [msgspec.json.decode(value)["payment_id"] for _, value in payments]
    labeller = Labeller(deployment, load)
    with worker(deployment, tick_s=tick_s, snapshot_s=snapshot_s) as process:
        _await_answers(bootstrap, prefix + "decisions", partitions, WARM_PAYMENTS)
        acks: Queue[Any] = spawn.Queue()
        reads: Queue[Any] = spawn.Queue()
        ready = spawn.Event()
        limit_s = seconds + ANSWER_S_MAX + 10
        reader = spawn.Process(
            target=consume,
            args=(bootstrap, prefix + "decisions", partitions, measured, limit_s, ready, reads),
            daemon=True,
        )
        reader.start()
        if not ready.wait(60):
            raise BenchFailed("the reader of the latency run does not start")
        sender = spawn.Process(
            target=produce, args=(bootstrap, prefix + "payments", payments, ids, rate, acks), daemon=True
        )
        sender.start()
        began_s, cpu_before_s = time.monotonic(), cpu_s(process.pid)
        while sender.is_alive() and acks.empty():
            labeller(WARM_PAYMENTS + int((time.monotonic() - began_s) * rate))
            time.sleep(0.2)
        acked, late_s = acks.get(timeout=60)
        worker_cores = (cpu_s(process.pid) - cpu_before_s) / (time.monotonic() - began_s)
        read: dict[str, int] = reads.get(timeout=limit_s + 30)
    if not acked:
        raise BenchFailed("no payment of the latency run was acknowledged")
    return {
        **_figures([(read[i] - at_ns) / 1e6 if i in read else math.inf for i, (at_ns, _) in acked.items()]),
        "from_append": _figures(
            [(read[i] - at_ns) / 1e6 if i in read else math.inf for i, (_, at_ns) in acked.items()]
        ),
        "unanswered": len(acked.keys() - read.keys()),
        "answered_per_s": round(_per_second(list(read.values()), min(at_ns for at_ns, _ in acked.values()), seconds)),
        "payments": len(acked),
        "rate": rate,
        "seconds": seconds,
        "partitions": partitions,
        "producer_late_s": round(max(0.0, late_s), 3),
        "worker_cores": round(worker_cores, 3),
    }


def _await_answers(bootstrap: str, topic: str, partitions: int, wanted: int) -> None:
    answers = Answers(bootstrap, topic, partitions)
    end_s = time.monotonic() + WARM_S_MAX
    while answers.count() < wanted:
        if time.monotonic() > end_s:
            raise BenchFailed(f"warming up: {answers.count()} of {wanted} answers after {WARM_S_MAX:.0f} s")
        time.sleep(0.2)
    answers.close()
