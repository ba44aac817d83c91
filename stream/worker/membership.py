"""Faust's part: which partitions are ours, the agents that work on them, and the end of the process.

    thread of Faust's consumer (aiokafka)        event loop
    ─────────────────────────────────────        ─────────────────────────────────────────────────────────────
    heartbeats, joins, commits
    the group is about to change      ──wait──►  no new round, the running ones finish, then `on_hold(owned)`
    join, sync: our partitions        ──tell──►  `on_revoked(lost)`, kept ones go on at once, `on_assigned(added)`

Kafka's eager protocol takes everything away at each rebalance and tells afterwards what comes back. So stores stay
open over it: what was ours before and after, with nobody in between (same member, next generation), is *kept*.

Faust and aiokafka fetch nothing here (aiokafka's fetcher is closed when it is born) and commit nothing by themselves;
no Faust producer, table, topic or changelog exists. The group's generation fences a zombie: `commit` says
`CommitFenced`.
"""

import asyncio
import logging
import os
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn, cast

import aiokafka
import faust
from aiokafka.errors import (
    IllegalGenerationError,
    InconsistentGroupProtocolError,
    KafkaError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.app.base import BootStrategy
from faust.auth import GSSAPICredentials, SASLCredentials, SSLCredentials
from faust.transport.consumer import ensure_TPset
from faust.transport.drivers import aiokafka as driver
from faust.types.auth import CredentialsT
from mode import Service
from mode.supervisors import CrashingSupervisor

from stream.errors import ConfigurationError, FraudstreamError
from stream.worker.assignor import NAME, StateAssignor
from stream.worker.fetch import TP, Fetcher, FetchError, FetchSettings, Round
from stream.worker.uninterrupted import to_its_end

log = logging.getLogger(__name__)

COMMIT_HELD_S = 5.0  # for a commit that meets transient errors while the group waits for us
COMMIT_AGAIN_S = 0.1
LEAVE_S = 3.0  # for the group's coordinator to take our leave, before the session timeout does it
ALIVE_EVERY_S = 1.0
EXIT_FAILED = 1
EXIT_STUCK = 70  # the shutdown itself hung
NO_GENERATION = -1
FENCING = (UnknownMemberIdError, IllegalGenerationError, RebalanceInProgressError)

Owned = frozenset[TP]
Callback = Callable[[set[TP]], Awaitable[None]]
Handler = Callable[[Round], Awaitable[None]]


class CommitFenced(FraudstreamError):
    """The group no longer takes this member's commits for these partitions: another may own them.

    Nothing was committed. Whoever holds their state stops working on it and waits for `on_revoked` or a new round.
    """


@dataclass(frozen=True, kw_only=True)
class MembershipSettings:
    """How a worker is a member of its group. All durations in seconds.

    `stalled_s`: an event loop that did not run for so long makes the member leave, as if it had died.
    `rebalance_s`: how long the others wait for us to finish our rounds before they go on without us.
    """

    group_id: str
    bootstrap_servers: str
    client_id: str = "fraudstream"
    security: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)  # librdkafka's own option names
    session_timeout_s: float = 10.0
    heartbeat_s: float = 1.0  # also how soon a member learns that the group is changing
    rebalance_s: float = 30.0
    stalled_s: float = 60.0
    shutdown_s: float = 9.0  # from SIGTERM to the end, whatever hangs
    metadata_age_s: float = 30.0  # a new partition is seen after so long
    web_port: int | None = None  # Faust's own pages, on 127.0.0.1; None: off

    def __post_init__(self) -> None:
        if not self.heartbeat_s * 3 <= self.session_timeout_s <= self.rebalance_s:
            raise ConfigurationError(
                f"need 3 x heartbeat_s ({self.heartbeat_s}) <= session_timeout_s ({self.session_timeout_s}) "
                f"<= rebalance_s ({self.rebalance_s})"
            )


