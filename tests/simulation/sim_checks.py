"""What must hold after any run: against an oracle that read the log once, and against the records themselves."""

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from itertools import zip_longest
from random import Random
from typing import Any, NamedTuple

import msgspec
import numpy as np
from sim_log import TP, SimLog
from sim_readings import COUNTED, FIRST, REPEAT, SILENT, AccountReading, Counting, without_features
from sim_small import PROVISIONAL_MS, UNLABELLED_ONE_IN, keep_legitimate, small_learner
from sim_world import JOURNALS, World

from stream.features import ENTITY_INDEX, MODEL_NAMES
from stream.model.compiled import Compiled
from stream.model.sampling import NOTABLE_PROBABILITY
from stream.replay.log import local_topic_id
from stream.rules.default import DEFAULT_RULES
from stream.rules.policy import DEFAULT_POLICY, VERDICTS, decode_policy, policy_version
from stream.rules.ruleset import decode_ruleset, ruleset_version
from stream.runner.errors import ForeignState, GapInJournal, StateAheadOfLog, StateBehindLog
from stream.runner.partition import META_KEY, PartitionRunner, Reseek, Send
from stream.stages.account import AccountStage
from stream.stages.control import ModelPayload, control_of
from stream.stages.keys import TABLE_PENDING, payment_hash, pid64
from stream.stages.stage import Journal, Record
from stream.stages.state import MemoryStore, State
from stream.stages.terminal import TerminalStage
from stream.stages.wiring import FOREIGN, GATHERING, STAGE_TOPICS, Partitions, build_stage
from topics.codec import parse_label, parse_payment
from topics.control import Engine, Skip, parse_control, payload_as
from topics.decision import Decision
from topics.details import DecisionDetails
from topics.journal import (
    EXAMPLE_CORRECTED,
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
    Repeat,
    Tick,
    decode_block,
)
from topics.limits import LIMITS_DEFAULT, Limits
from topics.refusals import Refusal
from topics.truth import truth_of

OUTPUTS = ("decisions", "decision-details", "dead-letters", "control")
BATCHES = (1, 7, 1000)
TERMINAL_COLUMNS = [
    (MODEL_NAMES.index(f"terminal_{name}"), i) for i, name in enumerate(COUNTED) if f"terminal_{name}" in MODEL_NAMES
]


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

    def __init__(
        self,
        log: SimLog,
        tp: TP,
        partitions: Partitions,
        *,
        batch: int,
        plain: bool,
        every: int = 0,
        skips: Collection[int] = (),
    ) -> None:
        journal = Journal(tp[0], local_topic_id(tp[0]), tp[1])
        self.store = MemoryStore()
        state = State(self.store, scanned=TABLE_PENDING)
        stage = build_stage(journal, state, partitions, plain=plain, learner=small_learner)
        foreign = tp[0] in FOREIGN
        runner = PartitionRunner(
            journal, stage, state, start_offset=0, internal=not foreign, gather=tp[0] in GATHERING, skips=skips
        )
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
    skips = skips_of(world)
    check_against_oracle(world, counted, skips, rng)
    check_refusals(world)
    becomes, lapsed = check_accounts(world, counted, skips)
    answers = check_answers(log, becomes)
    check_examples(world, counted, skips, answers)
    if not forgetful and not any(skips.values()):
        firsts = {pid: decision for pid, decision in answers.firsts.items() if pid not in lapsed}
        check_labels(log, partitions, counted, firsts)


def skips_of(world: World) -> dict[TP, set[int]]:
    """Offsets that operators have skipped where a partition had stopped, as `control` says: read in order, plainly."""
    found: dict[TP, set[int]] = {tp: set() for tp in world.tps}
    topics = {local_topic_id(topic).hex(): topic for topic in STAGE_TOPICS}
    stopped: set[tuple[str, int, int]] = set()
    for _, record in world.log.of("control"):
        control = parse_control(record.value)
        if isinstance(control, Refusal) or control.kind not in ("skip", "stopped"):
            continue
        named = payload_as(control, Skip)
        place = (named.topic_id, named.partition, named.offset)
        if control.kind == "stopped":
            stopped.add(place)
        elif place in stopped:
            found[topics[named.topic_id], named.partition].add(named.offset)
    return found


