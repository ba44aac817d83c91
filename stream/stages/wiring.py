"""Which stage reads which topic. One table for live, off-line and simulated runs."""

from collections.abc import Callable
from typing import Final

from stream.model.learner import Learner
from stream.stages.account import TERMINAL_JOURNAL, AccountStage
from stream.stages.control import CONTROL, ControlStage
from stream.stages.intake import ACCOUNT_JOURNAL, Intake
from stream.stages.learn import LearnStage, fresh_learner
from stream.stages.stage import Journal, Stage
from stream.stages.state import State
from stream.stages.terminal import EXAMPLES, TerminalStage
from topics.journal import LABELS, PAYMENTS, UPDATES

SOURCES: Final = {"payments": PAYMENTS, "updates": UPDATES, "labels": LABELS}


class Partitions:
    """How many partitions each topic has."""

    def __init__(self, *, payments: int = 1, account: int = 1, terminal: int = 1, decisions: int = 1) -> None:
        self.payments = payments
        self.account = account
        self.terminal = terminal
        self.decisions = decisions

    def of(self, topic: str) -> int:
        return {
            "payments": self.payments,
            "updates": self.payments,
            ACCOUNT_JOURNAL: self.account,
            TERMINAL_JOURNAL: self.terminal,
            "decisions": self.decisions,
            "decision-details": self.decisions,
        }.get(topic, 1)


FOREIGN: Final = frozenset({*SOURCES, CONTROL})
"""Topics whose records are not blocks: any bytes, and offsets may have gaps."""

GATHERING: Final = frozenset(SOURCES)
"""Topics each of whose records is a step, so that steps must share blocks."""

STAGE_TOPICS: Final = ("payments", "updates", "labels", CONTROL, ACCOUNT_JOURNAL, TERMINAL_JOURNAL, EXAMPLES)


def build_stage(
    journal: Journal,
    state: State,
    partitions: Partitions,
    *,
    plain: bool = False,
    details: bool = True,
    accounts_max: int = 200_000,
    terminals_max: int = 100_000,
    learner: Callable[[], Learner] = fresh_learner,
) -> Stage:
    """The stage that reads this journal. One table for live, offline and simulated runs."""
    topic = journal.topic
    if topic in SOURCES:
        return Intake(
            source=SOURCES[topic],
            topic_id=journal.topic_id,
            partition=journal.partition,
            partitions=partitions.account,
        )
    if topic == ACCOUNT_JOURNAL:
        return AccountStage(
            state,
            partition=journal.partition,
            partitions=partitions.account,
            terminal_partitions=partitions.terminal,
            decision_partitions=partitions.decisions,
            slots_max=accounts_max,
            plain=plain,
        )
    if topic == TERMINAL_JOURNAL:
        return TerminalStage(
            state,
            partition=journal.partition,
            account_partitions=partitions.account,
            decision_partitions=partitions.decisions,
            slots_max=terminals_max,
            plain=plain,
            details=details,
        )
    if topic == EXAMPLES:
        return LearnStage(state, learner)
    if topic == CONTROL:
        return ControlStage(
            state,
            destinations={ACCOUNT_JOURNAL: partitions.account, TERMINAL_JOURNAL: partitions.terminal, EXAMPLES: 1},
        )
    raise ValueError(f"no stage reads {topic}")
