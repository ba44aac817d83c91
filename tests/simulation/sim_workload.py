"""What the world sends: payments good and bad, labels before and after them, updates, clocks and control records."""

from random import Random
from typing import Any, NamedTuple

import msgspec
from sim_small import BAD_CLOCK, BAD_CLOCK_ONE_IN, BOMB_AMOUNT, CLOCK_STEP_MS, LATE_BOMB_AMOUNT, PROVISIONAL_MS

from stream.rules.default import DEFAULT_RULES
from stream.rules.policy import Policy
from stream.rules.ruleset import Condition, Rule, RuleSet
from stream.simulate.bad import ALONE, spoil
from stream.stages.control import ModelPayload
from topics.control import Engine, Rates, SourceCap, encode_control, parse_control, payload_as
from topics.limits import Limits
from topics.refusals import Refusal

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
START_MS = 1_735_689_600_000
LABEL_KINDS = (
    "fraud_report",
    "chargeback",
    "chargeback",
    "chargeback_reversed",
    "confirmed_fraud",
    "confirmed_legit",
    "dispute_other",
)
TTL_TOO_LONG = Limits(answer_ttl_ms=2 * DAY_MS, dedupe_horizon_ms=DAY_MS, maturity_ms=DAY_MS)
POLICY_UPSIDE_DOWN = Policy(mode="enforce", challenge_from=0.9, decline_from=0.1, matured_frauds_min=0)
MODEL_OF_OTHERS = ModelPayload(version="1-other", offset=10**9, features="other", compiled=b"")
BAD_CONTROL = (
    b"",
    b"{",
    b'{"kind":"model","by":"x","why":"y","payload":{}}',
    (
        b'{"kind":"rules","by":"x","why":"y","payload":{"rules":[{"code":"a","title":"t","action":"decline","when":'
        b'[{"feature":"there_is_none","op":"gt","value":1}]}]}}'
    ),
    encode_control(kind="settings", by="x", why="an answer without its fingerprint", payload=TTL_TOO_LONG),
    encode_control(kind="policy", by="x", why="what is graver comes sooner", payload=POLICY_UPSIDE_DOWN),
    encode_control(kind="model", by="x", why="it has learned from other features", payload=MODEL_OF_OTHERS),
)
"""By x: none of these may come into force."""
BOMBS = (0, 0, 0, 1, 2)  # payments on which a stage fails
MOVES = (-DAY_MS, -HOUR_MS, -1)  # of a payment that comes again with another time; later ones: see `edge`
CODES = (None, "10.4", "4837", "13.1", "zz")


Headers = tuple[tuple[str, bytes | None], ...]


class Arrives(NamedTuple):
    """One record as a producer sends it, at broker time `at_ms`. `partition` -1: the control topic's one."""

    at_ms: int
    topic: str
    partition: int
    value: bytes | None
    key: bytes | None = None
    headers: Headers = ()


class Workload(NamedTuple):
    events: list[Arrives]
    forgetful: bool


def _limits(rng: Random, forgetful: bool) -> Limits:
    maturity = rng.choice((1, 2)) * DAY_MS
    if forgetful:
        return Limits(
            maturity_ms=maturity,
            road_ms=rng.choice((4, 4, 6)) * DAY_MS,
            dedupe_horizon_ms=rng.choice((2, 2, 3)) * DAY_MS,
            answer_ttl_ms=DAY_MS,
            orphan_ms=DAY_MS,
            lateness_ms=HOUR_MS,
        )
    return Limits(maturity_ms=maturity, dedupe_horizon_ms=5 * DAY_MS, answer_ttl_ms=3 * DAY_MS, lateness_ms=HOUR_MS)


def _rules(rng: Random) -> RuleSet:
    high = Rule(
        code="amount_high",
        title="Large",
        when=(Condition(feature="amount", op="gt", value=float(rng.randrange(5_000, 80_000))),),
        action=rng.choice(("decline", "review", "challenge")),
    )
    return RuleSet(rules=(high, *DEFAULT_RULES.rules[: rng.randrange(3)]))


def _control(rng: Random, at_ms: int, forgetful: bool, kind: str) -> Arrives:
    payload: Any
    if kind == "settings":
        payload = _limits(rng, forgetful)
    elif kind == "policy":
        at = rng.random() ** rng.choice((1, 1, 4))  # an early model thinks little of anything
        payload = Policy(
            mode="enforce" if rng.random() < 0.8 else "shadow",
            challenge_from=max(at / 3, 1e-6),
            review_from=None,
            decline_from=max(at, 1e-6),
            matured_frauds_min=rng.randrange(3),
        )
    elif kind == "rules":
        payload = _rules(rng)
    elif kind == "engine":
        payload = Engine(engine=rng.choice((1, 2, 2, 3)))  # nobody here holds a third
    elif kind == "rates":
        payload = Rates(base="EUR", nano_base_per_minor={"USD": rng.randrange(8 * 10**8, 10**9)})
    elif kind == "source_cap":
        payload = SourceCap(account_id="a0")
    else:
        return Arrives(at_ms, "control", 0, rng.choice(BAD_CONTROL))
    return Arrives(at_ms, "control", 0, encode_control(kind=kind, by="sim", why="seeded", payload=payload))