def check_accounts(
    world: World, counted: dict[TP, list[Any]], skips: dict[TP, set[int]]
) -> tuple[dict[tuple[int, int], str], set[bytes]]:
    """What the account stage made of its journal is what plain rules make of it. What becomes of each payment, and the
    hashes of payments whose labels waited in vain: for one whose intake was away for longer than `orphan_ms`."""
    partitions = world.partitions
    becomes: dict[tuple[int, int], str] = {}
    lapsed: set[bytes] = set()
    for partition in range(partitions.account):
        tp = ("account-journal", partition)
        reading = AccountReading(partition, partitions.account, partitions.terminal, skips[tp])
        reading.read(counted[tp])
        becomes |= reading.expected
        lapsed |= reading.lapsed
        stage = world.host_of(tp).runner.stage
        assert isinstance(stage, AccountStage)
        ours = (stage.label_clock_ms, stage.newest_event_ms)
        require(ours == (reading.clock_ms, max(reading.watermarks.values(), default=0)), tp, "its clocks are", ours)
        for to, expected in reading.items.items():
            found = [item for *_, sender, item in counted[to] if sender == (local_topic_id(tp[0]), partition)]
            for ours, theirs in zip_longest(without_features(found), expected):
                require(ours == theirs, to, "got", ours, "where plain rules give", theirs)
            for item in found:
                if isinstance(item, Placed):
                    row = np.frombuffer(item.entities[0], np.float32)
                    check_features(row, [ENTITY_INDEX[name] for name in COUNTED], reading.features[item.pid])
    return becomes, lapsed


def check_features(row: Any, columns: Sequence[int], expected: Sequence[float]) -> None:
    ours, theirs = row[list(columns)], np.array(expected, np.float32)
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    require(same.all(), "features", ours, "plainly counted", theirs, "at", np.flatnonzero(~same))


def check_refusals(world: World) -> None:
    """What must stop a partition does: journals that begin too late, end too early, lack a record, or are others."""
    for tp in world.tps:
        records, internal = world.log.all(tp), tp[0] not in FOREIGN
        if len(records) < 3:
            continue
        lacking = [record for record in records if record is not records[1]]
        runner = _runner(tp, MemoryStore(), world.partitions)
        if internal:
            _must_raise(GapInJournal, lambda runner=runner, lacking=lacking: [runner.step(lacking) for _ in range(2)])
            _must_raise(StateBehindLog, lambda runner=runner: runner.check_log(1, 3))
        host = world.host_of(tp)
        _must_raise(StateAheadOfLog, lambda host=host: host.runner.check_log(0, host.runner.next_offset - 1))
        others = [other for other in world.tps if other != tp]
        for other in others[:1] + [other for other in others if other[0] == tp[0]][:1]:
            store = host.disk.store
            _must_raise(
                ForeignState, lambda other=other, store=store: _runner(other, store, world.partitions, plain=True)
            )


def _must_raise(error: type[Exception], work: Callable[[], object]) -> None:
    try:
        work()
    except error:
        return
    raise Wrong(f"no {error.__name__}")


def _runner(tp: TP, store: MemoryStore, partitions: Partitions, *, plain: bool = True) -> PartitionRunner:
    journal, state = Journal(tp[0], local_topic_id(tp[0]), tp[1]), State(store, scanned=TABLE_PENDING)
    stage = build_stage(journal, State(MemoryStore()), partitions, plain=plain, learner=small_learner)
    return PartitionRunner(journal, stage, state, start_offset=0, internal=tp[0] not in FOREIGN)


def check_against_oracle(world: World, counted: dict[TP, list[Any]], skips: dict[TP, set[int]], rng: Random) -> None:
    log, partitions = world.log, world.partitions
    expected_outputs: set[tuple[Any, ...]] = set()
    expected_items: dict[tuple[TP, tuple[bytes, int]], list[Item]] = {}
    for tp in world.tps:
        batch, plain = rng.choice(BATCHES), rng.random() < 0.5
        every = rng.choice((0, 1, 3))
        oracle = Oracle(log, tp, partitions, batch=batch, plain=plain, every=every, skips=skips[tp])
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


