"""What must hold after any run: against an oracle that read the log once, and against the records themselves."""

from collections import defaultdict
from collections.abc import Sequence
from random import Random
from typing import Any

import msgspec
from sim_log import TP, SimLog
from sim_small import UNLABELLED_ONE_IN, keep_legitimate, small_learner
from sim_world import JOURNALS, World

from stream.model.compiled import Compiled
from stream.replay.log import local_topic_id
from stream.runner.partition import META_KEY, PartitionRunner, Reseek, Send
from stream.stages.control import ModelPayload
from stream.stages.keys import TABLE_PENDING, payment_hash, pid64
from stream.stages.stage import Journal, Record
from stream.stages.state import MemoryStore, State
from stream.stages.wiring import FOREIGN, GATHERING, STAGE_TOPICS, Partitions, build_stage
from topics.codec import parse_label, parse_payment
from topics.control import parse_control, payload_as
from topics.decision import Decision
from topics.details import DecisionDetails
from topics.journal import (
    EXAMPLE_LABELLED,
    EXAMPLE_MATURED,
    EXAMPLE_UNLABELLED,
    FIRST_PREV,
    Became,
    Clock,
    Example,
    Item,
    Judged,
    Marker,
    Placed,
    Tick,
    decode_block,
)
from topics.limits import LIMITS_DEFAULT, Limits
from topics.refusals import Refusal
from topics.truth import truth_of

OUTPUTS = ("decisions", "decision-details", "dead-letters", "control")
BATCHES = (1, 7, 1000)


class Wrong(AssertionError):
    """A promise that was not kept."""


def require(truth: object, *what: object) -> None:
    if not truth:
        raise Wrong(" ".join(str(word) for word in what))


# ---- effective records ----


def effective(records: Sequence[Record]) -> list[tuple[int, int, tuple[bytes, int], Item]]:
    """The items of a journal that count: each once, in the order of its sender's chain. An own, plain reading."""
    last: dict[tuple[bytes, int], tuple[int, int]] = {}
    found: list[tuple[int, int, tuple[bytes, int], Item]] = []
    for record in records:
        block = decode_block(record.value or b"")
        sender = (block.sender, block.partition)
        prev = tuple(block.prev)
        for place, item in enumerate(block.items):
            this = (item.offset, item.n)
            if not block.sender:
                found.append((record.offset, place, sender, item))
            elif prev == last.get(sender, FIRST_PREV) and this > prev:
                found.append((record.offset, place, sender, item))
                last[sender] = this
            prev = this
    return found


class Oracle:
    """One partition, read once from its recorded journal, with nothing going wrong."""

    def __init__(self, log: SimLog, tp: TP, partitions: Partitions, *, batch: int, plain: bool, every: int = 0) -> None:
        journal = Journal(tp[0], local_topic_id(tp[0]), tp[1])
        self.store = MemoryStore()
        state = State(self.store, scanned=TABLE_PENDING)
        stage = build_stage(journal, state, partitions, plain=plain, learner=small_learner)
        foreign = tp[0] in FOREIGN
        runner = PartitionRunner(journal, stage, state, start_offset=0, internal=not foreign, gather=tp[0] in GATHERING)
        self.sends: list[Send] = []
        records = log.all(tp)
        for turn, start in enumerate(range(0, len(records), batch)):
            sends = runner.step(records[start : start + batch])
            if isinstance(sends, Reseek):  # a hole in a foreign topic: look twice
                sends = runner.step(records[start : start + batch])
            assert not isinstance(sends, Reseek)
            self.sends += sends
            for send in sends:
                runner.acknowledged(send.generation)
            if every and turn % every == 0:
                runner.write(runner.begin_checkpoint(), self.store.write)
        runner.next_offset = max(runner.next_offset, 0)
        runner.write(runner.begin_checkpoint(), self.store.write)
        self.runner = runner

    def pairs(self) -> dict[bytes, bytes]:
        return dict(self.store.pairs())

    def items(self) -> dict[TP, list[Item]]:
        found: dict[TP, list[Item]] = defaultdict(list)
        for send in self.sends:
            if send.topic in JOURNALS:
                found[send.topic, send.partition] += decode_block(send.value).items
        return found

    def outputs(self) -> list[tuple[Any, ...]]:
        return [
            (send.topic, send.partition, send.key, send.value, tuple(send.headers))
            for send in self.sends
            if send.topic in OUTPUTS
        ]


# ---- the checks ----


