"""What must hold after any run: against an oracle that read the log once, and against the records themselves."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from itertools import zip_longest
from random import Random
from typing import Any, NamedTuple

import msgspec
import numpy as np
from sim_contract import MARKERS_OF, account_in, clean, number_of, pid_of, place_of, place_of_record, raw_of, trace_of
from sim_log import TP, SimLog
from sim_readings import COUNTED, FIRST, LABELS_MAX, REPEAT, SILENT, AccountReading, Counting, without_features
from sim_small import (
    BLOCK_BYTES_MAX,
    BLOCK_ITEMS_MAX,
    ENGINE,
    PROVISIONAL_MS,
    UNLABELLED_ONE_IN,
    keep_legitimate,
    small_learner,
)
from sim_world import JOURNALS, World

from stream.features import ENTITY_INDEX, FEATURES_VERSION, MODEL_NAMES
from stream.model.compiled import Compiled
from stream.model.learner import Held, Learner, Published
from stream.model.sampling import NOTABLE_PROBABILITY
from stream.replay.log import local_topic_id
from stream.rules.default import DEFAULT_RULES
from stream.rules.policy import DEFAULT_POLICY, VERDICTS, decode_policy, policy_version
from stream.rules.ruleset import decode_ruleset, ruleset_version
from stream.runner.errors import ForeignState, GapInJournal, StateAheadOfLog, StateBehindLog, Unreadable
from stream.runner.partition import META_KEY, PartitionRunner, Reseek, Send, suppress_below
from stream.stages import keys
from stream.stages.account import AccountStage
from stream.stages.control import ModelPayload, control_of
from stream.stages.keys import TABLE_PENDING
from stream.stages.learn import LearnStage
from stream.stages.stage import Journal, Record
from stream.stages.state import MemoryStore, State
from stream.stages.terminal import TerminalStage
from stream.stages.wiring import FOREIGN, GATHERING, STAGE_TOPICS, Partitions, build_stage
from topics.codec import parse_label, parse_payment, parse_update
from topics.control import Engine, Skip, parse_control, payload_as
from topics.dead_letter import DeadLetter
from topics.decision import Decision, Origin, Position
from topics.details import DecisionDetails
from topics.journal import (
    EXAMPLE_CORRECTED,
    EXAMPLE_LABELLED,
    EXAMPLE_MATURED,
    EXAMPLE_UNLABELLED,
    FIRST_PREV,
    LAYOUT,
    Became,
    Clock,
    Example,
    Item,
    Judged,
    Marker,
    Placed,
    Raw,
    Repeat,
    Tick,
    decode_block,
    encode_block,
)
from topics.limits import LIMITS_DEFAULT, Limits
from topics.payment import Payment
from topics.refusals import Refusal
from topics.truth import truth_of

SOURCES = ("payments", "updates", "labels")
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
        require(len(block.items) <= BLOCK_ITEMS_MAX, "a block of", len(block.items), "items")
        raw_bytes = sum(len(item.value) for item in block.items if isinstance(item, Raw))
        require(len(block.items) == 1 or raw_bytes <= BLOCK_BYTES_MAX, "a block of", raw_bytes, "bytes of records")
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
        self.told: list[tuple[int, int]] | None = [] if batch == 1 else None  # records to no journal, by offset
        records = log.all(tp)
        for turn, start in enumerate(range(0, len(records), batch)):
            sends = runner.step(records[start : start + batch])
            if isinstance(sends, Reseek):  # a hole in a foreign topic: look twice
                sends = runner.step(records[start : start + batch])
            assert not isinstance(sends, Reseek)
            self.sends += sends
            if self.told is not None:
                self.told.append((records[start].offset, sum(send.topic not in JOURNALS for send in sends)))
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


def check(world: World, forgetful: bool, rng: Random, *, exact_windows: bool) -> None:
    """Raises `Wrong` at the first promise that was not kept. `exact_windows`: no entity's ring has overflowed."""
    log, partitions = world.log, world.partitions
    counted = {tp: effective(log.all(tp)) for tp in world.tps if tp[0] in JOURNALS}
    skips = skips_of(world)
    check_against_oracle(world, counted, skips, rng)
    check_refusals(world)
    check_intake(world, counted)
    check_control(world, counted)
    accounts = check_accounts(world, counted, skips, exact_windows=exact_windows)
    answers = check_answers(log, accounts, partitions.decisions)
    check_examples(world, counted, skips, answers, exact_windows=exact_windows)
    check_learner(world, counted["examples", 0], skips["examples", 0])
    if not forgetful and not any(skips.values()):
        firsts = {pid: decision for pid, decision in answers.firsts.items() if pid not in accounts.lapsed}
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