class Membership:
    """One worker's place in the group. Made by `create_app`; used on the event loop only."""

    def __init__(
        self,
        settings: MembershipSettings,
        fetch_settings: FetchSettings,
        stages: Mapping[str, str],
        *,
        on_assigned: Callback,
        on_revoked: Callback,
        on_hold: Callback | None,
        on_fetch_error: Callable[[FetchError], None] | None,
        on_loop: Callable[[], Awaitable[None]] | None,
        on_disk: Callable[[], Mapping[TP, int]] | None,
    ) -> None:
        self.settings = settings
        self.topics = tuple(stages)
        self._fetch_settings = fetch_settings
        self._stages = dict(stages)
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._on_hold = on_hold
        self._on_fetch_error = on_fetch_error
        self._on_loop = on_loop
        self._on_disk = on_disk
        self.assignor = StateAssignor()
        self.app = _App(self)
        self._channels: dict[str, Any] = {
            stage: self.app.channel(maxsize=2) for stage in dict.fromkeys(self._stages.values())
        }
        self._handled: set[str] = set()
        self._owned: set[TP] = set()
        self._highest: dict[TP, int] = {}  # committed by us, of what we own
        self._ticket: tuple[str, int] | None = None  # member id and generation under which `_owned` is held
        self._joining = False
        self._confirmed_s: float | None = None  # when the coordinator last said that we are a member
        self._held = False
        self._held_since_s = 0.0
        self._committing: asyncio.Lock | None = None
        self._busy: dict[str, Round] = {}
        self._idle: asyncio.Event | None = None
        self._turn: asyncio.Lock | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._left = False
        self.leaving = False
        self._fetcher: Fetcher | None = None
        self.failure: BaseException | None = None

    # ---- for the agents

    @property
    def fetcher(self) -> Fetcher:
        """Exists from the moment that the event loop runs."""
        assert self._fetcher is not None, "the worker has not started"
        return self._fetcher

    @property
    def owned(self) -> Owned:
        """What the group has given us, as told to the callbacks."""
        return frozenset(self._owned)

    @property
    def generation(self) -> int:
        """The group's generation under which `owned` is held; -1 if none."""
        return self._ticket[1] if self._ticket is not None else NO_GENERATION

    @property
    def unconfirmed_s(self) -> float | None:
        """Since the group's coordinator last said that we are a member; None before the first time. From any thread."""
        confirmed_s = self._confirmed_s
        return None if confirmed_s is None else max(0.0, time.monotonic() - confirmed_s)

    @property
    def member(self) -> bool:
        """Whether the group has us, as far as can be known here. From any thread.

        A coordinator that says nothing for longer than the session timeout has given us up, or is gone itself.
        While the group changes there are no heartbeats, and its answer may take for as long as it waits for others.
        """
        silent_s = self.unconfirmed_s
        if self._ticket is None or silent_s is None:
            return False
        settings = self.settings
        return silent_s <= settings.session_timeout_s + (settings.rebalance_s if self._joining else 0.0)

    @property
    def held(self) -> bool:
        """Whether the group is about to change, or we leave: a round that is under way should end soon."""
        return self._held

    @property
    def settled(self) -> bool:
        """False while the group is changing: no round comes, and after `on_hold` no commit is taken."""
        return self._ticket is not None and not self._held

    def spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """A task of the worker: cancelled when it leaves; if it raises, the process ends with exit code 1."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.fail(error)

    def rounds(self, stage: str) -> Any:
        """The Faust channel on which the rounds of `stage` arrive, one at a time.

        Whoever iterates it must call `done(round)` for each. `agent` does that.
        """
        return self._channels[stage]

    def agent(self, stage: str) -> Callable[[Handler], Handler]:
        """Decorates the coroutine that works on a round of `stage`; there is one for each stage.

        It becomes a Faust agent. If it raises, the process ends with exit code 1 and nothing is skipped.
        """
        if stage in self._handled:
            raise ConfigurationError(f"stage {stage} has two agents")
        self._handled.add(stage)

        def register(handler: Handler) -> Handler:
            async def work(stream: Any) -> None:  # Faust's StreamT is iterable, but its stub has no __anext__
                arrived: Round
                async for arrived in stream:
                    try:
                        await handler(arrived)
                    except Exception as error:
                        # Faust would restart the agent and go on behind this round. The round stays undone, so
                        # that nobody commits past it, and the process ends.
                        self.fail(error)
                        raise
                    self.done(arrived)

            work.__qualname__ = stage  # for logs
            self.app.agent(self._channels[stage], name=stage, supervisor_strategy=CrashingSupervisor)(work)
            return handler

        return register

    def done(self, finished: Round) -> None:
        """The work of a round is over: the next one of its stage may come."""
        self._busy.pop(finished.stage, None)
        self.fetcher.release(finished)
        if self._held:
            if not self._busy and self._idle is not None:
                self._idle.set()
        else:
            self._send(finished.stage)

    def fail(self, error: BaseException) -> None:
        """Ends the process with exit code 1: without a checkpoint, without a leave that waits."""
        if self.failure is None:
            self.failure = error
            log.critical("the worker ends: %s: %s", type(error).__name__, error, exc_info=error)
            self.app.end()

    # ---- for checkpoints

    async def commit(self, offsets: Mapping[TP, tuple[int, str]]) -> None:
        """Commits next offset and metadata per partition, all in one request, under our generation.

        Raises `CommitFenced` if the group would not take it from us, now or any more. Transient errors are retried
        for as long as we are a member. Returns when the coordinator has it. A partition's offset never goes back:
        of two commits that cross, the older says nothing.
        """
        if offsets:
            await to_its_end(self._commit(offsets))

    async def _commit(self, offsets: Mapping[TP, tuple[int, str]]) -> None:
        """To its end also if `on_hold` runs out of time: the group is not joined while a commit is on its way."""
        assert self._committing is not None
        async with self._committing:
            ticket = self._ticket
            foreign = [tp for tp in offsets if tp not in self._owned]
            if foreign or ticket is None:
                raise CommitFenced(f"not ours: {foreign or list(offsets)}")
            if self._joining:
                raise CommitFenced("the group is changing, and this member has said that it is done")
            ahead = {tp: at for tp, at in offsets.items() if at[0] >= self._highest.get(tp, 0)}
            if ahead:
                await self._consumer.commit_as(ticket, ahead)
                self._highest.update((tp, at[0]) for tp, at in ahead.items())

    async def committed(self, tps: Iterable[TP]) -> dict[TP, tuple[int, str] | None]:
        """What the group has committed per partition: next offset and metadata; None where nothing is."""
        return await self._consumer.fetch_committed(list(tps))

    # ---- called by Faust's side

    @property
    def _consumer(self) -> "_Consumer":
        return cast(_Consumer, self.app.consumer)

    def begin(self) -> None:
        """On the event loop, before the first join."""
        self._idle = asyncio.Event()
        self._turn = asyncio.Lock()
        self._committing = asyncio.Lock()
        self._fetcher = Fetcher(
            self._fetch_settings,
            stage_of=self._stages.__getitem__,
            ready=self._arrived,
            failed=self._fetching_failed,
            loop=asyncio.get_running_loop(),
        )
        self._fetcher.begin()

    async def start_user(self) -> None:
        """The caller's own preparations, when agents run and before the first join."""
        for stage, channel in self._channels.items():
            if channel.subscriber_count != 1:
                raise ConfigurationError(f"stage {stage} has {channel.subscriber_count} agents, and needs one")
        if self._on_loop is not None:
            await self._on_loop()
        self._tell_state()

    def _tell_state(self) -> None:
        """What the next join says of our disk. The consumer's thread joins only after this."""
        if self._on_disk is not None:
            self.assignor.held = self._on_disk()

    async def hold(self) -> None:
        """The group is about to change. Returns when nothing of ours is under way."""
        assert self._turn is not None
        assert self._committing is not None
        async with self._turn:
            if self._left:
                return
            await self._quiesce()
            if self._owned and self._on_hold is not None:
                await self._guarded(self._on_hold, set(self._owned))
            self._tell_state()
            # A commit that reached the broker after our join would be of an old generation, and aiokafka would
            # throw the membership away.
            async with self._committing:
                self._joining = True

    def confirmed(self) -> None:
        """The coordinator has taken a heartbeat of ours, or given us partitions. Called in the consumer's thread."""
        self._confirmed_s = time.monotonic()

    def assigned(self, tps: set[TP], member_id: str, generation: int) -> None:
        """The group has spoken. Heartbeats begin only after this returns, so the callbacks run in a task."""
        self.spawn(self._change(tps, (member_id, generation)), name=f"generation-{generation}")

    async def _change(self, tps: set[TP], ticket: tuple[str, int]) -> None:
        assert self._turn is not None
        async with self._turn:
            if self._left:
                return
            before, self._ticket = self._ticket, ticket
            # Somebody may have owned ours in between unless it is the very next generation of the same member.
            unbroken = before is not None and before[0] == ticket[0] and before[1] + 1 == ticket[1]
            kept = self._owned & tps if unbroken else set[TP]()
            lost = self._owned - kept
            if lost:
                await self._revoke(lost)
            added = tps - kept
            self._owned |= added
            self._joining = False
            held_s = time.monotonic() - self._held_since_s if self._held else 0.0
            self._release_hold()
            log.info(
                "generation %d: kept %d, lost %d, added %d partitions, held for %.1f s",
                ticket[1],
                len(kept),
                len(lost),
                len(added),
                held_s,
            )
            await self._guarded(self._on_assigned, added)

    async def leave(self) -> None:
        """SIGTERM: running rounds finish, then `on_hold` and `on_revoked` for all; the consumer leaves after that."""
        if self._turn is None:
            return  # the start failed
        self.leaving = True
        self._consumer.hurry()
        began_s = time.monotonic()

        def done(what: str) -> None:  # the process may be ended before it has left: by then it is known what took long
            log.info("leaving, after %.1f s: %s", time.monotonic() - began_s, what)

        async with self._turn:
            if self._left:
                return
            if self.failure is None:
                await self._quiesce()
                done("no round is under way")
                if self._owned and not self._joining and self._on_hold is not None:
                    await self._guarded(self._on_hold, set(self._owned))
                    done("the last checkpoint is over")
                if self._owned:
                    await self._revoke(set(self._owned))
                    done("all partitions are closed")
            self._left = True
        for task in list(self._tasks):
            task.cancel()
        if self._fetcher is not None:
            await asyncio.to_thread(self._fetcher.close)

    async def _revoke(self, lost: set[TP]) -> None:
        for tp in lost:
            self.fetcher.stop(tp)
        await self._guarded(self._on_revoked, set(lost))
        self._owned -= lost
        for tp in lost:
            self._highest.pop(tp, None)

    async def _guarded(self, callback: Callback, tps: set[TP]) -> None:
        try:
            await callback(tps)
        except Exception as error:
            self.fail(error)

    async def _quiesce(self) -> None:
        assert self._idle is not None
        if not self._held:
            self._held_since_s = time.monotonic()
        self._held = True
        if self._busy:
            self._idle.clear()
            await self._idle.wait()

    def _release_hold(self) -> None:
        self._held = False
        for stage in self._channels:
            self._send(stage)

    # ---- the dispatcher

    def _arrived(self, stage: str) -> None:
        if not self._held:
            self._send(stage)

    def _send(self, stage: str) -> None:
        """One event for everything that has arrived for `stage`, when its agent is free."""
        if stage in self._busy or self.failure is not None or self._left:
            return
        arrived = self.fetcher.take(stage)
        if arrived is None:
            return
        self._busy[stage] = arrived
        # Not `channel.send`, which makes a message, an event and a future of each value. Not at once either: an agent
        # whose next round is there when it asks goes on without letting anybody else in.
        for subscriber in self._channels[stage]._subscribers:
            asyncio.get_running_loop().call_soon(subscriber.queue.put_nowait, arrived)

    def _fetching_failed(self, error: FetchError) -> None:
        if error.tp is None or self._on_fetch_error is None:
            self.fail(FraudstreamError(f"fetching: {error.cause} at {error.tp}: {error.text}"))
            return
        try:
            self._on_fetch_error(error)
        except Exception as wrong:
            self.fail(wrong)