def check(world: World, forgetful: bool, rng: Random) -> None:
    """Raises `Wrong` at the first promise that was not kept."""
    log, partitions = world.log, world.partitions
    counted = {tp: effective(log.all(tp)) for tp in world.tps if tp[0] in JOURNALS}
    check_against_oracle(world, counted, rng)
    firsts = check_answers(log, partitions)
    check_examples(log, partitions, counted, firsts)
    if not forgetful:
        check_labels(log, partitions, counted, firsts)


def check_against_oracle(world: World, counted: dict[TP, list[Any]], rng: Random) -> None:
    log, partitions = world.log, world.partitions
    expected_outputs: set[tuple[Any, ...]] = set()
    expected_items: dict[tuple[TP, tuple[bytes, int]], list[Item]] = {}
    for tp in world.tps:
        batch, plain = rng.choice(BATCHES), rng.random() < 0.5
        oracle = Oracle(log, tp, partitions, batch=batch, plain=plain, every=rng.choice((0, 1, 3)))
        host = world.host_of(tp)
        require(not host.runner.open_gaps, tp, "has gaps that were never filled", host.runner.open_gaps)
        require(host.runner.unacknowledged == 0, tp, "waits for", host.runner.unacknowledged)
        ours, theirs = dict(host.disk.store.pairs()), oracle.pairs()
        different = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        if different == [META_KEY] and not log.all(tp):
            different = []
        require(not different, tp, "differs from the oracle at", different[:5], "of", len(different), "batch", batch)
        expected_outputs.update(oracle.outputs())
        check_sent_again(world, tp, oracle)
        for to, items in oracle.items().items():
            expected_items[to, (local_topic_id(tp[0]), tp[1])] = items
    for to, found in counted.items():
        by_sender: dict[tuple[bytes, int], list[Item]] = defaultdict(list)
        for _, _, sender, item in found:
            if sender[0]:
                by_sender[sender].append(item)
        for sender in sorted(by_sender):
            require(by_sender[sender] == expected_items.get((to, sender)), to, "holds other items of", sender)
        for (at, sender), items in expected_items.items():
            require(at != to or by_sender[sender] == items, to, "lacks items of", sender)
    real = {
        (topic, p, r.key, r.value, tuple(r.headers))
        for topic in OUTPUTS
        for p, r in log.of(topic)
        if topic != "control" or r.key == b"model"
    }
    require(real == expected_outputs, "outputs differ:", sorted(map(repr, real ^ expected_outputs))[:2])


def check_sent_again(world: World, tp: TP, oracle: Oracle) -> None:
    """Whoever applied a record sent all that goes to journals, whatever had been committed before."""
    origins = {to: [(item.offset, item.n) for item in items] for to, items in oracle.items().items()}
    for host in world.past:
        if host.tp != tp:
            continue
        for to in sorted(origins.keys() | host.sent.keys()):
            expected = [origin for origin in origins.get(to, []) if host.start <= origin[0] < host.end]
            require(host.sent.get(to, []) == expected, tp, "did not send again what goes to", to)


def check_answers(log: SimLog, partitions: Partitions) -> dict[bytes, Decision]:
    """One effective answer a record; the first's answers by payment hash."""
    answers: dict[tuple[bytes, int, int], set[tuple[int, bytes | None, bytes]]] = defaultdict(set)
    for p, record in log.of("decisions"):
        topic, part, offset = dict(record.headers)["origin"].split(b":")
        answers[bytes.fromhex(topic.decode()), int(part), int(offset)].add((p, record.key, record.value))
    letters: dict[tuple[str, int, int], set[bytes]] = defaultdict(set)
    for _, record in log.of("dead-letters"):
        named = dict(record.headers)
        at = tuple(named[f"__connect.errors.{word}"].decode() for word in ("topic", "partition", "offset"))
        letters[at[0], int(at[1]), int(at[2])].add(record.value)
    for at, values in sorted(letters.items()):
        require(len(values) == 1, "dead letters of", at, "differ")
    payments_id = local_topic_id("payments")
    expected = 0
    firsts: dict[bytes, Decision] = {}
    values_of: dict[tuple[str, str, str, str], bytes] = {}
    contents: dict[tuple[str, str, str, str], bytes] = {}
    for p, record in log.of("payments"):
        parsed = parse_payment(record.value or b"", LIMITS_DEFAULT)
        copies = answers.get((payments_id, p, record.offset), set())
        at = ("payments", p, record.offset)
        if not isinstance(parsed, Refusal) and parsed.payment.mode == "backfill":
            require(not copies, "a backfill was answered:", at)
            continue
        expected += 1
        require(len(copies) == 1, at, "has", len(copies), "effective answers")
        (_, _, value) = next(iter(copies))
        decision = msgspec.json.decode(value, type=Decision)
        require((decision.outcome == "refused") == (decision.cause is not None), at, "refused without a cause")
        if isinstance(parsed, Refusal):
            require(decision.outcome == "refused", at, "is bad and was not refused")
            require(decision.cause == parsed.cause, at, decision.cause, parsed.cause)
        in_letters = decision.cause is not None and decision.cause != "answer_expired"
        require((at in letters) == in_letters, at, decision.cause, "in the dead letters:", at in letters)
        if decision.outcome == "refused":
            require(decision.origin.partition == p and decision.origin.offset == record.offset, at, "wrong origin")
            continue
        assert not isinstance(parsed, Refusal)
        payment = parsed.payment
        identity = (payment.tenant_id, payment.account_id, payment.payment_id, payment.mode)
        require(values_of.setdefault(identity, value) == value, "answers of", identity, "differ")
        content = contents.setdefault(identity, parsed.fingerprint_source)
        require(content == parsed.fingerprint_source, "other content of", identity, "was answered as if it were known")
        pid = payment_hash(payment.tenant_id, payment.account_id, payment.payment_id, payment.mode == "test")
        firsts[pid] = decision
    require(len(answers) == expected, "answers to", len(answers), "records, expected", expected)
    return firsts


