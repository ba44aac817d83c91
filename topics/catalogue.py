"""Every topic: its key, size, retention, who writes it and who reads it. Data, no broker."""

from types import MappingProxyType
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from topics.control import PAYLOAD_BYTES_MAX, ControlKind
from topics.journal import BLOCK_BYTES_MAX
from topics.limits import DAY_MS, INTAKE_BYTES_MAX, LIMITS_DEFAULT

Principal = Literal["processor", "detector", "blocker", "label_feed", "oncall", "operator"]

FOREVER: Final = -1
PARTITIONS_DEFAULT: Final = 4
MESSAGE_BYTES_MAX: Final = 1_048_588

PAYMENTS_RETENTION_MS: Final = 7 * DAY_MS
JOURNAL_RETENTION_MS: Final = 35 * DAY_MS
SNAPSHOT_EVERY_MS_MAX: Final = DAY_MS

assert JOURNAL_RETENTION_MS > 2 * SNAPSHOT_EVERY_MS_MAX, "a restored state must find the rest of its journal"
assert 2 * BLOCK_BYTES_MAX < MESSAGE_BYTES_MAX, "a block and one more large item must pass the broker"
assert PAYLOAD_BYTES_MAX < BLOCK_BYTES_MAX
assert INTAKE_BYTES_MAX < BLOCK_BYTES_MAX
assert LIMITS_DEFAULT.dedupe_horizon_ms >= PAYMENTS_RETENTION_MS, "what can be read again must still be known"


class Topic(Struct, frozen=True, kw_only=True):
    """One topic. `retention_ms` -1: for ever. `public`: others than we write or read it.

    `partitions` 1 is part of the contract (one order); another number is a default that `catalogue` may change.
    """

    name: str
    key: str
    value: str
    partitions: int
    retention_ms: int
    writers: tuple[Principal, ...]
    readers: tuple[Principal, ...]
    purpose: str
    cleanup_policy: Literal["delete", "compact"] = "delete"
    timestamp_type: Literal["LogAppendTime"] = "LogAppendTime"
    max_message_bytes: int = MESSAGE_BYTES_MAX

    @property
    def config(self) -> dict[str, str]:
        """The broker's settings of this topic."""
        return {
            "cleanup.policy": self.cleanup_policy,
            "retention.ms": str(self.retention_ms),
            "retention.bytes": "-1",
            "message.timestamp.type": self.timestamp_type,
            "max.message.bytes": str(self.max_message_bytes),
        }


_ACCOUNT: Final = "tenant_id, account_id"
_OURS: Final = ("detector",)