def check_intake(world: World, counted: dict[TP, list[Any]]) -> None:
    """Every foreign record is in the account journal once, where its account lives; a clock in every partition."""
    log, accounts = world.log, world.partitions.account
    for source, topic in enumerate(("payments", "updates", "labels")):
        topic_id = local_topic_id(topic)
        for partition in range(world.partitions.of(topic)):
            expected: list[list[Raw]] = [[] for _ in range(accounts)]
            for record in log.all((topic, partition)):
                raw = msgspec.structs.replace(raw_of(record, source), traceparent=trace_of(record.headers))
                named = account_in(raw.value) if raw.oversize is None else None
                if named is not None and topic == "labels" and named[2] == "clock":
                    places = range(accounts)
                elif named is not None and named[1]:
                    places = range((at := place_of(*named[:2], accounts)), at + 1)
                else:
                    at = place_of_record(topic_id, partition, record.offset, accounts)
                    places = range(at, at + 1)
                for at in places:
                    expected[at].append(raw)
            for at in range(accounts):
                items = counted["account-journal", at]
                found = [
                    msgspec.structs.replace(item, traceparent=clean(item.traceparent))
                    for *_, sender, item in items
                    if sender == (topic_id, partition)
                ]
                for ours, theirs in zip_longest(found, expected[at]):
                    require(ours == theirs, topic, partition, "came as", ours, "and not as", theirs)


def check_control(world: World, counted: dict[TP, list[Any]]) -> None:
    """Every control record that may come into force is in each journal whose stage reads its kind, and no other."""
    expected: dict[TP, list[Marker]] = {tp: [] for tp in world.tps if tp[0] in JOURNALS}
    learned_to = -1
    for _, record in world.log.of("control"):
        control = parse_control(record.value)
        if isinstance(control, Refusal) or control.by == "x":
            continue
        if control.kind == "engine" and not 1 <= payload_as(control, Engine).engine <= ENGINE:
            continue
        if control.kind == "model":
            payload = payload_as(control, ModelPayload)
            if payload.held is not None or payload.offset <= learned_to:
                continue
            learned_to = payload.offset
        places = [tp for topic in MARKERS_OF.get(control.kind, ()) for tp in sorted(expected) if tp[0] == topic]
        for j, tp in enumerate(places):
            expected[tp].append(Marker(record.offset, j, control.kind, record.value or b""))
    for tp, markers in expected.items():
        found = [item for *_, item in counted[tp] if isinstance(item, Marker)]
        for ours, theirs in zip_longest(found, markers):
            require(ours == theirs, tp, "heard of", ours, "instead of", theirs)


def check_learner(world: World, items: list[tuple[int, int, Any, Item]], skips: set[int]) -> None:
    """The versions on record are those that a learner makes which is taught what the examples say, in their order."""
    learner = small_learner()
    expected: list[tuple[int, str, bool]] = []
    taught = False
    for offset, _, _, item in items:
        if offset in skips:
            continue
        if isinstance(item, Tick):
            active = learner.active
            made = learner.tick(offset)
            require(made is None or taught, "a version of nothing new")
            require(isinstance(made, Published) or learner.active is active, "in force without being published")
            taught = False
            if isinstance(made, Published | Held):
                expected.append((offset, made.compiled.version, isinstance(made, Held)))
        elif isinstance(item, Example):
            teach_plainly(learner, item)
            taught = True
    found: list[tuple[int, str, bool]] = []
    for _, record in world.log.of("control"):
        if record.key == b"model":
            control = parse_control(record.value)
            assert not isinstance(control, Refusal)
            payload = payload_as(control, ModelPayload)
            found.append((payload.offset, payload.version, payload.held is not None))
    require(
        sorted(set(found)) == expected, "versions", sorted(set(found) ^ set(expected))[:2], "are not what was taught"
    )
    stage = world.host_of(("examples", 0)).runner.stage
    assert isinstance(stage, LearnStage)
    require(stage.learner.to_bytes() == learner.to_bytes(), "the learner is another than one that is taught plainly")