def check_examples(
    log: SimLog, partitions: Partitions, counted: dict[TP, list[Any]], firsts: dict[bytes, Decision]
) -> None:
    """Examples have the features of the decision; maturity runs on the labels' clock: by the records alone."""
    features: dict[bytes, bytes] = {}
    for _, record in log.of("decision-details"):
        details = msgspec.json.decode(record.value or b"", type=DecisionDetails)
        of = details.decision
        pid = payment_hash(of.tenant_id or "", of.account_id or "", of.payment_id or "", of.mode == "test")
        require(features.setdefault(pid, details.features) == details.features, "features of", of.payment_id)
    caused: dict[tuple[int, int, int], list[Example]] = defaultdict(list)
    for _, _, sender, item in counted["examples", 0]:
        if isinstance(item, Example):
            caused[sender[1], item.offset, item.n >> 8].append(item)
            if item.pid in features:
                require(item.features == features[item.pid], "an example has other features than its decision")
    for partition in range(partitions.terminal):
        Reading(partition, partitions.account, caused, firsts).read(counted["terminal-journal", partition])
    require(not caused, "examples without a cause:", list(caused)[:3])


class Reading:
    """A terminal journal as plain rules read it, to compare what was taught with what should have been."""

    def __init__(
        self,
        partition: int,
        accounts: int,
        caused: dict[tuple[int, int, int], list[Example]],
        firsts: dict[bytes, Decision],
    ) -> None:
        self.partition = partition
        self.clocks = [0] * accounts
        self.caused = caused
        self.firsts = firsts
        self.limits = LIMITS_DEFAULT
        self.model: str | None = None
        self.placed: dict[bytes, Placed] = {}
        self.features: dict[bytes, bytes] = {}
        self.taught: dict[bytes, bool] = {}
        self.judged: dict[bytes, Judged] = {}
        self.through: dict[bytes, bool] = {}
        self.due_ms = self.reached_ms = 0
        self.road_ms = 0

    def read(self, items: list[tuple[int, int, Any, Item]]) -> None:
        for offset, place, _, item in items:
            examples = self.caused.pop((self.partition, offset, place), [])
            if isinstance(item, Placed):
                self._place(item, examples)
            elif isinstance(item, Judged):
                self._judge(item, examples)
            elif isinstance(item, Clock | Tick):
                if isinstance(item, Clock):
                    self.clocks[item.account_partition] = max(self.clocks[item.account_partition], item.clock_ms)
                self._mature(examples)
                self.due_ms = min(self.clocks) - self.limits.maturity_ms
                self.reached_ms = max(self.reached_ms, self.due_ms)  # a longer horizon takes nothing back
            else:
                require(not examples, "an example of", type(item).__name__)
                if isinstance(item, Became):
                    self.through[item.pid] = item.through
                elif isinstance(item, Marker):
                    self._mark(item)
            self.road_ms = max(self.road_ms, min(self.clocks) - self.limits.road_ms)
        self._complete()

    def _mark(self, marker: Marker) -> None:
        control = parse_control(marker.body)
        assert not isinstance(control, Refusal)
        if marker.kind == "settings":
            self.limits = payload_as(control, Limits)
        elif marker.kind == "model":
            payload = payload_as(control, ModelPayload)
            require(payload.held is None, "a version that was held came into force:", control.version)
            Compiled.decode(payload.compiled)  # none that cannot score
            self.model = control.version

    def _place(self, item: Placed, examples: list[Example]) -> None:
        require(item.pid not in self.placed, "a payment is FIRST twice")
        self.placed[item.pid] = item
        wanted = item.payment.mode != "test" and pid64(item.pid) % UNLABELLED_ONE_IN == 0
        require([e.kind for e in examples] == [EXAMPLE_UNLABELLED] * wanted, "unlabelled examples")
        decision = self.firsts.get(item.pid)
        if decision is not None and item.payment.mode != "backfill":
            require(decision.versions.model == self.model, "decided by", decision.versions.model, "not", self.model)

    def _judge(self, item: Judged, examples: list[Example]) -> None:
        require(len(examples) <= 1, "a label taught twice")
        for example in examples:
            require(example.pid == item.pid, "an example of another payment")
            require(example.event_ms <= self.reached_ms, "a label taught before its payment matured")
            require(example.fraud == bool(item.fraud), "taught", example.fraud, "by", item)
            require(example.observed_ms == item.observed_ms, "observed at another time")
            before = self.taught.get(item.pid)
            require((example.was_weight > 0) == (before is not None), "corrects what was not taught")
            require(before is None or example.was_fraud == before, "corrects another truth")
            self.taught[item.pid] = example.fraud
        if item.pid in self.placed:
            self.judged[item.pid] = item

    def _mature(self, examples: list[Example]) -> None:
        clock_ms = min(self.clocks)
        for example in examples:
            require(example.event_ms <= clock_ms - self.limits.maturity_ms, "matured before its time")
            require(example.pid not in self.taught, "matured twice")
            judged = self.judged.get(example.pid)
            if example.kind == EXAMPLE_LABELLED:
                require(judged is not None, "a label taught that never came")
                assert judged is not None
                require(example.fraud == judged.fraud, "taught", example.fraud, "by", judged)
                require(example.observed_ms == judged.observed_ms, "observed at another time")
            else:
                require(example.kind == EXAMPLE_MATURED and not example.fraud, "silence taught", example.kind)
                require(judged is None or judged.fraud is None, "silence taught after a label")
                require(example.observed_ms == clock_ms, "matured at", example.observed_ms, "clock", clock_ms)
                require(self.through.get(example.pid, True), "a payment that did not go through taught")
                decision = self.firsts.get(example.pid)
                declined = decision is not None and decision.outcome == "decline" and example.pid not in self.through
                require(not declined, "a declined payment taught by silence")
            self.taught[example.pid] = example.fraud

    def _complete(self) -> None:
        """All that was due at the last clock has taught."""
        for pid, item in self.placed.items():
            event_ms = item.payment.event_time
            if event_ms > self.due_ms or event_ms <= self.road_ms + 86_400_000 or item.payment.mode == "test":
                continue
            judged = self.judged.get(pid)
            if judged is not None and judged.fraud is not None:
                require(self.taught.get(pid) == judged.fraud, "a label did not teach", judged)
            decision = self.firsts.get(pid)
            declined = decision is not None and decision.outcome == "decline"
            if judged is not None or pid in self.through or declined or not keep_legitimate(pid64(pid)):
                continue
            require(pid in self.taught, "a payment never matured:", item.payment.payment_id)