def check_answers(log: SimLog, becomes: dict[tuple[int, int], str]) -> "Answers":
    """One effective answer a record, and the one that plain rules give. `becomes`: of each payment record."""
    answers: dict[tuple[bytes, int, int], set[tuple[int, bytes | None, bytes, bytes]]] = defaultdict(set)
    for p, record in log.of("decisions"):
        named = dict(record.headers)
        topic, part, offset = named["origin"].split(b":")
        answer = (p, record.key, record.value, named["answer"])
        answers[bytes.fromhex(topic.decode()), int(part), int(offset)].add(answer)
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
    causes: dict[tuple[int, int], str] = {}
    values_of: dict[tuple[str, str, str, str], bytes] = {}
    contents: dict[tuple[str, str, str, str], bytes] = {}
    for p, record in log.of("payments"):
        parsed = parse_payment(record.value or b"", LIMITS_DEFAULT)
        copies = answers.get((payments_id, p, record.offset), set())
        at = ("payments", p, record.offset)
        word = becomes[p, record.offset]
        if word == SILENT or (
            word != "skipped" and not isinstance(parsed, Refusal) and parsed.payment.mode == "backfill"
        ):
            require(not copies, "a backfill was answered:", at)
            continue
        expected += 1
        require(len(copies) == 1, at, "has", len(copies), "effective answers")
        (_, _, value, header) = next(iter(copies))
        decision = msgspec.json.decode(value, type=Decision)
        repeated = word == REPEAT and decision.outcome != "refused"
        require(header == (b"repeat" if repeated else b"first"), at, word, "was answered as", header)
        if word not in (FIRST, REPEAT):
            require(decision.cause == word, at, "answered", decision.outcome, decision.cause, "instead of", word)
        causes[p, record.offset] = decision.cause or word
        require((decision.outcome == "refused") == (decision.cause is not None), at, "refused without a cause")
        if isinstance(parsed, Refusal):
            require(decision.outcome == "refused", at, "is bad and was not refused")
            require(decision.cause in (parsed.cause, "skipped"), at, decision.cause, parsed.cause)
        in_letters = word not in (FIRST, REPEAT)
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
    return Answers(firsts, causes)


class Answers(NamedTuple):
    """`firsts`: decisions by payment hash. `causes`: by payment record, why it is refused, else FIRST or REPEAT."""

    firsts: dict[bytes, Decision]
    causes: dict[tuple[int, int], str]


def check_examples(
    world: World,
    counted: dict[TP, list[Any]],
    skips: dict[TP, set[int]],
    answers: Answers,
) -> None:
    """Examples have the features of the decision; maturity runs on the labels' clock: by the records alone."""
    log, partitions = world.log, world.partitions
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
        tp = ("terminal-journal", partition)
        reading = Reading(partition, partitions.account, caused, answers, skips[tp], features)
        reading.read(counted[tp])
        stage = world.host_of(tp).runner.stage
        assert isinstance(stage, TerminalStage)
        require(stage.label_clock_ms == min(reading.clocks), tp, "its labels' clock is", stage.label_clock_ms)
        for at, cause in reading.causes.items():
            found = answers.causes.get(at)
            require(found in (None, cause), "payments", at, "was answered", found, "instead of", cause)
    require(not caused, "examples without a cause:", list(caused)[:3])