def create_app(
    settings: MembershipSettings,
    stages: Mapping[str, str],
    *,
    fetch: FetchSettings,
    on_assigned: Callback,
    on_revoked: Callback,
    on_hold: Callback | None = None,
    on_fetch_error: Callable[[FetchError], None] | None = None,
    on_start: Callable[[], Awaitable[None]] | None = None,
    on_disk: Callable[[], Mapping[TP, int]] | None = None,
) -> Membership:
    """A Faust app (`.app`) that subscribes to the topics in `stages` (topic → stage), and its membership.

    - `on_hold(owned)`: nothing of ours is under way, the group is about to change: checkpoint and commit now (commits
      are still taken). Everything stays open. At SIGTERM too.
    - `on_revoked(lost)`: these are another's now (fetching has stopped): close them. Nothing can be committed here.
    - `on_assigned(added)`: only start restores here; call `fetcher.start` when one is ready. Kept ones are not named:
      they go on by themselves, without a new `start`.
    - `on_fetch_error(error)`: a partition cannot be read on. Without this callback the process ends.
    - `on_start()`: on the event loop, before the first join.
    - `on_disk()`: up to which offset the local state of each partition is, ours or not; the group's leader gives
      partitions to those who have most of them (`assignment`).

    An exception in any of them ends the process.
    """
    return Membership(
        settings,
        fetch,
        stages,
        on_assigned=on_assigned,
        on_revoked=on_revoked,
        on_hold=on_hold,
        on_fetch_error=on_fetch_error,
        on_loop=on_start,
        on_disk=on_disk,
    )