def check_labels(
    log: SimLog, partitions: Partitions, counted: dict[TP, list[Any]], firsts: dict[bytes, Decision]
) -> None:
    """The last word about each payment is the truth of all of its labels, whenever they came."""
    labels: dict[bytes, list[Any]] = defaultdict(list)
    for _, record in log.of("labels"):
        parsed = parse_label(record.value or b"", LIMITS_DEFAULT)
        if isinstance(parsed, Refusal) or parsed.label.kind == "clock":
            continue
        label = parsed.label
        pid = payment_hash(label.tenant_id, label.account_id or "", label.payment_id or "")
        if label not in labels[pid] and label.observed_at <= record.at_ms + LIMITS_DEFAULT.skew_ms:
            labels[pid].append(label)
    said: dict[bytes, Judged] = {}
    for partition in range(partitions.terminal):
        for _, _, _, item in counted["terminal-journal", partition]:
            if isinstance(item, Judged):
                said[item.pid] = item
    for pid in firsts:
        if pid in labels and len(labels[pid]) <= 6:
            judged = said.get(pid)
            require(judged is not None, "labels of", firsts[pid].payment_id, "never met it")
            assert judged is not None
            require(judged.fraud == truth_of(labels[pid]).fraud, "labels of", firsts[pid].payment_id, "say else")


STAGES = STAGE_TOPICS