def teach_plainly(learner: Learner, example: Example) -> None:
    features = np.frombuffer(example.features, np.float32)
    named = example.source if example.source not in (None, "", "maturity") else "unnamed"
    source = "maturity" if example.kind == EXAMPLE_MATURED else named
    label = "fraud_report" if example.provisional else "confirmed_fraud"
    day = example.observed_ms // 86_400_000
    if example.kind == EXAMPLE_UNLABELLED:
        learner.unlabelled(features)
    elif example.kind == EXAMPLE_CORRECTED:
        was = example.was_weight / 2 if example.was_provisional else example.was_weight
        learner.correct(features, example.was_fraud, was, example.fraud, example.weight, source, label, day=day)
    else:
        learner.example(features, example.fraud, example.weight, source, label, day=day)


def check_accounts(
    world: World, counted: dict[TP, list[Any]], skips: dict[TP, set[int]], *, exact_windows: bool
) -> "Accounts":
    """What the account stage made of its journal is what plain rules make of it."""
    partitions = world.partitions
    becomes: dict[tuple[int, int], str] = {}
    engines: dict[tuple[int, int], int] = {}
    lapsed: set[bytes] = set()
    refused: set[tuple[str, int, int]] = set()
    for partition in range(partitions.account):
        tp = ("account-journal", partition)
        reading = AccountReading(partition, partitions.account, partitions.terminal, skips[tp])
        reading.read(counted[tp])
        becomes |= reading.expected
        engines |= reading.engines
        lapsed |= reading.lapsed
        stage = world.host_of(tp).runner.stage
        assert isinstance(stage, AccountStage)
        ours = (stage.label_clock_ms, stage.newest_event_ms)
        require(ours == (reading.clock_ms, max(reading.watermarks.values(), default=0)), tp, "its clocks are", ours)
        check_account_state(dict(world.host_of(tp).disk.store.pairs()), reading)
        refused |= {(SOURCES[source], *sender[1:], offset) for source, sender, offset in reading.refused}
        for to, expected in reading.items.items():
            found = [item for *_, sender, item in counted[to] if sender == (local_topic_id(tp[0]), partition)]
            for ours, theirs in zip_longest(without_features(found), expected):
                require(ours == theirs, to, "got", ours, "where plain rules give", theirs)
            for item in found:
                if isinstance(item, Placed) and exact_windows:
                    row = np.frombuffer(item.entities[0], np.float32)
                    check_features(row, [ENTITY_INDEX[name] for name in COUNTED], reading.features[item.offset, item.n])
    buried = {at for at in letters_of(world.log) if at[0] != "payments"}
    require(buried == refused, "labels or updates in the dead letters:", sorted(buried ^ refused)[:3])
    return Accounts(becomes, engines, lapsed)


class Accounts(NamedTuple):
    """`becomes` and, of those that are refused, `engines`: by payment record. `lapsed`: hashes of payments whose labels
    waited in vain, for one whose intake was away for longer than `orphan_ms`."""

    becomes: dict[tuple[int, int], str]
    engines: dict[tuple[int, int], int]
    lapsed: set[bytes]


def check_account_state(pairs: dict[bytes, bytes], reading: AccountReading) -> None:
    """What is on disk is what the rules remember, and no more."""
    if not reading.n and not reading.offset:
        return
    for table, what, expected in (
        (keys.TABLE_LEDGER, "payments", set(reading.known)),
        (keys.TABLE_TRUTH, "truths", {pid for pid, labels in reading.labels.items() if labels}),
        (keys.TABLE_ORPHAN, "labels without a payment", set(reading.waiting)),
        (keys.TABLE_ORPHAN_DUE, "labels that are to be forgotten", set(reading.waiting)),
    ):
        check_pids(pairs, table, what, expected)
    watermarks, *_, orphans = msgspec.msgpack.decode(pairs[keys.TABLE_GLOBALS])[:4]
    ours = {(topic, partition): ms for topic, partition, ms in watermarks}
    require(ours == reading.watermarks, "watermarks", ours, "where plain rules give", reading.watermarks)
    require(orphans == len(reading.waiting), orphans, "payments waited for, and not", len(reading.waiting))


