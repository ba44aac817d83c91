"""A broker that asks for names: who may read and write what, and the worker behind TLS and SCRAM."""

import importlib.util
import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trustme
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from cryptography.hazmat.primitives import serialization

from stream.broker.acls import GROUPS_OF_ON_CALL, PRINCIPALS, Acl, apply_acls, wanted_acls
from stream.broker.embedded import EmbeddedBroker
from stream.broker.errors import TopicsFailed
from stream.broker.security import BrokerSecurity
from stream.broker.topic_admin import create_topics, topic_ids
from stream.operate import initialise
from stream.settings import Settings
from topics.catalogue import catalogue
from topics.journal import tick_block

pytestmark = pytest.mark.kafka

_spec = importlib.util.spec_from_file_location("live_worker", Path(__file__).with_name("live_worker.py"))
live_worker = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(live_worker)

PREFIX = "matrix."
GROUP = "detectors"
ANYONE = "anyone"
ANSWER_S = 60.0
PAYMENTS = 500

# Written out, not taken from the catalogue: a slip there must fail here.
ALLOWED = {
    # topic: (readers, writers)
    "payments": ({"detector", "oncall"}, {"processor"}),
    "updates": ({"detector", "oncall"}, {"processor"}),
    "labels": ({"detector", "oncall"}, {"label_feed"}),
    "account-journal": ({"detector", "oncall"}, {"detector"}),
    "terminal-journal": ({"detector", "oncall"}, {"detector"}),
    "examples": ({"detector", "oncall"}, {"detector"}),
    "control": ({"detector", "oncall", "operator"}, {"detector", "operator"}),
    "decisions": ({"detector", "blocker", "oncall"}, {"detector"}),
    "decision-details": ({"detector", "oncall"}, {"detector"}),
    "dead-letters": ({"detector", "oncall", "operator"}, {"detector"}),
}


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    certificate = directory / "broker.pem"
    certificate.write_bytes(pem + b"".join(one.bytes() for one in issued.cert_chain_pems))
    authority.cert_pem.write_to_path(directory / "ca.pem")
    security = BrokerSecurity(
        certificate=certificate,
        ca=directory / "ca.pem",
        users={who: secrets.token_urlsafe(16) for who in (*PRINCIPALS, "stranger")},
        admin_password=secrets.token_urlsafe(16),
    )
    with EmbeddedBroker(security=security) as started:
        yield started


@pytest.fixture(scope="module")
def matrix(broker):
    """The catalogue's topics, one record in each, and the ACLs."""
    wanted = catalogue(PREFIX, 1)
    create_topics(broker.client(), list(wanted.values()))
    applied = apply_acls(broker.client(), wanted_acls(wanted.values(), group=GROUP))
    assert applied.beyond == []
    # Whether a topic may be read is asked here, and not whether a group may be named.
    groups = [
        Acl(principal=f"User:{who}", resource="group", name=ANYONE, operation="READ")
        for who in (*PRINCIPALS, "stranger")
    ]
    apply_acls(broker.client(), groups)
    producer = Producer(_quiet(broker.client()))
    for topic in wanted.values():
        producer.produce(topic.name, b"{}", partition=0)
    assert producer.flush(ANSWER_S) == 0
    return broker


def _quiet(client: dict) -> dict:
    return {**client, "log_level": 0}


def _hidden(client: Consumer | Producer, topics: list[str]) -> dict[str, str]:
    """Topic → error, of those that the broker does not even describe: who may read or write one, may describe it.

    Asked first, because librdkafka waits silently, and for ever, for such a topic.
    """
    found = {topic: client.list_topics(topic, timeout=ANSWER_S).topics[topic].error for topic in topics}
    return {topic: error.name() for topic, error in found.items() if error is not None}


def _reads(client: dict, topics: list[str]) -> dict[str, str]:
    """Topic → `allowed`, or the name of the error."""
    consumer = Consumer(
        {**_quiet(client), "group.id": ANYONE, "enable.auto.commit": False, "auto.offset.reset": "error"}
    )
    try:
        found = _hidden(consumer, topics)
        consumer.assign([TopicPartition(topic, 0, 0) for topic in topics if topic not in found])
        give_up_s = time.monotonic() + ANSWER_S
        while len(found) < len(topics) and time.monotonic() < give_up_s:
            message = consumer.poll(0.5)
            if message is not None:
                error = message.error()
                found[message.topic()] = "allowed" if error is None else error.name()
    finally:
        consumer.close()
    return found