def _settings_in(event: Arrives) -> Limits:
    control = parse_control(event.value)
    assert not isinstance(control, Refusal)
    return payload_as(control, Limits)


def _payment(rng: Random, number: int, at_ms: int, accounts: int, terminals: int) -> dict[str, Any]:
    payment: dict[str, Any] = {
        "payment_id": f"p{number}",
        "event_time": at_ms - rng.randrange(2_000),
        "account_id": f"a{rng.randrange(accounts)}",
        "amount": rng.choice((0, 999, 2_500, rng.randrange(100_000))),
        "currency": rng.choice(("EUR", "EUR", "EUR", "USD", "JPY")),
    }
    if rng.random() < 0.85:
        payment["terminal_id"] = f"t{rng.randrange(terminals)}"
    if rng.random() < 0.15:
        payment["tenant_id"] = "other"
    if rng.random() < 0.1:
        payment["billing_amount"] = rng.randrange(100_000)
        payment["billing_currency"] = rng.choice(("EUR", "EUR", "JPY"))
    if rng.random() < 0.3:
        payment["mcc"] = rng.choice(("5411", "7995"))
    if rng.random() < 0.2:
        payment["latitude"], payment["longitude"] = rng.uniform(-60, 60), rng.uniform(-170, 170)
    if rng.random() < 0.2:
        payment["respond_by"] = at_ms + 500
    if rng.random() < 0.05:
        payment["operation"] = "refund"
    chance = rng.random()
    if chance < 0.04:
        payment["mode"] = "test"
    elif chance < 0.10:
        payment["mode"] = "backfill"
        payment["event_time"] -= rng.randrange(0, 12 * DAY_MS)
    elif chance < 0.20:
        payment["event_time"] -= rng.randrange(0, 3 * DAY_MS)  # late, perhaps too late
    elif chance < 0.22:
        payment["event_time"] += HOUR_MS  # from the future
    return payment


def _label(rng: Random, payment: dict[str, Any], at_ms: int) -> dict[str, Any]:
    label: dict[str, Any] = {
        "kind": rng.choice(LABEL_KINDS),
        "observed_at": at_ms - rng.randrange(HOUR_MS),
        "payment_id": payment["payment_id"],
        "account_id": payment["account_id"],
        "source": rng.choice(("bank", "scheme")),
    }
    if "tenant_id" in payment:
        label["tenant_id"] = payment["tenant_id"]
    if label["kind"] == "chargeback":
        code = rng.choice(CODES)
        if code is not None:
            label["reason_code"] = code
    if label["kind"] in ("chargeback", "chargeback_reversed") and rng.random() < 0.3:
        label["dispute_id"] = rng.choice(("d1", "d2"))
    if label["kind"] == "chargeback_reversed":
        label["result"] = rng.choice(("evidence", "liability", "withdrawn"))
    return label


def _update(payment: dict[str, Any], kind: str, observed_ms: int) -> dict[str, Any]:
    named = {name: payment[name] for name in ("payment_id", "account_id", "tenant_id") if name in payment}
    return {**named, "kind": kind, "observed_at": observed_ms}


def _headers(rng: Random, number: int) -> Headers:
    """A trace context, as most send none and some send a bad one."""
    trace = b"00-%08x%s-%s-01" % (number, b"abcdef" * 4, b"fedcba98" * 2)
    chance = rng.random()
    if chance < 0.7:
        return ()
    if chance < 0.9:
        return (("tracestate", b"x"), ("traceparent", trace))
    return (("traceparent", rng.choice((None, b"", trace.upper(), trace + b"0", b"\xff" * 55, b"0" * 65))),)