def run(membership: Membership) -> int:
    """Runs the worker until SIGTERM, SIGINT or a failure. Returns the exit code: 0 or 1.

    Ends the process itself, with code 70, if the shutdown hangs.
    """
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    worker = _Worker(
        membership.app,
        loop=loop,
        override_logging=False,
        redirect_stdouts=False,
        quiet=True,
    )
    worker.spinner = None
    membership.app.worker = worker
    code = 0
    try:
        worker.execute_from_commandline()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else EXIT_FAILED
    return EXIT_FAILED if membership.failure is not None else code


# ---- Faust, cut down to what is used


class _Listener(driver.ConsumerRebalanceListener):
    """aiokafka calls it in the consumer's thread."""

    def on_partitions_revoked(self, revoked: Iterable[Any]) -> Awaitable[None]:
        return self._thread.on_partitions_revoked(ensure_TPset(revoked))

    async def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        await self._thread.on_partitions_assigned(ensure_TPset(assigned))


class _NoFetcher:
    """Stands where aiokafka's fetcher was, so that nothing is fetched twice."""

    async def close(self) -> None:
        """Nothing to close."""


class _GroupMember(aiokafka.AIOKafkaConsumer):
    """aiokafka's consumer without its fetcher."""

    confirmed: Callable[[], None]

    async def start(self) -> None:
        await super().start()
        await self._fetcher.close()
        self._fetcher = _NoFetcher()
        self._listen()

    def _listen(self) -> None:
        """Has heartbeats that were taken told. aiokafka itself tries again for ever, and tells nobody but its log."""
        group = self.group
        beat: Callable[[], Awaitable[bool]] = group._do_heartbeat

        async def told_beat() -> bool:
            taken = await beat()
            if taken:
                self.confirmed()
            return taken

        group._do_heartbeat = told_beat  # of this one coordinator, before it has joined

    @property
    def group(self) -> Any:
        """aiokafka's coordinator, whose members are untyped and its own; pinned by test_aiokafka_is_as_expected."""
        return self._coordinator

    def alive(self) -> None:
        """The event loop runs. aiokafka leaves the group when it does not hear this for `max_poll_interval_ms`."""
        subscription: Any = self._subscription
        subscription._last_fetch_ended = time.monotonic()

    def broken(self) -> BaseException | None:
        """What ended the coordination. aiokafka keeps such an error until somebody fetches, and nobody does here."""
        if self.group is None or self._closed:
            return None
        task: asyncio.Task[None] = self.group._coordination_task
        error: BaseException | None = self.group._pending_exception
        if task.done() and not task.cancelled():
            error = task.exception() or FraudstreamError("the group's coordination ended")
        if isinstance(error, InconsistentGroupProtocolError):
            return ConfigurationError(
                f"the group has members that share partitions by other rules than {NAME}: workers of an older release, "
                f"or another program. Operator: stop all of them before this one starts, or give it a group of its own"
            )
        return error

    @property
    def ticket(self) -> tuple[str, int]:
        """Who we are to the group at this moment: member id and generation."""
        return (self.group.member_id, self.group.generation)