def _writes(client: dict, topics: list[str]) -> dict[str, str]:
    """Topic → `allowed`, or the name of the error. A record that is let through does no harm."""
    # Not idempotent: who may write nowhere at all would be refused for the whole cluster, not for a topic.
    producer = Producer({**_quiet(client), "message.timeout.ms": int(ANSWER_S * 1000)})
    found = _hidden(producer, topics)
    heard: list[tuple[str, KafkaError | None]] = []
    for topic in topics:
        if topic not in found:
            producer.produce(topic, b"{}", partition=0, on_delivery=lambda e, m: heard.append((m.topic(), e)))
    producer.flush(ANSWER_S)
    return found | {topic: "allowed" if error is None else error.name() for topic, error in heard}


@pytest.mark.parametrize("who", [*PRINCIPALS, "stranger"])
def test_matrix_of_readers_and_writers(matrix, who):
    names = [PREFIX + topic for topic in ALLOWED]
    assert set(ALLOWED) == set(catalogue())
    client = matrix.client(who)
    reads, writes = _reads(client, names), _writes(client, names)
    denied = "TOPIC_AUTHORIZATION_FAILED"
    expected_reads = {PREFIX + t: "allowed" if who in readers else denied for t, (readers, _) in ALLOWED.items()}
    expected_writes = {PREFIX + t: "allowed" if who in writers else denied for t, (_, writers) in ALLOWED.items()}
    assert reads == expected_reads
    assert writes == expected_writes


@pytest.mark.parametrize(
    ("who", "group", "allowed"),
    [
        ("detector", GROUP, True),
        ("detector", f"{GROUP}-fetch", True),
        ("blocker", "blocker-eu", True),
        ("oncall", "oncall", True),
        ("blocker", GROUP, False),  # it could commit for the workers, and so lose payments
        ("operator", GROUP, False),
        ("oncall", "blocker-eu", False),
        ("processor", "processor", False),
        ("oncall", "fraudstream-reconcile", True),
        ("oncall", "fraudstream-dump", True),
        ("oncall", "fraudstream-export", True),
        ("oncall", "fraudstream-control-log", False),
    ],
)
def test_groups_are_their_own(matrix, who, group, allowed):
    consumer = Consumer({**_quiet(matrix.client(who)), "group.id": group})
    try:
        if allowed:
            assert consumer.committed([TopicPartition(PREFIX + "decisions", 0)], timeout=30)[0].error is None
        else:
            consumer.subscribe([PREFIX + "decisions"])
            heard: set[int] = set()
            give_up_s = time.monotonic() + ANSWER_S
            while KafkaError.GROUP_AUTHORIZATION_FAILED not in heard and time.monotonic() < give_up_s:
                message = consumer.poll(0.5)
                if message is not None:
                    assert message.error() is not None
                    heard.add(message.error().code())
            assert KafkaError.GROUP_AUTHORIZATION_FAILED in heard
    finally:
        consumer.close()


def test_acl_beyond_the_catalogue_is_told(matrix):
    wanted = wanted_acls(catalogue(PREFIX, 1).values(), group=GROUP)
    extra = Acl(principal="User:blocker", resource="topic", name=PREFIX + "decision-details", operation="DESCRIBE")
    apply_acls(matrix.client(), [extra])
    applied = apply_acls(matrix.client(), wanted)
    assert applied.beyond == [f"User:blocker DESCRIBE {PREFIX}decision-details"]


def test_nobody_but_the_administrator_grants(matrix):
    with pytest.raises(TopicsFailed, match="CLUSTER_AUTHORIZATION_FAILED"):
        apply_acls(matrix.client("operator"), wanted_acls(catalogue(PREFIX, 1).values(), group=GROUP))


@pytest.mark.parametrize(
    "change",
    [
        {"sasl.password": "wrong"},
        {"sasl.username": "nobody"},
        {"security.protocol": "PLAINTEXT"},
        {"security.protocol": "SSL"},
        {"ssl.ca.location": None},
    ],
)
def test_no_way_in_without_name_password_and_certificate(broker, change):
    client = {name: value for name, value in (broker.client("detector") | change).items() if value is not None}
    admin = AdminClient({**_quiet(client), "socket.timeout.ms": 2_000})
    with pytest.raises(KafkaException) as refused:
        admin.list_topics(timeout=3)
    assert refused.value.args[0].code() in (KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN)


def test_passwords_are_in_no_log_of_the_broker(broker):
    passwords = [*broker.security.users.values(), broker.security.admin_password]
    assert not any(password in repr(broker.security) for password in passwords)
    for log in (broker.home.log, broker.home.console):
        text = log.read_text(errors="replace")
        assert not any(password in text for password in passwords), log
    assert broker.home.properties.stat().st_mode & 0o077 == 0