def check_pids(pairs: dict[bytes, bytes], table: bytes, what: str, expected: set[bytes]) -> None:
    found = [key[-keys.PID_BYTES :] for key in pairs if key[:1] == table]
    require(len(found) == len(set(found)) and set(found) == expected, what, "kept:", set(found) ^ expected)


def letters_of(log: SimLog) -> dict[tuple[str, int, int], set[bytes]]:
    """Dead letters by the place of the record that was refused."""
    letters: dict[tuple[str, int, int], set[bytes]] = defaultdict(set)
    for _, record in log.of("dead-letters"):
        named = {name: value or b"" for name, value in record.headers}
        at = [named[f"__connect.errors.{word}"].decode() for word in ("topic", "partition", "offset")]
        letters[at[0], int(at[1]), int(at[2])].add(record.value or b"")
    return letters


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
            block = decode_block(records[0].value or b"")
            newer = encode_block(msgspec.structs.replace(block, layout=LAYOUT + 1))
            for value in (newer, b"", b"nonsense"):
                bad = records[0]._replace(value=value)
                _must_raise(Unreadable, lambda runner=runner, bad=bad: runner.step([bad]))
        host = world.host_of(tp)
        _must_raise(StateAheadOfLog, lambda host=host: host.runner.check_log(0, host.runner.next_offset - 1))
        committed = world.group.offsets.get(tp)
        if committed is not None:
            again = suppress_below(local_topic_id(f"{tp[0]} made again"), *committed)
            require(not again, tp, "suppresses answers on the word of a topic that is gone")
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
        batch = rng.choice((1, *BATCHES) if tp[0] == "terminal-journal" else BATCHES)
        plain = rng.random() < 0.5
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
    """Whoever applied a record sent all that goes to journals, whatever had been committed before; and of all else what
    had not been committed."""
    origins = {to: [(item.offset, item.n) for item in items] for to, items in oracle.items().items()}
    for host in world.past:
        if host.tp != tp:
            continue
        for to in sorted(origins.keys() | host.sent.keys()):
            expected = [origin for origin in origins.get(to, []) if host.start <= origin[0] < host.end]
            require(host.sent.get(to, []) == expected, tp, "did not send again what goes to", to)
        if oracle.told is not None:
            start = max(host.start, host.runner.suppress_below)
            told = sum(count for offset, count in oracle.told if start <= offset < host.end)
            require(host.told == told, tp, "sent", host.told, "answers of", told, "from", start, "to", host.end)