class _ConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's thread around the consumer: its own event loop, so heartbeats go on while ours works."""

    membership: Membership
    stopping = False
    hurried = False  # somebody waits for our commits to end

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        conf = self.app.conf
        settings = self.membership.settings
        member = _GroupMember(
            client_id=conf.broker_client_id,
            group_id=conf.id,
            # A list is documented; the default value, a string, is what the stub was made from.
            bootstrap_servers=driver.server_list(  # pyright: ignore[reportArgumentType]
                transport.url, transport.default_port
            ),
            # The stub wants classes; what aiokafka calls on it, an object has as well.
            partition_assignment_strategy=[self.membership.assignor],  # pyright: ignore[reportArgumentType]
            enable_auto_commit=False,
            auto_offset_reset="none",
            max_poll_interval_ms=int(settings.stalled_s * 1000),
            request_timeout_ms=int(conf.broker_request_timeout * 1000),
            session_timeout_ms=int(settings.session_timeout_s * 1000),
            rebalance_timeout_ms=int(settings.rebalance_s * 1000),
            heartbeat_interval_ms=int(settings.heartbeat_s * 1000),
            metadata_max_age_ms=int(settings.metadata_age_s * 1000),
            **driver.credentials_to_aiokafka_auth(conf.broker_credentials, conf.ssl_context),
        )
        member.confirmed = self.membership.confirmed
        return member

    @property
    def member(self) -> _GroupMember:
        """Raises Faust's `ConsumerNotStarted` before the start."""
        return cast(_GroupMember, self._ensure_consumer())

    @property
    def joined(self) -> _GroupMember | None:
        """None before the start and after the end."""
        return cast(_GroupMember | None, self._consumer)

    async def on_partitions_revoked(self, revoked: set[Any]) -> None:
        if not self.stopping:
            self.hurried = True
            await self.consumer.threadsafe_partitions_revoked(self.thread_loop, revoked)

    async def on_partitions_assigned(self, assigned: set[Any], generation_id: int = 0) -> None:
        if not self.stopping:
            self.hurried = False
            self.membership.confirmed()
            member_id, generation = self.member.ticket
            tps = {TP(tp.topic, tp.partition) for tp in assigned}
            self.parent_loop.call_soon_threadsafe(self.membership.assigned, tps, member_id, generation)

    async def on_thread_stop(self) -> None:
        self.stopping = True
        consumer, self._consumer = self._consumer, None
        if consumer is None:
            await super().on_thread_stop()
            return
        try:
            await asyncio.wait_for(consumer.stop(), LEAVE_S)
        except (TimeoutError, asyncio.CancelledError):
            # A join that waits for others would hold us for as long as they take.
            await asyncio.wait_for(cast(_GroupMember, consumer).group._maybe_leave_group(), 1.0)
        finally:
            await super().on_thread_stop()

    async def commit_as(self, ticket: tuple[str, int], offsets: Mapping[TP, tuple[int, str]]) -> None:
        """Runs in the thread. Sends the commit as `ticket` says we are, or not at all."""
        wanted = {TopicPartition(*tp): OffsetAndMetadata(offset, text) for tp, (offset, text) in offsets.items()}
        group = self.member.group
        since_s = time.monotonic()
        while True:
            try:
                await group.ensure_coordinator_known()
                async with group._commit_lock:
                    # aiokafka writes who it is *now* into the request, at once after this check. Without a generation
                    # the broker would even take it, if the group happens to be empty.
                    if self.member.ticket != ticket:
                        raise CommitFenced(f"was member {ticket}, is {self.member.ticket}")
                    await group._do_commit_offsets(None, wanted)
            except KafkaError as error:
                if isinstance(error, FENCING):
                    raise CommitFenced(f"{type(error).__name__} as member {ticket}: {error}") from error
                if not error.retriable:
                    raise
                if self.hurried and time.monotonic() - since_s > COMMIT_HELD_S:
                    raise CommitFenced(f"no coordinator took it in time: {type(error).__name__}") from error
                log.warning("commit is tried again after %s", type(error).__name__)
                await asyncio.sleep(COMMIT_AGAIN_S)
            else:
                return

    async def fetch_committed(self, tps: list[TP]) -> dict[TP, tuple[int, str] | None]:
        """Runs in the thread."""
        found = await self.member.group.fetch_committed_offsets([TopicPartition(*tp) for tp in tps])
        answer: dict[TP, tuple[int, str] | None] = {}
        for tp in tps:
            at = found.get(TopicPartition(*tp))
            answer[tp] = (at.offset, at.metadata) if at is not None and at.offset >= 0 else None
        return answer