class Reading:
    """A terminal journal as plain rules read it, to compare what was taught with what should have been."""

    def __init__(
        self,
        partition: int,
        accounts: int,
        caused: dict[tuple[int, int, int], list[Example]],
        answers: Answers,
        skips: set[int],
        rows: dict[bytes, bytes],
    ) -> None:
        self.partition = partition
        self.clocks = [0] * accounts
        self.caused = caused
        self.firsts = answers.firsts
        self.skips = skips
        self.causes: dict[tuple[int, int], str] = {}
        self.latest_ms = self.answers_from_ms = 0
        self.engine = 1
        self.policy = DEFAULT_POLICY
        self.rules = DEFAULT_RULES
        self.policy_version = policy_version(DEFAULT_POLICY)
        self.rules_version = ruleset_version(DEFAULT_RULES)
        self.limits = LIMITS_DEFAULT
        self.model: str | None = None
        self.learned_to = -1
        self.compiled: Compiled | None = None
        self.answered: set[bytes] = set()
        self.told_late: set[bytes] = set()  # what became of them was known when they were mature already
        self.counting = Counting()
        self.rows = rows
        self.placed: dict[bytes, Placed] = {}
        self.features: dict[bytes, bytes] = {}
        self.taught: dict[bytes, bool] = {}
        self.unsure: dict[bytes, float] = {}
        self.judged: dict[bytes, Judged] = {}
        self.through: dict[bytes, bool] = {}
        self.due_ms = self.soon_ms = self.reached_ms = 0
        self.road_ms = self.dropped_ms = 0

    def read(self, items: list[tuple[int, int, Any, Item]]) -> None:
        for offset, place, _, item in items:
            examples = self.caused.pop((self.partition, offset, place), [])
            if offset in self.skips:
                self._skip(item, examples)
            elif isinstance(item, Repeat):
                self._repeat(item, examples)
            elif isinstance(item, Placed):
                self._place(item, examples)
            elif isinstance(item, Judged):
                self._judge(item, examples)
            elif isinstance(item, Clock | Tick):
                if isinstance(item, Clock):
                    self.clocks[item.account_partition] = max(self.clocks[item.account_partition], item.clock_ms)
                    self.dropped_ms = max(self.dropped_ms, self._kept_from_ms())
                self._mature(examples)
                self.due_ms = min(self.clocks) - self.limits.maturity_ms
                self.soon_ms = min(self.clocks) - min(self.limits.maturity_ms, PROVISIONAL_MS)
                self.reached_ms = max(self.reached_ms, self.soon_ms)  # a longer horizon takes nothing back
            else:
                require(not examples, "an example of", type(item).__name__)
                if isinstance(item, Became):
                    self.through[item.pid] = item.through
                    if item.event_ms <= self.reached_ms:
                        self.told_late.add(item.pid)
                elif isinstance(item, Marker):
                    self._mark(item)
            self.road_ms = max(self.road_ms, min(self.clocks) - self.limits.road_ms)
        self._complete()

    def _mark(self, marker: Marker) -> None:
        control = control_of(marker)
        if marker.kind == "settings":
            self.limits = payload_as(control, Limits)
        elif marker.kind == "engine":
            self.engine = payload_as(control, Engine).engine
        elif marker.kind == "policy":
            self.policy = decode_policy(bytes(control.payload))
            self.policy_version = policy_version(self.policy)
        elif marker.kind == "rules":
            self.rules = decode_ruleset(bytes(control.payload))
            self.rules_version = ruleset_version(self.rules)
        elif marker.kind == "model":
            payload = payload_as(control, ModelPayload)
            require(payload.held is None, "a version that was held came into force:", control.version)
            require(payload.offset > self.learned_to, "two versions of one place of examples came into force")
            self.learned_to = payload.offset
            self.compiled = Compiled.decode(payload.compiled)
            weights = np.frombuffer(self.compiled.weights, np.float64)
            require(np.isfinite(weights).all(), "a version that cannot score came into force")
            self.model = control.version

    def _place(self, item: Placed, examples: list[Example]) -> None:
        require(item.pid not in self.placed, "a payment is FIRST twice")
        self.placed[item.pid] = item
        wanted = item.payment.mode != "test" and pid64(item.pid) % UNLABELLED_ONE_IN == 0
        require([e.kind for e in examples] == [EXAMPLE_UNLABELLED] * wanted, "unlabelled examples")
        self.causes[item.partition, item.position] = FIRST
        self.latest_ms = max(self.latest_ms, item.at_ms)
        keep_from_ms = (self.latest_ms - self.limits.answer_ttl_ms) // 86_400_000 * 86_400_000
        self.answers_from_ms = max(self.answers_from_ms, keep_from_ms)
        payment = item.payment
        if payment.mode != "backfill":
            self.answered.add(item.pid)
        if payment.terminal_id is not None:
            counted = self.counting.place(payment, payment.terminal_id, item.pid, item.base_amount)
            if item.pid in self.rows:
                row = np.frombuffer(self.rows[item.pid], np.float32)
                check_features(row, *zip(*[(at, counted[i]) for at, i in TERMINAL_COLUMNS], strict=True))
        decision = self.firsts.get(item.pid)
        if decision is not None and item.payment.mode != "backfill":
            self._decided(item, decision)

    def _decided(self, item: Placed, decision: Decision) -> None:
        """By what was in force at this place, and by nothing else."""
        found = decision.versions
        require(found.model == self.model, "decided by", found.model, "not", self.model)
        require(found.engine == self.engine, "decided by engine", found.engine, "not", self.engine)
        require(found.rules == self.rules_version, "decided by rules", found.rules)
        require(found.policy == self.policy_version, "decided by policy", found.policy)
        enforced = self.policy.mode == "enforce"
        require(decision.outcome == (decision.verdict if enforced else "approve"), decision.outcome, decision.verdict)
        if self.engine == 2 and item.payment.amount % 7 == 0:
            require(decision.verdict != "approve", "engine 2 did not decide", decision)
        model = self.compiled
        if model is not None and model.ready and model.frauds >= self.policy.matured_frauds_min:
            assert decision.probability is not None
            asked = (self.policy.challenge_from, self.policy.review_from, self.policy.decline_from)
            for code, threshold in enumerate(asked, 1):
                met = threshold is None or decision.probability < threshold or VERDICTS.index(decision.verdict) >= code
                require(met, decision.verdict, "at a probability of", decision.probability, "by", self.policy)
        for rule in self.rules.rules:
            if rule.code == "amount_high" and item.base_amount >= 0:
                worst = VERDICTS.index(rule.action) if item.base_amount > rule.when[0].value else 0
                require(VERDICTS.index(decision.verdict) >= worst, decision.verdict, "though", rule)

    def _repeat(self, item: Repeat, examples: list[Example]) -> None:
        require(not examples, "a repeat taught")
        young = item.at_ms - item.first_at_ms <= self.limits.answer_ttl_ms
        kept = young and item.first_at_ms >= self.answers_from_ms and item.pid in self.answered
        self.causes[item.partition, item.position] = REPEAT if kept else "answer_expired"

    def _skip(self, item: Item, examples: list[Example]) -> None:
        require(not examples, "a skipped record taught")
        if isinstance(item, Placed | Repeat):
            self.causes[item.partition, item.position] = "skipped"
        elif isinstance(item, Clock):
            self.clocks[item.account_partition] = max(self.clocks[item.account_partition], item.clock_ms)
            self.dropped_ms = max(self.dropped_ms, self._kept_from_ms())

    def _judge(self, item: Judged, examples: list[Example]) -> None:
        require(len(examples) <= 1, "a label taught twice")
        for example in examples:
            require(example.pid == item.pid, "an example of another payment")
            require(example.event_ms <= self.reached_ms, "a label taught before silence about its day")
            require(example.fraud == bool(item.fraud), "taught", example.fraud, "by", item)
            require(example.observed_ms == item.observed_ms, "observed at another time")
            before = self.taught.get(item.pid)
            require(example.was_weight == 0 or before is not None, "corrects what was not taught")
            require((example.kind == EXAMPLE_CORRECTED) == (example.was_weight > 0), "not told as a correction")
            require(not before or example.was_weight > 0, "a fraud that was taught is not taken back")
            require(before is None or example.was_fraud == before, "corrects another truth")
            self.taught[item.pid] = example.fraud
        if item.pid in self.placed:
            self.judged[item.pid] = item
            if item.event_ms >= max(self.dropped_ms, self._kept_from_ms()):
                self.counting.judge(item.pid, item.observed_ms, bool(item.fraud))

    def _kept_from_ms(self) -> int:
        return (min(self.clocks) - self.limits.road_ms) // 86_400_000 * 86_400_000

    def _mature(self, examples: list[Example]) -> None:
        clock_ms = min(self.clocks)
        for example in examples:
            horizon_ms = self.limits.maturity_ms
            settles = example.pid in self.unsure
            soon_ms = horizon_ms if settles else min(horizon_ms, PROVISIONAL_MS)
            require(example.event_ms <= clock_ms - soon_ms, "matured before its time")
            require(not settles or example.weight == 1.0 - self.unsure[example.pid], "not what is left of the silence")
            require(settles or example.pid not in self.taught, "matured twice")
            judged = self.judged.get(example.pid)
            if example.kind == EXAMPLE_LABELLED:
                require(judged is not None, "a label taught that never came")
                assert judged is not None
                require(example.fraud == judged.fraud, "taught", example.fraud, "by", judged)
                require(example.observed_ms == judged.observed_ms, "observed at another time")
            else:
                require(example.kind == EXAMPLE_MATURED and not example.fraud, "silence taught", example.kind)
                require(judged is None or not judged.fraud, "silence taught after a label")
                require(example.observed_ms == clock_ms, "matured at", example.observed_ms, "clock", clock_ms)
                require(self.through.get(example.pid, True), "a payment that did not go through taught")
                decision = self.firsts.get(example.pid)
                declined = decision is not None and decision.outcome == "decline" and example.pid not in self.through
                require(not declined, "a declined payment taught by silence")
            self.taught[example.pid] = example.fraud
            if example.weight < 1.0 and not settles:
                self.unsure[example.pid] = example.weight
            else:
                self.unsure.pop(example.pid, None)

    def _complete(self) -> None:
        """All that was due at the last clock has taught, and what nobody took for fraud as soon as silence teaches."""
        for pid, item in self.placed.items():
            event_ms = item.payment.event_time
            if event_ms > self.soon_ms or event_ms <= self.road_ms + 86_400_000 or item.payment.mode == "test":
                continue
            decision = self.firsts.get(pid)
            if event_ms > self.due_ms and (decision is None or (decision.probability or 0.0) >= NOTABLE_PROBABILITY):
                continue
            judged = self.judged.get(pid)
            if judged is not None and judged.fraud is not None:
                require(self.taught.get(pid) == judged.fraud, "a label did not teach", judged)
            through = self.through.get(pid, decision is None or decision.outcome != "decline")
            if judged is not None or pid in self.told_late or not through or not keep_legitimate(pid64(pid)):
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