PAYMENTS: Final = Topic(
    name="payments",
    key="account_id",
    value="Payment, JSON",
    partitions=PARTITIONS_DEFAULT,
    retention_ms=PAYMENTS_RETENTION_MS,
    writers=("processor",),
    readers=("detector", "oncall"),
    purpose="What processors ask. The key and partitioner are theirs, and do not matter.",
)
UPDATES: Final = Topic(
    name="updates",
    key="account_id",
    value="Update, JSON",
    partitions=PARTITIONS_DEFAULT,
    retention_ms=PAYMENTS_RETENTION_MS,
    writers=("processor",),
    readers=("detector", "oncall"),
    purpose="What became of payments.",
)
LABELS: Final = Topic(
    name="labels",
    key="account_id",
    value="Label, JSON",
    partitions=1,
    retention_ms=JOURNAL_RETENTION_MS,
    writers=("label_feed",),
    readers=("detector", "oncall"),
    purpose="Chargebacks and reports. One partition: order is worth more than size.",
)
ACCOUNT_JOURNAL: Final = Topic(
    name="account-journal",
    key="none; partition by hash of " + _ACCOUNT,
    value="Block, msgpack",
    partitions=PARTITIONS_DEFAULT,
    retention_ms=JOURNAL_RETENTION_MS,
    writers=_OURS,
    readers=("detector", "oncall"),
    purpose="The only input of the account stage.",
)
TERMINAL_JOURNAL: Final = Topic(
    name="terminal-journal",
    key="none; partition by hash of tenant_id, terminal_id",
    value="Block, msgpack",
    partitions=PARTITIONS_DEFAULT,
    retention_ms=JOURNAL_RETENTION_MS,
    writers=_OURS,
    readers=("detector", "oncall"),
    purpose="The only input of the terminal stage, which decides.",
)
EXAMPLES: Final = Topic(
    name="examples",
    key="none",
    value="Block, msgpack",
    partitions=1,
    retention_ms=FOREVER,
    writers=_OURS,
    readers=("detector", "oncall"),
    purpose="The only input of the learner. One partition: one total order.",
)
CONTROL: Final = Topic(
    name="control",
    key="kind",
    value="Control, JSON",
    partitions=1,
    retention_ms=FOREVER,
    writers=("detector", "operator"),
    readers=("detector", "oncall", "operator"),
    purpose="All that people and controllers may change.",
)
DECISIONS: Final = Topic(
    name="decisions",
    key="account_id",
    value="Decision, JSON",
    partitions=PARTITIONS_DEFAULT,
    retention_ms=JOURNAL_RETENTION_MS,
    writers=_OURS,
    readers=("detector", "blocker", "oncall"),
    purpose="One effective answer for each record of `payments`.",
)
DECISION_DETAILS: Final = Topic(
    name="decision-details",
    key="account_id",
    value="DecisionDetails, JSON",
    partitions=PARTITIONS_DEFAULT,
    retention_ms=JOURNAL_RETENTION_MS,
    writers=_OURS,
    readers=("detector", "oncall"),
    purpose="What each decision stood on.",
)
DEAD_LETTERS: Final = Topic(
    name="dead-letters",
    key="the refused record's",
    value="DeadLetter, JSON",
    partitions=PARTITIONS_DEFAULT,
    retention_ms=JOURNAL_RETENTION_MS,
    writers=_OURS,
    readers=("detector", "oncall", "operator"),
    purpose="Refused records, once per origin, masked.",
)

TOPICS: Final = (
    PAYMENTS,
    UPDATES,
    LABELS,
    ACCOUNT_JOURNAL,
    TERMINAL_JOURNAL,
    EXAMPLES,
    CONTROL,
    DECISIONS,
    DECISION_DETAILS,
    DEAD_LETTERS,
)

JOURNALS_OF_KIND: Final[MappingProxyType[ControlKind, tuple[str, ...]]] = MappingProxyType(
    {
        "model": (TERMINAL_JOURNAL.name,),
        "rules": (TERMINAL_JOURNAL.name,),
        "policy": (TERMINAL_JOURNAL.name,),
        "settings": (ACCOUNT_JOURNAL.name, TERMINAL_JOURNAL.name, EXAMPLES.name),
        "rates": (ACCOUNT_JOURNAL.name,),  # converted once, and carried onwards in the payment's block
        "engine": (ACCOUNT_JOURNAL.name, TERMINAL_JOURNAL.name, EXAMPLES.name),
        "stopped": (),
        "skip": (),  # these two are the one input that is read ahead
        "source_cap": (ACCOUNT_JOURNAL.name,),  # reserved: nothing obeys it yet
        "init": (),  # read before any journal exists
    }
)
"""Into which journals a control record is copied, by its kind: those whose stage reads it."""


def catalogue(prefix: str = "", partitions: int | None = None) -> dict[str, Topic]:
    """All topics by their name without `prefix`; topics of one partition keep it.

    >>> catalogue("eu.", partitions=12)["payments"].name, catalogue(partitions=12)["labels"].partitions
    ('eu.payments', 1)
    """
    return {
        topic.name: replace(
            topic,
            name=prefix + topic.name,
            partitions=topic.partitions if partitions is None or topic.partitions == 1 else partitions,
        )
        for topic in TOPICS
    }