class _Consumer(driver.Consumer):
    """Faust's consumer: membership only. Its commits, its ledger of acks and its watchdogs are silent."""

    RebalanceListener: ClassVar[type[driver.ConsumerRebalanceListener]] = _Listener

    def _new_consumer_thread(self) -> _ConsumerThread:
        thread = _ConsumerThread(self, loop=self.loop, beacon=self.beacon)
        thread.membership = cast(_App, self.app).membership
        return thread

    @property
    def _member_thread(self) -> _ConsumerThread:
        return cast(_ConsumerThread, self._thread)

    async def on_partitions_revoked(self, revoked: set[Any]) -> None:
        await cast(_App, self.app).membership.hold()

    async def commit_as(self, ticket: tuple[str, int], offsets: Mapping[TP, tuple[int, str]]) -> None:
        await self._thread.call_thread(self._member_thread.commit_as, ticket, offsets)

    async def fetch_committed(self, tps: list[TP]) -> dict[TP, tuple[int, str] | None]:
        return await self._thread.call_thread(self._member_thread.fetch_committed, tps)

    def hurry(self) -> None:
        """From now on a commit gives up on transient errors after `COMMIT_HELD_S`."""
        self._member_thread.hurried = True

    async def on_stop(self) -> None:
        self._member_thread.stopping = True

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        return False

    async def on_task_error(self, exc: BaseException) -> None:
        return None

    @Service.task
    async def _commit_handler(self) -> None:
        """Faust's own commits, switched off."""

    @Service.task
    async def _commit_livelock_detector(self) -> None:
        """In its place: tells aiokafka that our loop runs."""
        while not self.should_stop:
            await self.sleep(ALIVE_EVERY_S)
            consumer = self._member_thread.joined
            if consumer is None:
                continue
            consumer.alive()
            broken = consumer.broken()
            if broken is not None and not self.should_stop:
                cast(_App, self.app).membership.fail(broken)