def check_answers(log: SimLog, accounts: Accounts, partitions: int) -> "Answers":
    """One effective answer a record, and the one that plain rules give. `partitions`: of decisions."""
    becomes = accounts.becomes
    answers: dict[tuple[bytes, int, int], set[tuple[int, bytes | None, bytes, bytes, str | None]]] = defaultdict(set)
    for p, record in log.of("decisions"):
        named = {name: value or b"" for name, value in record.headers}
        topic, part, offset = named["origin"].split(b":")
        require(named["ce_id"] == named["origin"], "an answer's event has another id than its origin")
        answer = (p, record.key, record.value or b"", named["answer"], trace_of(record.headers))
        answers[bytes.fromhex(topic.decode()), int(part), int(offset)].add(answer)
    letters = letters_of(log)
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
        (place, key, value, header, trace) = next(iter(copies))
        decision = msgspec.json.decode(value, type=Decision)
        require(trace == trace_of(record.headers), at, "was answered with the trace context", trace)
        check_addressed(decision, None if isinstance(parsed, Refusal) else parsed.payment, word, at)
        if decision.account_id is None:
            there = (place_of_record(payments_id, p, record.offset, partitions), None)
        else:
            account = decision.account_id
            there = (place_of(decision.tenant_id or "", account, partitions), account.encode())
        require((place, key) == there, at, "was answered at", (place, key), "and not at", there)
        repeated = word == REPEAT and decision.outcome != "refused"
        require(header == (b"repeat" if repeated else b"first"), at, word, "was answered as", header)
        if word not in (FIRST, REPEAT):
            require(decision.cause == word, at, "answered", decision.outcome, decision.cause, "instead of", word)
            engine = accounts.engines[p, record.offset]
            require(decision.versions.engine == engine, at, "refused by engine", decision.versions.engine)
        causes[p, record.offset] = decision.cause or word
        require((decision.outcome == "refused") == (decision.cause is not None), at, "refused without a cause")
        if isinstance(parsed, Refusal):
            require(decision.outcome == "refused", at, "is bad and was not refused")
            require(decision.cause in (parsed.cause, "skipped"), at, decision.cause, parsed.cause)
        in_letters = word not in (FIRST, REPEAT)
        require((at in letters) == in_letters, at, decision.cause, "in the dead letters:", at in letters)
        for letter in letters.get(at, ()):
            told = msgspec.json.decode(letter, type=DeadLetter)
            require(told.cause == decision.cause, at, "is buried for", told.cause, "and refused for", decision.cause)
            require(told.origin == decision.origin, at, "is buried as", told.origin)
        if decision.outcome == "refused":
            require(decision.origin.partition == p and decision.origin.offset == record.offset, at, "wrong origin")
            continue
        assert not isinstance(parsed, Refusal)
        payment = parsed.payment
        identity = (payment.tenant_id, payment.account_id, payment.payment_id, payment.mode)
        require(values_of.setdefault(identity, value) == value, "answers of", identity, "differ")
        content = contents.setdefault(identity, parsed.fingerprint_source)
        require(content == parsed.fingerprint_source, "other content of", identity, "was answered as if it were known")
        pid = pid_of(payment.tenant_id, payment.account_id, payment.payment_id, test=payment.mode == "test")
        firsts[pid] = decision
    require(len(answers) == expected, "answers to", len(answers), "records, expected", expected)
    return Answers(firsts, causes)


def check_addressed(decision: Decision, payment: Payment | None, word: str, at: object) -> None:
    """An answer says whose it is: all that is known of a payment that could be read, else nothing."""
    require(decision.versions.features == FEATURES_VERSION, at, "features", decision.versions.features)
    said = (decision.tenant_id, decision.account_id, decision.payment_id, decision.mode)
    if payment is None or word == "skipped":
        require(said == (None, None, None, "live"), at, "is answered as", said)
        return
    require(said == (payment.tenant_id, payment.account_id, payment.payment_id, payment.mode), at, "answers", said)
    times = (decision.event_time, decision.respond_by)
    if word != REPEAT or decision.cause is None:  # of a repeat that cannot be answered again, no more is at hand
        require(times == (payment.event_time, payment.respond_by), at, "is answered with the times", times)


class Answers(NamedTuple):
    """`firsts`: decisions by payment hash. `causes`: by payment record, why it is refused, else FIRST or REPEAT."""

    firsts: dict[bytes, Decision]
    causes: dict[tuple[int, int], str]