def workload(rng: Random, payments: int, partitions: int) -> Workload:
    """About `payments` payments over ten days and what belongs to them, in order of broker time."""
    encode = msgspec.json.encode
    forgetful = rng.random() < 0.5
    bombs = {rng.randrange(payments): rng.choice((BOMB_AMOUNT, LATE_BOMB_AMOUNT)) for _ in range(rng.choice(BOMBS))}
    events: list[Arrives] = []
    accounts, terminals = rng.choice(((3, 2), (8, 5), (20, 9)))
    at = START_MS
    sent: list[dict[str, Any]] = []

    limits = Limits()

    def send(at_ms: int, topic: str, value: bytes | None, partition: int | None = None) -> None:
        spread = partitions if topic in ("payments", "updates") else 1
        key = rng.choice((None, b"k", b"other"))  # what a client chose as key and partition means nothing to us
        at = rng.randrange(spread) if partition is None else partition
        events.append(Arrives(at_ms, topic, at, value, key, _headers(rng, len(events))))

    def edge(payment: dict[str, Any], at_ms: int) -> None:
        """Records that lie on a limit, and a millisecond to either side of it."""
        partition, off_ms = rng.randrange(partitions), rng.choice((-1, 0, 0, 1))
        newest = {**payment, "event_time": at_ms, "mode": "live", "payment_id": f"{payment['payment_id']}-e"}
        send(at_ms, "payments", encode(newest), partition)
        kind = rng.randrange(10)
        name = {**newest, "payment_id": f"{payment['payment_id']}-f"}
        if kind == 0:
            send(at_ms, "payments", encode({**name, "event_time": at_ms - limits.lateness_ms + off_ms}), partition)
        elif kind == 1:
            send(
                at_ms, "payments", encode({**name, "event_time": at_ms - limits.dedupe_horizon_ms + off_ms}), partition
            )
        elif kind == 2:
            send(at_ms, "payments", encode({**name, "event_time": at_ms + limits.skew_ms + off_ms}), partition)
        elif kind == 3:
            send(
                at_ms + limits.answer_ttl_ms + off_ms,
                "payments",
                encode({**newest, "payment_id": f"{payment['payment_id']}-e"}),
            )
        elif kind == 4:  # the first instant whose answers are kept, when the last one can be asked for
            midnight_ms = (at_ms // DAY_MS + 1) * DAY_MS
            again_ms = midnight_ms + limits.answer_ttl_ms
            named = encode({**name, "event_time": midnight_ms})
            send(midnight_ms, "payments", named, partition)
            send(
                again_ms,
                "payments",
                encode({**name, "event_time": again_ms, "payment_id": f"{payment['payment_id']}-g"}),
                partition,
            )
            send(again_ms, "payments", named, partition)
        elif kind == 5:  # again with a later time, at once: the first cannot have been forgotten
            for event_ms in (at_ms - DAY_MS, at_ms):
                send(at_ms, "payments", encode({**name, "event_time": event_ms}), partition)
        elif kind == 7:  # a fraud that is told twice, and a payment between the two
            report, chargeback = at_ms + HOUR_MS, at_ms + 3 * HOUR_MS
            for when_ms, word in ((report, "fraud_report"), (chargeback, "chargeback")):
                label = {**_label(rng, newest, when_ms), "kind": word, "observed_at": when_ms}
                send(when_ms, "labels", encode({k: v for k, v in label.items() if k != "result"}))
            for event_ms in (at_ms + 2 * HOUR_MS, chargeback):
                between = {**name, "payment_id": f"{name['payment_id']}{event_ms}", "event_time": event_ms}
                send(chargeback + 1, "payments", encode(between), partition)
        elif kind == 8:  # a fraud that has been taught, and is taken back
            clock_ms = at_ms + 2 * limits.maturity_ms
            chargeback = {**_label(rng, newest, clock_ms), "kind": "chargeback", "observed_at": clock_ms}
            chargeback = {key: value for key, value in chargeback.items() if key not in ("result", "dispute_id")}
            reversal = {**chargeback, "kind": "chargeback_reversed", "observed_at": clock_ms + 1}
            reversal["result"] = rng.choice(("evidence", "liability", "withdrawn"))
            send(clock_ms, "labels", encode({"kind": "clock", "observed_at": clock_ms}))
            for label in (chargeback, reversal):
                send(clock_ms + HOUR_MS, "labels", encode(label))
        elif kind == 6:  # a label so long after a clock that it is one, too
            when_ms = at_ms + CLOCK_STEP_MS + off_ms
            send(at_ms, "labels", encode({"kind": "clock", "observed_at": at_ms}))
            send(when_ms, "labels", encode({**_label(rng, newest, when_ms), "observed_at": when_ms}))
        else:
            clock_ms = at_ms + limits.maturity_ms + off_ms
            send(clock_ms, "labels", encode({"kind": "clock", "observed_at": clock_ms}))

    def burst(payment: dict[str, Any], at_ms: int) -> None:
        """More words than are kept of a payment, all before it or all after it: its first ones fill several blocks."""
        before = rng.random() < 0.6
        for i in range(rng.choice((6, 7, 9))):
            when = at_ms - 10_000 + i if before else at_ms + i * rng.choice((1, HOUR_MS))
            send(when, "labels", encode({**_label(rng, payment, when), "observed_at": when - i}))
            if rng.random() < 0.3:
                send(when, "updates", encode(_update(payment, "captured", when - i)))

    for kind in ("settings", "policy", "rules", "rates"):
        if rng.random() < 0.9:
            events.append(_control(rng, at - 1_000, forgetful, kind))
            if kind == "settings":
                limits = _settings_in(events[-1])
    for number in range(payments):
        step = rng.random()
        far = 6 * DAY_MS if step < 0.003 else DAY_MS if step < 0.05 else HOUR_MS if step < 0.6 else 1_000
        at += rng.randrange(far)
        payment = _payment(rng, number, at, accounts, terminals)
        if number in bombs:
            payment["amount"] = bombs[number]
        value = encode(payment)
        sent.append(payment)
        partition = rng.randrange(partitions)
        send(at, "payments", value, partition)
        chance = rng.random()
        if chance < 0.08:  # at once, or days later
            send(at + rng.choice((0, 5_000, HOUR_MS, 2 * DAY_MS, 4 * DAY_MS)), "payments", value)
        elif chance < 0.12:
            moved = payment["event_time"] + rng.choice(MOVES)
            again_ms = at + rng.choice((1, DAY_MS))
            if rng.random() < 0.5:
                send(again_ms, "payments", encode({**payment, "amount": payment["amount"] + 1}))
            else:  # in the same partition: taken in before, the earlier one might be forgotten when the later one comes
                send(again_ms, "payments", encode({**payment, "event_time": moved}), partition)
        elif chance < 0.15:  # the same id by another sender: it has nothing to do with this one
            other = rng.choice(({"account_id": "a1"}, {"tenant_id": "third"}, {"mode": "test"}))
            send(at, "payments", encode({**payment, **other}))
        elif chance < 0.22:
            send(at, "payments", spoil(value, rng.choice(ALONE), number))
        elif chance < 0.24:
            send(at, "payments", rng.choice((None, b"null", b"[]", b"\x00")))
        if rng.random() < 0.08:
            edge(payment, at)
        if rng.random() < 0.35:
            for _ in range(rng.choice((1, 1, 2, 3))):
                when = at + rng.choice((-DAY_MS, -1_000, 0, HOUR_MS, DAY_MS, 3 * DAY_MS))
                label = encode(_label(rng, payment, when))
                send(when, "labels", label)
                if rng.random() < 0.1:
                    send(when + 1_000, "labels", label)
        for _ in range(rng.choice((0, 0, 0, 0, 0, 0, 1, 1, 2, 3))):
            when = at + rng.choice((-1_000, 0, HOUR_MS, DAY_MS))
            kind = rng.choice(("authorised", "declined", "captured", "voided", "refunded", "expired"))
            update = _update(payment, kind, when - rng.randrange(1_000))
            send(when, "updates", encode(update))
            if rng.random() < 0.15:
                send(when + rng.choice((0, HOUR_MS)), "updates", encode(update))
        if rng.random() < 0.03:
            burst(payment, at)
        if rng.random() < 0.02:
            send(at, rng.choice(("labels", "updates")), rng.choice((b"", b"{}", b'{"kind":"clock"}', b"nonsense")))
        if rng.random() < 0.04:
            kind = rng.choice(("settings", "policy", "rules", "rates", "bad", "bad", "engine", "engine", "source_cap"))
            events.append(_control(rng, at, forgetful, kind))
            if kind == "settings":
                limits = _settings_in(events[-1])
    # After all else some payments, and a clock that stands to the millisecond where they mature; and others whose
    # silence begins to teach at that very clock.
    at = max(event.at_ms for event in events) + 1_000
    if rng.random() < 0.2:  # and on that very clock the terminal stage fails
        at += (BAD_CLOCK - at - limits.maturity_ms) % BAD_CLOCK_ONE_IN
    last = at + limits.maturity_ms
    soon = last - min(limits.maturity_ms, PROVISIONAL_MS)
    for number, when in enumerate([at] * 4 + [soon] * 4):
        payment = _payment(rng, payments + number, when, accounts, terminals) | {"event_time": when, "mode": "live"}
        send(when, "payments", encode(payment))
    for when in range(START_MS, last, DAY_MS // rng.choice((1, 2, 4))):
        send(when, "labels", encode({"kind": "clock", "observed_at": when}))
    send(last, "labels", encode({"kind": "clock", "observed_at": last}))
    return Workload(sorted(events, key=lambda event: event.at_ms), forgetful)