class _Transport(driver.Transport):
    Consumer: ClassVar[type[Any]] = _Consumer


class _Boot(BootStrategy):
    """No producer, no tables, no conductor of topics, no reply consumer."""

    def server(self) -> Iterable[Any]:
        return self._chain(self.web_server(), [self.app.consumer], [self.app.agents])


class _App(faust.App):
    BootStrategy = _Boot

    def __init__(self, membership: Membership) -> None:
        self.membership = membership
        self.worker: _Worker | None = None
        settings = membership.settings
        super().__init__(
            settings.group_id,
            broker=[f"kafka://{server.strip()}" for server in settings.bootstrap_servers.split(",")],
            broker_client_id=settings.client_id,
            broker_credentials=faust_credentials(settings.security),
            broker_session_timeout=settings.session_timeout_s,
            broker_heartbeat_interval=settings.heartbeat_s,
            broker_request_timeout=max(settings.rebalance_s, settings.session_timeout_s) + 5.0,
            stream_wait_empty=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            store="memory://",
            web_enabled=settings.web_port is not None,
            web_bind="127.0.0.1",
            web_host="127.0.0.1",
            web_port=settings.web_port or 6066,
            worker_redirect_stdouts=False,
            agent_supervisor=CrashingSupervisor,
        )

    async def _on_agent_error(self, agent: Any, exc: BaseException) -> None:
        self.membership.fail(exc)

    def _crash(self, reason: BaseException) -> None:
        # Timers and services of the app end here.
        self.membership.fail(reason)
        super()._crash(reason)

    def _new_transport(self) -> Any:
        return _Transport(self.conf.broker, self)

    async def on_first_start(self) -> None:
        """Faust would make its data directory."""

    async def on_start(self) -> None:
        await super().on_start()
        self.flow_control.resume()  # nothing else would: it is the table recovery's task
        self.membership.begin()

    async def on_started(self) -> None:
        await self.membership.start_user()
        await self.consumer.subscribe(self.membership.topics)
        await super().on_started()

    async def on_stop(self) -> None:
        await self.membership.leave()
        await self.on_before_shutdown.send()

    def end(self) -> None:
        """Ends the process, from anywhere on the loop."""
        if self.worker is not None:
            self.worker.end()