def check_examples(
    world: World,
    counted: dict[TP, list[Any]],
    skips: dict[TP, set[int]],
    answers: Answers,
    *,
    exact_windows: bool,
) -> None:
    """Examples have the features of the decision; maturity runs on the labels' clock: by the records alone."""
    log, partitions = world.log, world.partitions
    features: dict[bytes, bytes] = {}
    described: dict[bytes, DecisionDetails] = {}
    for _, record in log.of("decision-details"):
        details = msgspec.json.decode(record.value or b"", type=DecisionDetails)
        of = details.decision
        pid = pid_of(of.tenant_id or "", of.account_id or "", of.payment_id or "", test=of.mode == "test")
        require(features.setdefault(pid, details.features) == details.features, "features of", of.payment_id)
        described[pid] = details
    caused: dict[tuple[int, int, int], list[Example]] = defaultdict(list)
    for _, _, sender, item in counted["examples", 0]:
        if isinstance(item, Example):
            caused[sender[1], item.offset, item.n >> 8].append(item)
            if item.pid in features:
                require(item.features == features[item.pid], "an example has other features than its decision")
    for partition in range(partitions.terminal):
        tp = ("terminal-journal", partition)
        reading = Reading(
            partition, partitions.account, caused, answers, skips[tp], described, exact_windows=exact_windows
        )
        reading.read(counted[tp])
        stage = world.host_of(tp).runner.stage
        assert isinstance(stage, TerminalStage)
        require(stage.label_clock_ms == min(reading.clocks), tp, "its labels' clock is", stage.label_clock_ms)
        reading.check_state(dict(world.host_of(tp).disk.store.pairs()))
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
        described: dict[bytes, DecisionDetails],
        *,
        exact_windows: bool,
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
        self.described = described
        self.exact_windows = exact_windows
        self.late_rows: set[bytes] = set()  # of payments that came when their day had been dropped
        self.provisional: set[bytes] = set()  # what was taught of these was a provisional fraud
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
                self._place(item, examples, (offset, place << 8))
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
            self.dropped_ms = max(self.dropped_ms, self._kept_from_ms())
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

    def _place(self, item: Placed, examples: list[Example], at: tuple[int, int]) -> None:
        require(item.pid not in self.placed, "a payment is FIRST twice")
        self.placed[item.pid] = item
        wanted = item.payment.mode != "test" and number_of(item.pid) % UNLABELLED_ONE_IN == 0
        require([e.kind for e in examples] == [EXAMPLE_UNLABELLED] * wanted, "unlabelled examples")
        if item.payment.event_time < self.dropped_ms:
            self.late_rows.add(item.pid)
        self.causes[item.partition, item.position] = FIRST
        self.latest_ms = max(self.latest_ms, item.at_ms)
        keep_from_ms = (self.latest_ms - self.limits.answer_ttl_ms) // 86_400_000 * 86_400_000
        self.answers_from_ms = max(self.answers_from_ms, keep_from_ms)
        payment = item.payment
        if payment.mode != "backfill":
            self.answered.add(item.pid)
        details = self.described.get(item.pid)
        if payment.terminal_id is not None:
            clock_ms, maturity_ms = min(self.clocks), self.limits.maturity_ms
            counted = self.counting.place(item, payment.terminal_id, payment.account_id, clock_ms, maturity_ms)
            if details is not None and self.exact_windows:
                row = np.frombuffer(details.features, np.float32)
                check_features(row, *zip(*[(at, counted[i]) for at, i in TERMINAL_COLUMNS], strict=True))
        decision = self.firsts.get(item.pid)
        if payment.mode != "backfill":
            require(details is not None, "no details of", payment.payment_id)
            assert details is not None
            require(details.decision.position == Position(self.partition, *at), "decided at", details.decision.position)
            self._decided(item, details.decision)
            self._described(item, details)
            require(decision in (None, details.decision), "details of another decision than", decision)

    def _decided(self, item: Placed, decision: Decision) -> None:
        """By what was in force at this place, and by nothing else."""
        found = decision.versions
        require(found.model == self.model, "decided by", found.model, "not", self.model)
        require(found.engine == self.engine, "decided by engine", found.engine, "not", self.engine)
        require(found.rules == self.rules_version, "decided by rules", found.rules)
        require(found.policy == self.policy_version, "decided by policy", found.policy)
        origin = Origin("payments", item.partition, item.position)
        require(decision.origin == origin, "the origin of a first answer is", decision.origin)
        enforced = self.policy.mode == "enforce"
        require(decision.policy_mode == self.policy.mode, "policy mode", decision.policy_mode)
        require(decision.outcome == (decision.verdict if enforced else "approve"), decision.outcome, decision.verdict)
        if self.engine == 2 and item.payment.amount % 7 == 0:
            require(decision.verdict != "approve", "engine 2 did not decide", decision)
        for rule in self.rules.rules:
            if rule.code == "amount_high" and item.base_amount >= 0:
                worst = VERDICTS.index(rule.action) if item.base_amount > rule.when[0].value else 0
                require(VERDICTS.index(decision.verdict) >= worst, decision.verdict, "though", rule)

    def _described(self, item: Placed, details: DecisionDetails) -> None:
        """What the decision stood on: the model's score of these very features, and the thresholds."""
        require(details.late == item.late, "late is", details.late, "in details")
        policy = self.policy
        limits = {"challenge": policy.challenge_from, "review": policy.review_from, "decline": policy.decline_from}
        asked = {verdict: limit for verdict, limit in limits.items() if limit is not None}
        require(details.limits == asked, "limits", details.limits, "are told of", policy)
        probability = details.decision.probability
        if self.compiled is None:
            require(probability is None, "a probability without a model")
        else:
            expected = self.compiled.score(np.frombuffer(details.features, np.float32)[None])[0].tolist()
            require([probability] == expected, "probability", probability, "where the model gives", expected)
        hit = {hit.rule for hit in details.hits}
        code = max([0, *(VERDICTS.index(rule.action) for rule in self.rules.rules if rule.code in hit)])
        model = self.compiled
        if model is not None and model.ready and model.frauds >= policy.matured_frauds_min:
            assert probability is not None
            code = max([code, *(VERDICTS.index(verdict) for verdict, limit in asked.items() if probability >= limit)])
        if self.engine == 2 and item.payment.amount % 7 == 0:
            code = max(code, VERDICTS.index("challenge"))
        require(details.decision.verdict == VERDICTS[code], details.decision, "where it should be", VERDICTS[code])

    def check_state(self, pairs: dict[bytes, bytes]) -> None:
        """What is on disk is what the rules remember, and no more."""
        if not self.placed:
            return
        kept = {pid for pid in self.answered if self.placed[pid].at_ms >= self.answers_from_ms}
        check_pids(pairs, keys.TABLE_ANSWER, "answers", kept)
        rows = {key[9:]: int.from_bytes(key[1:9], "big") for key in pairs if key[:1] == keys.TABLE_PENDING}
        for pid, event_ms in rows.items():
            require(event_ms >= self.dropped_ms or pid in self.late_rows, "a row outlived its road")
        lacking = {
            pid
            for pid, item in self.placed.items()
            if pid not in rows and item.payment.mode != "test" and item.payment.event_time >= self.dropped_ms
        }
        require(not lacking, "rows of payments are gone:", len(lacking))
        waits = {key[9:]: int.from_bytes(key[1:9], "big") for key in pairs if key[:1] == keys.TABLE_LATE_DUE}
        require(all(event_ms > self.soon_ms for event_ms in waits.values()), "a late row was not asked what it teaches")
        unsure = {key[9:]: int.from_bytes(key[1:9], "big") for key in pairs if key[:1] == keys.TABLE_UNSURE}
        require(all(self.due_ms < event_ms for event_ms in unsure.values()), "an unsure row is mature")

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
        before, was_provisional = self.taught.get(item.pid), item.pid in self.provisional
        for example in examples:
            require(example.pid == item.pid, "an example of another payment")
            require(self.placed[item.pid].payment.mode != "test", "a test payment taught")
            require(example.event_ms <= self.reached_ms, "a label taught before silence about its day")
            require(example.fraud == bool(item.fraud), "taught", example.fraud, "by", item)
            require(example.observed_ms == item.observed_ms, "observed at another time")
            require(example.was_weight == 0 or before is not None, "corrects what was not taught")
            require((example.kind == EXAMPLE_CORRECTED) == (example.was_weight > 0), "not told as a correction")
            require(not before or example.was_weight > 0, "a fraud that was taught is not taken back")
            require(before is None or example.was_fraud == before, "corrects another truth")
            require(example.was_provisional == was_provisional, "corrects with another weight than was taught")
            self._check_words(example, item)
            self.taught[item.pid] = example.fraud
            self.unsure.pop(item.pid, None)
        self._missed(item, before, was_provisional, examples)
        if item.pid in self.placed:
            self.judged[item.pid] = item
            if item.event_ms >= self.dropped_ms:
                self.counting.judge(item.pid, item.observed_ms, bool(item.fraud))

    def _missed(self, item: Judged, before: bool | None, was_provisional: bool, examples: list[Example]) -> None:
        """A label that says something else than was taught, or says it for certain, teaches while its row is kept."""
        if before is None or item.event_ms < self.dropped_ms:
            return
        firmer = was_provisional and item.fraud and not item.provisional
        require(examples or (before == bool(item.fraud) and not firmer), "was not taught:", item, "after", before)

    def _check_words(self, example: Example, judged: Judged) -> None:
        """What a label teaches is told with its source; and whether it is a provisional fraud."""
        provisional = bool(judged.fraud) and judged.provisional
        require(example.source == judged.source, "taught by", example.source, "and not by", judged.source)
        require(example.provisional == provisional, "taught as provisional:", example.provisional, judged)
        require(example.weight == 1.0, "a label weighs", example.weight)
        (self.provisional.add if provisional else self.provisional.discard)(example.pid)

    def _kept_from_ms(self) -> int:
        return (min(self.clocks) - self.limits.road_ms) // 86_400_000 * 86_400_000

    def _mature(self, examples: list[Example]) -> None:
        clock_ms = min(self.clocks)
        for example in examples:
            horizon_ms = self.limits.maturity_ms
            require(self.placed[example.pid].payment.mode != "test", "a test payment taught")
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
                self._check_words(example, judged)
            else:
                require(example.kind == EXAMPLE_MATURED and not example.fraud, "silence taught", example.kind)
                require(judged is None or not judged.fraud, "silence taught after a label")
                require(example.observed_ms == clock_ms, "matured at", example.observed_ms, "clock", clock_ms)
                require(self.through.get(example.pid, True), "a payment that did not go through taught")
                decision = self.firsts.get(example.pid)
                declined = decision is not None and decision.outcome == "decline" and example.pid not in self.through
                require(not declined, "a declined payment taught by silence")
                if not settles and decision is not None:
                    self._check_weight(example, (decision.probability or 0.0) >= NOTABLE_PROBABILITY)
            self.taught[example.pid] = example.fraud
            if example.weight < 1.0 and not settles:
                self.unsure[example.pid] = example.weight
            else:
                self.unsure.pop(example.pid, None)

    def _check_weight(self, example: Example, notable: bool) -> None:
        """Silence weighs what the payment stands for; of a notable one that is not mature, only a part of it."""
        if not notable:
            require(example.weight == keep_legitimate(number_of(example.pid)), "silence weighs", example.weight)
        elif example.event_ms <= min(self.clocks) - self.limits.maturity_ms:
            require(example.weight == 1.0, "the silence about a notable payment weighs", example.weight)
        else:
            require(0.0 < example.weight < 1.0, "silence is told for certain before its time", example.weight)

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
            if judged is not None or pid in self.told_late or not through or not keep_legitimate(number_of(pid)):
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
        pid = pid_of(label.tenant_id, label.account_id or "", label.payment_id or "")
        if label not in labels[pid] and label.observed_at <= record.at_ms + LIMITS_DEFAULT.skew_ms:
            labels[pid].append(label)
    words = Counter(pid for pid, heard in labels.items() for _ in heard)
    for _, record in log.of("updates"):
        update = parse_update(record.value or b"", LIMITS_DEFAULT)
        if not isinstance(update, Refusal):
            of = update.update
            words[pid_of(of.tenant_id, of.account_id or "", of.payment_id or "")] += 1
    said: dict[bytes, Judged] = {}
    for partition in range(partitions.terminal):
        for _, _, _, item in counted["terminal-journal", partition]:
            if isinstance(item, Judged):
                said[item.pid] = item
    for pid in firsts:
        if pid in labels and words[pid] <= LABELS_MAX:  # of more words than that not all are kept
            judged = said.get(pid)
            require(judged is not None, "labels of", firsts[pid].payment_id, "never met it")
            assert judged is not None
            require(judged.fraud == truth_of(labels[pid]).fraud, "labels of", firsts[pid].payment_id, "say else")


STAGES = STAGE_TOPICS
