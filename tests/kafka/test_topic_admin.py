import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    ResourceType,
)

from stream.broker.errors import TopicsFailed
from stream.broker.topic_admin import (
    check_topics,
    create_topics,
    delete_topics,
    describe_topics,
    partition_counts,
    topic_ids,
)
from topics.catalogue import catalogue

pytestmark = pytest.mark.kafka
ROOT = Path(__file__).parents[2]


def _fraud_topics(kafka, *arguments: str) -> tuple[int, dict]:
    told = subprocess.run(
        [sys.executable, "-c", "from stream.cli.topics import app; app()", *arguments, "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "FRAUD_BOOTSTRAP": kafka.bootstrap},
        check=False,
    )
    return told.returncode, json.loads(told.stdout.splitlines()[-1])


def _set_config(admin: AdminClient, topic: str, name: str, value: str) -> None:
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    for done in admin.incremental_alter_configs([resource]).values():
        done.result(30)


def test_catalogue_is_created_once_and_then_checked(kafka):
    prefix = kafka.fresh_prefix()
    wanted = list(catalogue(prefix, 3).values())
    missing = check_topics(kafka.client, wanted)
    assert [(finding.topic, finding.what) for finding in missing] == [(topic.name, "missing") for topic in wanted]

    made = create_topics(kafka.client, wanted)
    assert (made.created, made.existed) == (sorted(topic.name for topic in wanted), [])
    assert check_topics(kafka.client, wanted) == []
    again = create_topics(kafka.client, wanted)
    assert (again.created, again.existed) == ([], made.created)
    counts = partition_counts(kafka.client, [topic.name for topic in wanted])
    assert counts == {topic.name: topic.partitions for topic in wanted}


def test_check_finds_every_planted_difference_and_nothing_else(kafka):
    prefix = kafka.fresh_prefix()
    wanted = catalogue(prefix, 2)
    create_topics(kafka.client, list(wanted.values()))
    admin = AdminClient({**kafka.client, "log_level": 0})
    planted = {
        ("payments", "partitions"): "5",
        ("decisions", "retention.ms"): "1000",
        ("control", "cleanup.policy"): "compact",
        ("account-journal", "message.timestamp.type"): "CreateTime",
        ("examples", "max.message.bytes"): "2000",
    }
    for (name, what), value in planted.items():
        topic = wanted[name].name
        if what == "partitions":
            admin.create_partitions([NewPartitions(topic, int(value))])[topic].result(30)
        else:
            _set_config(admin, topic, what, value)
    delete_topics(kafka.client, [wanted["labels"].name])

    expected = {(prefix + name, what): value for (name, what), value in planted.items()}
    expected[prefix + "labels", "missing"] = "no such topic"
    code, told = _fraud_topics(kafka, "check", "--prefix", prefix, "--partitions", "2")
    assert code == 1
    assert {(finding["topic"], finding["what"]): finding["found"] for finding in told["findings"]} == expected

    code, told = _fraud_topics(kafka, "create", "--prefix", prefix, "--partitions", "2")
    assert (code, told["created"]) == (1, [prefix + "labels"]), "it makes what is missing, and says what is wrong"
    del expected[prefix + "labels", "missing"]
    assert {(finding["topic"], finding["what"]) for finding in told["findings"]} == set(expected)


def test_command_creates_and_checks(kafka):
    prefix = kafka.fresh_prefix()
    code, told = _fraud_topics(kafka, "create", "--prefix", prefix)
    assert (code, len(told["created"]), told["findings"]) == (0, len(catalogue()), [])
    assert _fraud_topics(kafka, "check", "--prefix", prefix) == (0, {"topics": len(catalogue()), "findings": []})


def test_the_deployment_itself_says_how_many_partitions_it_has(kafka):
    prefix = kafka.fresh_prefix()
    create_topics(kafka.client, list(catalogue(prefix, 3).values()))
    assert _fraud_topics(kafka, "check", "--prefix", prefix) == (0, {"topics": len(catalogue()), "findings": []})
    admin = AdminClient({**kafka.client, "log_level": 0})
    admin.create_partitions([NewPartitions(prefix + "decisions", 5)])[prefix + "decisions"].result(30)
    code, told = _fraud_topics(kafka, "check", "--prefix", prefix)
    (finding,) = told["findings"]
    assert code == 1
    assert (finding["topic"], finding["what"], finding["wanted"], finding["found"]) == (
        prefix + "decisions",
        "partitions",
        "3",
        "5",
    )
    assert "--partitions" in finding["advice"]


def test_a_topic_made_again_has_another_id(kafka):
    topic = catalogue(kafka.fresh_prefix())["labels"]
    create_topics(kafka.client, [topic])
    first = topic_ids(kafka.client, [topic.name])[topic.name]
    assert len(first) == 16
    assert topic_ids(kafka.client, [topic.name]) == {topic.name: first}
    delete_topics(kafka.client, [topic.name])
    while describe_topics(kafka.client, [topic.name]):
        pass  # the controller has deleted it; the broker's own view follows
    with pytest.raises(TopicsFailed, match="no such topic"):
        topic_ids(kafka.client, [topic.name])
    create_topics(kafka.client, [topic])
    assert topic_ids(kafka.client, [topic.name])[topic.name] != first


def test_no_broker_is_said_so(monkeypatch):
    monkeypatch.setattr("stream.broker.topic_admin.REQUEST_TIMEOUT_S", 2.0)
    with pytest.raises(TopicsFailed, match="fraud broker start"):
        check_topics({"bootstrap.servers": "127.0.0.1:9"}, [catalogue()["labels"]])


def test_topics_are_never_made_by_asking(kafka):
    name = kafka.fresh_prefix() + "misspelt"
    AdminClient(kafka.client).list_topics(name, timeout=10)
    with pytest.raises(TopicsFailed, match="no such topic"):
        topic_ids(kafka.client, [name])


def test_wrong_use_has_its_own_exit_code(tmp_path):
    told = subprocess.run(
        [sys.executable, "-c", "from stream.cli.topics import app; app()", "check"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**{k: v for k, v in os.environ.items() if k != "FRAUD_BOOTSTRAP"}, "FRAUD_BROKER_DIR": str(tmp_path)},
        check=False,
    )
    assert (told.returncode, told.stdout) == (2, "")
    assert "fraud broker start" in told.stderr