class _Worker(faust.Worker):
    """Faust's worker, with a bound on how long the end may take."""

    def _install_signal_handlers_unix(self) -> None:
        import signal

        # Not SIGUSR2, which would open a debugger.
        self.loop.add_signal_handler(signal.SIGINT, self._on_sigint)
        self.loop.add_signal_handler(signal.SIGTERM, self._on_sigterm)
        self.loop.add_signal_handler(signal.SIGUSR1, self._on_sigusr1)

    def _on_sigint(self) -> None:
        import signal

        self._schedule_shutdown(signal.SIGINT)

    def end(self) -> None:
        import signal

        self._schedule_shutdown(signal.SIGTERM)

    def _schedule_shutdown(self, signal: Any) -> None:
        membership = cast(_App, self.app).membership
        if self._signal_stop_time is None:
            code = EXIT_STUCK if membership.failure is None else EXIT_FAILED
            _end_after(membership.settings.shutdown_s, code)
        super()._schedule_shutdown(signal)

    def _setproctitle(self, info: str, *, ident: str = "") -> None:
        """Leaves the process's name alone."""

    async def _sentinel_task(self) -> None:
        """Faust sleeps a second here."""


def _end_after(seconds: float, code: int) -> None:
    def end() -> NoReturn:
        log.critical("the shutdown took more than %.0f s: the process ends as it is", seconds)
        os._exit(code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


# ---- credentials

_TAKEN = frozenset(
    {
        "security.protocol",
        "sasl.mechanism",
        "sasl.mechanisms",
        "sasl.username",
        "sasl.password",
        "sasl.kerberos.service.name",
        "ssl.ca.location",
        "ssl.ca.pem",
        "ssl.certificate.location",
        "ssl.key.location",
        "ssl.key.password",
        "ssl.endpoint.identification.algorithm",
        "enable.ssl.certificate.verification",
    }
)


def faust_credentials(security: Mapping[str, str]) -> CredentialsT | None:
    """librdkafka's security options as Faust's credentials, so that both clients log in alike.

    Raises `ConfigurationError` for an option that would be obeyed by one client and ignored by the other.
    """
    unknown = sorted(set(security) - _TAKEN)
    if unknown:
        raise ConfigurationError(f"security options not supported: {', '.join(unknown)}")
    protocol = security.get("security.protocol", "plaintext").upper()
    context = _ssl_context(security) if protocol in ("SSL", "SASL_SSL") else None
    if protocol == "PLAINTEXT":
        return None
    if protocol == "SSL":
        return SSLCredentials(context)
    if protocol not in ("SASL_PLAINTEXT", "SASL_SSL"):
        raise ConfigurationError(f"security.protocol={protocol} is none of PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL")
    mechanism = security.get("sasl.mechanism", security.get("sasl.mechanisms", "GSSAPI")).upper()
    if mechanism == "GSSAPI":
        return GSSAPICredentials(
            kerberos_service_name=security.get("sasl.kerberos.service.name", "kafka"), ssl_context=context
        )
    if mechanism not in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
        raise ConfigurationError(f"sasl.mechanism={mechanism} is none of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, GSSAPI")
    missing = [name for name in ("sasl.username", "sasl.password") if name not in security]
    if missing:
        raise ConfigurationError(f"sasl.mechanism={mechanism} needs {' and '.join(missing)}")
    return SASLCredentials(
        username=security["sasl.username"],
        password=security["sasl.password"],
        ssl_context=context,
        mechanism=mechanism,
    )


def _ssl_context(security: Mapping[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(
            ssl.Purpose.SERVER_AUTH, cafile=security.get("ssl.ca.location"), cadata=security.get("ssl.ca.pem")
        )
        if "ssl.certificate.location" in security:
            context.load_cert_chain(
                security["ssl.certificate.location"],
                security.get("ssl.key.location"),
                security.get("ssl.key.password"),
            )
    except OSError as error:
        raise ConfigurationError(f"TLS files cannot be loaded: {error}") from error
    # librdkafka's defaults: both on.
    context.check_hostname = security.get("ssl.endpoint.identification.algorithm", "https").lower() == "https"
    if security.get("enable.ssl.certificate.verification", "true").lower() == "false":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