def test_worker_over_tls_as_detector_answers_a_processor_to_a_blocker(broker, tmp_path):
    prefix = "live."
    group = "live-detectors"
    apply_acls(broker.client(), wanted_acls(catalogue(prefix, 2).values(), group=group))

    as_operator = _settings(broker, "operator", prefix, group)
    operator = {name.removeprefix("FRAUD_").lower(): value for name, value in as_operator.items()}
    initialise(Settings(**operator), "earliest", by="test", why="test", partitions=2)
    worker = live_worker.LiveWorker(tmp_path, _settings(broker, "detector", prefix, group), log_level="DEBUG")
    try:
        worker.until_ready()
        now_ms = int(time.time() * 1000)
        processor = Producer(_quiet(broker.client("processor")))
        for i in range(PAYMENTS):
            payment = {
                "payment_id": f"p{i}",
                "event_time": now_ms + i,
                "account_id": f"a{i % 50}",
                "amount": i,
                "currency": "EUR",
            }
            processor.produce(prefix + "payments", json.dumps(payment).encode(), payment["account_id"].encode())
        assert processor.flush(ANSWER_S) == 0
        answers = _decisions(broker.client("blocker"), prefix + "decisions", PAYMENTS)
        assert sorted(answers) == sorted(f"p{i}" for i in range(PAYMENTS))
        worker.until(lambda: worker.metrics().value("last_checkpoint_timestamp_seconds") > 0, "no checkpoint")
        metrics = worker.metrics().text
    finally:
        code = worker.stop()
    assert code == 0
    password = broker.security.users["detector"]
    assert password not in worker.log.read_text(errors="replace")
    assert password not in metrics


def _settings(broker: EmbeddedBroker, who: str, prefix: str, group: str) -> dict[str, str]:
    return {
        "FRAUD_BOOTSTRAP": broker.bootstrap,
        "FRAUD_PREFIX": prefix,
        "FRAUD_GROUP": group,
        "FRAUD_SECURITY_PROTOCOL": "SASL_SSL",
        "FRAUD_SASL_USERNAME": who,
        "FRAUD_SASL_PASSWORD": broker.security.users[who],
        "FRAUD_SSL_CA_LOCATION": str(broker.security.ca),
    }


def test_every_command_of_on_call_works_as_oncall_and_needs_its_permissions(broker, tmp_path):
    prefix = "desk."
    wanted = catalogue(prefix, 1)
    create_topics(broker.client(), list(wanted.values()))
    payments = topic_ids(broker.client(), [wanted["payments"].name])[wanted["payments"].name].hex()
    producer = Producer(_quiet(broker.client()))
    producer.produce(wanted["payments"].name, b'{"payment_id":"a"}', partition=0)
    producer.produce(
        wanted["decisions"].name, b'{"outcome":"approve"}', partition=0, headers={"origin": f"{payments}:0:0".encode()}
    )
    producer.produce(wanted["examples"].name, tick_block(1), partition=0)
    assert producer.flush(ANSWER_S) == 0
    user = "stranger"  # what groups the matrix has let on-call name, this user may not
    acls = wanted_acls(wanted.values(), group=GROUP, names={"oncall": user})
    of_commands = [
        acl
        for acl in acls
        if acl.principal == f"User:{user}" and (acl.name in GROUPS_OF_ON_CALL or acl.operation == "DESCRIBE_CONFIGS")
    ]
    apply_acls(broker.client(), [acl for acl in acls if acl not in of_commands])
    commands = [
        ("reconcile",),
        ("topics", "check"),
        ("journals", "dump", str(tmp_path / "journals")),
        ("examples", "export", str(tmp_path / "training.parquet")),
    ]

    def codes() -> dict[str, tuple[int, str]]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FRAUD_")}
        found: dict[str, tuple[int, str]] = {}
        for words in commands:
            told = subprocess.run(
                [sys.executable, "-c", "from stream.cli.main import main; main()", *words, "--json"],
                capture_output=True,
                text=True,
                env={**inherited, **_settings(broker, user, prefix, GROUP)},
                check=False,
            )
            found[words[0]] = (told.returncode, told.stderr)
        return found

    refused = codes()
    assert all("AUTHORIZATION_FAILED" in told or "authorization" in told.lower() for _, told in refused.values()), (
        refused
    )
    apply_acls(broker.client(), of_commands)
    for path in tmp_path.glob("journals/*"):
        path.unlink()
    assert {name: code for name, (code, _) in codes().items()} == dict.fromkeys(refused, 0)


def _decisions(client: dict, topic: str, count: int) -> list[str]:
    consumer = Consumer({**_quiet(client), "group.id": "blocker-1", "auto.offset.reset": "earliest"})
    found: list[str] = []
    consumer.subscribe([topic])
    give_up_s = time.monotonic() + ANSWER_S
    while len(found) < count and time.monotonic() < give_up_s:
        message = consumer.poll(0.5)
        if message is not None and message.error() is None:
            found.append(json.loads(message.value())["payment_id"])
    consumer.close()
    return found
