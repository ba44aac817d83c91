"""A card number never gets past the account stage: planted everywhere, scanned for everywhere, on a log in memory."""

import base64
import json
from urllib.parse import quote

import msgspec
import pytest
from planted_cards import NOW_MS, Planted, card_number, find_planted, payment, planted

from stream.replay.local import Local
from stream.replay.log import LocalLog
from stream.stages.wiring import Partitions
from topics.decision import Decision

EXEMPT = ("payments", "updates", "labels", "account-journal")  # raw bytes, kept for a while, and documented
OUTPUTS = ("decisions", "decision-details", "dead-letters", "terminal-journal", "examples", "control")
PARTITIONS = 2


class Run:
    def __init__(self, records: list[Planted]) -> None:
        self.log = LocalLog()
        self.local = Local(
            self.log, Partitions(payments=PARTITIONS, account=PARTITIONS, terminal=PARTITIONS, decisions=PARTITIONS)
        )
        self.local.now_ms = NOW_MS + 60_000
        for i, record in enumerate(records):
            partition = 0 if record.topic == "labels" else i % PARTITIONS
            self.log.append(
                record.topic,
                partition,
                record.value,
                at_ms=self.local.now_ms,
                key=record.key,
                headers=record.headers,
            )
        self.local.pump()
        self.local.tick()
        self.local.pump()
        for at in self.local.runners:
            self.local.checkpoint(at)

    def records(self, topic: str):
        for partition in self.log.partitions(topic):
            yield from self.log.read(topic, partition, 0, 10**9)

    def blobs(self):
        """(what it is, bytes) of all that is written behind intake."""
        for topic in OUTPUTS:
            for record in self.records(topic):
                yield topic, b"\n".join([record.key or b"", record.value or b""])
                for name, value in record.headers:
                    yield f"{topic} header", name.encode() + b"\n" + (value or b"")
        for (topic, partition), store in self.local.stores.items():
            for key, value in store.pairs():
                yield f"state of {topic}[{partition}]", key + b"\n" + value


@pytest.fixture(scope="module")
def run() -> tuple[Run, dict[str, str]]:
    records = planted()
    return Run(records), {one.number: one.where for one in records}


def test_no_planted_number_behind_the_account_stage(run):
    done, where = run
    leaks = {(place, where[number]) for place, blob in done.blobs() for number in find_planted(blob, where)}
    assert sorted(leaks) == []


def test_the_numbers_were_there_to_be_found(run):
    done, where = run
    there = set()
    for topic in EXEMPT:
        for record in done.records(topic):
            headers = b"\n".join(name.encode() + b" " + (value or b"") for name, value in record.headers)
            there |= find_planted(b"\n".join([record.key or b"", record.value or b"", headers]), where)
    assert [where[number] for number in set(where) - there] == []


def test_every_planted_payment_is_answered_and_refused_for_a_cause_of_ours(run):
    done, _ = run
    records = planted()
    answers = [msgspec.json.decode(record.value, type=Decision) for record in done.records("decisions")]
    assert len(answers) == sum(record.topic == "payments" for record in records)
    refused = [answer for answer in answers if answer.outcome == "refused"]
    # A key and headers are not part of the payment: it is answered, and they stay behind.
    outside = [one for one in records if one.topic == "payments" and (one.key or one.headers)]
    assert len(answers) - len(refused) == len(outside) == 11
    assert sum(answer.cause == "card_number" for answer in refused) > 150


def test_a_good_payment_beside_them_is_decided(run):
    done = Run([*planted(), Planted("good", "", "payments", json.dumps(payment(10**6)).encode())])
    assert any(b'"p-1000000"' in (record.value or b"") for record in done.records("decisions"))


@pytest.mark.parametrize(
    "write",
    [
        lambda n: n,
        lambda n: f"a{n}b",
        lambda n: " ".join(n[i : i + 4] for i in range(0, 16, 4)),
        lambda n: "-".join(n[i : i + 4] for i in range(0, 16, 4)),
        lambda n: "7" + n + "7",
        lambda n: quote(" ".join(n)),
        lambda n: "".join(f"%{ord(digit):02X}" for digit in n),
        lambda n: base64.b64encode(n.encode()).decode(),
        lambda n: base64.b64encode(b"x" + n.encode() + b"y").decode(),
        lambda n: base64.urlsafe_b64encode(b"xy" + n.encode() + b"\xff\xfe").decode(),
        lambda n: "".join(f"\\u{ord(digit):04x}" for digit in n),
    ],
)
def test_the_scanner_finds_what_it_should(write):
    """Else zero hits would mean nothing."""
    number, other = card_number(5), card_number(6)
    text = f'{{"some": "text {write(number)} after"}}'.encode()
    assert find_planted(b"\x00\x93" + text + b"\xc0", {number, other}) == {number}
    assert find_planted(text, {other}) == set()
