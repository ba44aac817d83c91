"""Workers, disks, a group and a log in one thread; a seed decides everything that may go wrong.

The driver does what `stream/worker/app.py` does, in smaller pieces that a scheduler puts in any order: fetch, step,
hand over, append, acknowledge, freeze, write, commit. Between any two of them something may fail.
"""

from collections import Counter, deque
from collections.abc import Callable
from random import Random
from typing import Any

from msgspec.structs import replace
from sim_log import TP, Group, SimLog
from sim_small import small_learner
from sim_workload import Workload

from stream.model.compiled import Compiled
from stream.replay.log import local_topic_id
from stream.runner.errors import StepFailed
from stream.runner.partition import (
    CRASH_POINTS,
    META_KEY,
    Checkpoint,
    PartitionRunner,
    Reseek,
    Send,
    read_meta,
    suppress_below,
)
from stream.stages.control import ModelPayload, model_record
from stream.stages.keys import TABLE_PENDING
from stream.stages.stage import Journal, Record
from stream.stages.state import Changes, MemoryStore, State
from stream.stages.terminal import TerminalStage
from stream.stages.wiring import FOREIGN, GATHERING, STAGE_TOPICS, Partitions, build_stage
from topics.control import Skip, encode_control, parse_control, payload_as
from topics.journal import decode_block, tick_block
from topics.refusals import Refusal
from topics.skips import Skips

JOURNALS = ("account-journal", "terminal-journal", "examples")
WORKERS = 3
FETCH_MAX = 12
UNSYNCED_MAX = 2
SETTLE_ROUNDS_MAX = 400
TWINS_MAX = 3


class Crash(BaseException):
    """The process is gone. Nothing in production may catch it."""


class Disk:
    """One partition's store on one worker. The last writes may not have reached the platter."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.before: deque[MemoryStore] = deque(maxlen=UNSYNCED_MAX)

    def write(self, changes: Changes) -> None:
        self.before.append(self.store.copy())
        self.store.write(changes)

    def tear(self, writes: int) -> bool:
        """The last writes are lost, each as a whole. Whether anything was."""
        torn = False
        for _ in range(min(writes, len(self.before))):
            self.store = self.before.pop()
            torn = True
        return torn


class Host:
    """A partition as one worker holds it."""

    def __init__(self, tp: TP, lease: int, disk: Disk, runner: PartitionRunner) -> None:
        self.tp = tp
        self.lease = lease
        self.disk = disk
        self.runner = runner
        self.position = runner.next_offset
        self.fetched: deque[tuple[int, list[Record]]] = deque()
        self.checkpoint: Checkpoint | None = None
        self.to_commit: Checkpoint | None = None
        self.sought = False
        self.careful_until = 0  # below it records are applied one at a time, so that a failure names its record
        self.stopped_at = -1  # the record that must be skipped before it goes on
        self.start = self.end = runner.next_offset  # what this runner has applied, and
        self.sent: dict[TP, list[tuple[int, int]]] = {}  # the origins that it sent to each journal meanwhile,
        self.told = 0  # and how many records to all else


class Worker:
    def __init__(self, number: int) -> None:
        self.number = number
        self.up = True
        self.paused = False
        self.disks: dict[TP, Disk] = {}
        self.hosts: dict[TP, Host] = {}
        self.queued: dict[TP, deque[tuple[PartitionRunner, Send]]] = {}
        self.acks: list[tuple[PartitionRunner, int]] = []
        self.armed: str | None = None


class World:
    """`faults`: off for a run in which nothing fails. `scale`: payments."""

    def __init__(self, rng: Random, load: Workload, partitions: Partitions, *, faults: bool = True) -> None:
        self.rng = rng
        self.load = deque(load.events)
        self.partitions = partitions
        self.faults = faults
        self.log = SimLog()
        self.group = Group()
        self.workers = [Worker(number) for number in range(WORKERS)]
        self.tps: list[TP] = [(topic, p) for topic in STAGE_TOPICS for p in range(partitions.of(topic))]
        self.snapshots: dict[TP, tuple[int, MemoryStore]] = {}
        self.happened: Counter[str] = Counter()
        self.fired: Counter[str] = Counter()
        self.held: dict[TP, int] = {}
        self.slow: dict[TP, int] = {}
        self.skips = Skips()
        self.twins = 0
        self.turn = 0
        self.past: list[Host] = []
        self.plain = rng.random() < 0.5
        self.batch_max = rng.choice((1, 3, FETCH_MAX, 40))
        self.rebalance()

    # ---- crashes ----

    def _hook(self, worker: Worker) -> Callable[[str], None]:
        def crash(point: str) -> None:
            assert point in CRASH_POINTS, f"{point} is not registered"
            if worker.armed == point:
                worker.armed = None
                self.fired[point] += 1
                raise Crash(point)

        return crash

    def crash(self, worker: Worker) -> None:
        """The process dies. What it had handed to its producer may have arrived, each record or not."""
        rng = self.rng
        self.happened["crash"] += 1
        kept = rng.choice((0.0, 0.5, 0.9, 1.0))
        for queue in worker.queued.values():
            for _, send in queue:
                if rng.random() < kept:
                    self.log.send(send)
                    self.happened["arrived unacknowledged"] += 1
                else:
                    self.happened["lost in flight"] += 1
        worker.queued.clear()
        worker.acks.clear()
        worker.hosts.clear()
        worker.armed = None
        worker.up = False
        if rng.random() < 0.3:
            for disk in worker.disks.values():
                self.happened["torn write"] += disk.tear(rng.randrange(UNSYNCED_MAX + 1))
        if rng.random() < 0.15:
            worker.disks.clear()
            self.happened["lost disk"] += 1

    def guarded(self, worker: Worker, work: Callable[[], Any]) -> Any:
        """Do something as that worker, which may be its last."""
        try:
            return work()
        except Crash:
            self.crash(worker)
            return None
        except StepFailed as error:
            failure = error
        self.guarded(worker, lambda: self.failed(worker, failure))
        return None

    def failed(self, worker: Worker, error: StepFailed) -> None:
        """A stage has failed: again from the checkpoint, a record at a time; or, if it is named, when it is skipped."""
        self.happened["stage failed"] += 1
        self.happened[str(error.__cause__)] += 1
        tp = (error.journal.topic, error.journal.partition)
        host = worker.hosts.pop(tp)
        if not host.runner.broken:
            raise AssertionError(f"{tp} has failed half-way, and would write a checkpoint")
        self._open(worker, tp, host.lease)
        again = worker.hosts[tp]
        again.careful_until = error.last + 1
        if error.first == error.last:
            again.stopped_at = error.last
            self.tell("stopped", tp, error.last)

    def publish_twin(self) -> None:
        """Another version of the same place of `examples`, as a learner on another platform might make: of two the
        first holds."""
        models = [record for record in self.log.all(("control", 0)) if record.key == b"model"]
        if not models or self.twins >= TWINS_MAX:
            return
        control = parse_control(self.rng.choice(models).value)
        assert not isinstance(control, Refusal)
        made = Compiled.decode(payload_as(control, ModelPayload).compiled)
        twin = replace(made, intercept=made.intercept + 1.0)
        twin = replace(twin, version=twin.expected_version())
        self.log.append(("control", 0), model_record(twin, None), b"twin")
        self.twins += 1
        self.happened["twin of a version"] += 1

    def tell(self, kind: str, tp: TP, offset: int) -> None:
        """A worker or an operator names a record in `control`, and all who read ahead hear of it."""
        payload = Skip(topic_id=local_topic_id(tp[0]).hex(), partition=tp[1], offset=offset)
        value = encode_control(kind=kind, by="sim", why="bomb", payload=payload)
        self.log.append(("control", 0), value)
        control = parse_control(value)
        assert not isinstance(control, Refusal)
        self.skips.take(control)

    def skip(self, tp: TP, offset: int) -> None:
        """An operator's word: on record first, then known to whoever holds the partition."""
        self.tell("skip", tp, offset)
        self.happened["skipped"] += 1
        for worker in self.workers:
            host = worker.hosts.get(tp)
            if host is not None and host.stopped_at == offset:
                host.runner.skips.add(offset)
                host.stopped_at = -1

    # ---- membership ----

    def rebalance(self) -> None:
        """Give every partition to a worker that answers. One that is paused does not hear of it."""
        rng = self.rng
        members = [worker for worker in self.workers if worker.up and not worker.paused]
        if not members:
            return
        self.happened["rebalance"] += 1
        for tp in self.tps:
            owner = self.group.owner.get(tp)
            stays = any(worker.number == owner for worker in members) and rng.random() < 0.6
            if stays and owner is not None and tp in self.workers[owner].hosts:
                continue
            candidates = [worker for worker in members if worker.up]
            if not candidates:
                return
            chosen = rng.choice(candidates)
            if owner is not None:
                self._leave(self.workers[owner], tp)
            lease = self.group.give(tp, chosen.number)
            if chosen.up:
                self.guarded(chosen, lambda chosen=chosen, tp=tp, lease=lease: self._open(chosen, tp, lease))

    def _leave(self, worker: Worker, tp: TP) -> None:
        host = worker.hosts.get(tp)
        if host is None or worker.paused:
            return

        def leave() -> None:
            if self.rng.random() < 0.5:  # with a last checkpoint, if its outputs arrive in time
                self.begin(host)
                self.write(worker, host)
                self.commit(worker, host)
            host.runner.leave()

        self.guarded(worker, leave)
        worker.hosts.pop(tp, None)

    def _open(self, worker: Worker, tp: TP, lease: int) -> None:
        rng = self.rng
        disk = worker.disks.get(tp)
        local = None if disk is None else read_meta(disk.store.get_many([META_KEY])[0])
        snapshot = self.snapshots.get(tp)
        if snapshot is not None and (local is None or snapshot[0] > local.next_offset):
            disk = Disk(snapshot[1].copy())
            self.happened["snapshot restored"] += 1
        elif disk is None:
            disk = Disk(MemoryStore())
            if self.log.end(tp):
                self.happened["from the start"] += 1
        worker.disks[tp] = disk
        disk.before.clear()
        committed = self.group.offsets.get(tp)
        journal = Journal(tp[0], local_topic_id(tp[0]), tp[1])
        state = State(disk.store, scanned=TABLE_PENDING)
        runner = PartitionRunner(
            journal,
            build_stage(
                journal,
                state,
                self.partitions,
                plain=self.plain,
                accounts_max=rng.choice((2, 100)),
                terminals_max=rng.choice((2, 100)),
                learner=small_learner,
            ),
            state,
            start_offset=0,
            internal=tp[0] not in FOREIGN,
            gather=tp[0] in GATHERING,
            suppress_below=0 if committed is None else suppress_below(journal.topic_id, *committed),
            skips=self.skips.of(journal.topic_id, tp[1]),
            crash=self._hook(worker),
        )
        runner.check_log(0, self.log.end(tp))
        host = Host(tp, lease, disk, runner)
        if committed is not None and committed[0] > runner.next_offset:
            self.happened["applied again"] += 1
        worker.hosts[tp] = host
        self.past.append(host)

    # ---- what a worker does, piece by piece ----

    def fetch(self, host: Host) -> bool:
        rng = self.rng
        records = self.log.read(host.tp, host.position, rng.randint(1, self.batch_max))
        if not records:
            return False
        epoch = host.runner.epoch
        sought, host.sought = host.sought, False
        if self.faults and not sought and rng.random() < 0.02:
            self.happened["fetch lost"] += 1  # the next fetch stands behind a gap
        else:
            host.fetched.append((epoch, records))
        if self.faults and rng.random() < 0.05:
            host.fetched.append((epoch, records))
            self.happened["delivered twice"] += 1
        if self.faults and epoch and rng.random() < 0.2:
            far = self.log.read(host.tp, host.runner.next_offset + rng.choice((-2, 0, 1, 2, 5)), 5)
            for _ in range(rng.choice((1, 2, 3))):  # alike: each look at them shows the same gap
                host.fetched.appendleft((epoch - 1, far))
            self.happened["stale fetch"] += 1
        host.position = records[-1].offset + 1
        return True

    def step(self, worker: Worker, host: Host) -> bool:
        if host.stopped_at >= 0 or not host.fetched or self.held.get(host.tp, 0) > self.turn:
            return False
        runner = host.runner
        epoch, records = host.fetched.popleft()
        if runner.next_offset < host.careful_until and len(records) > 1:
            host.fetched.appendleft((epoch, records[1:]))
            records = records[:1]
        sends = runner.step(records, epoch)
        if isinstance(sends, Reseek):
            self.happened["reseek"] += 1
            runner.epoch += 1
            host.position = sends.offset
            host.sought = True
            return True
        host.end = runner.next_offset
        for send in sends:
            if send.topic in JOURNALS:
                origins = host.sent.setdefault((send.topic, send.partition), [])
                origins += [(item.offset, item.n) for item in decode_block(send.value).items]
            else:
                host.told += 1
        for send in runner.handed(sends):
            worker.queued.setdefault((send.topic, send.partition), deque()).append((runner, send))
        return True

    def append(self, worker: Worker, tp: TP) -> bool:
        """The brokers take the next record of one destination."""
        queue = worker.queued.get(tp)
        if not queue or self.slow.get(tp, 0) > self.turn:
            return False
        runner, send = queue.popleft()
        self.log.send(send)
        if self.faults and self.rng.random() < 0.01:
            self.log.send(send)
            self.happened["appended twice"] += 1
        worker.acks.append((runner, send.generation))
        return True

    def acknowledge(self, worker: Worker) -> bool:
        if not worker.acks:
            return False
        runner, generation = worker.acks.pop(self.rng.randrange(len(worker.acks)))
        runner.acknowledged(generation)
        return True

    def begin(self, host: Host) -> None:
        if host.checkpoint is None:
            host.checkpoint = host.runner.begin_checkpoint()

    def write(self, worker: Worker, host: Host) -> None:
        checkpoint = host.checkpoint
        if checkpoint is None or not host.runner.may_write(checkpoint):
            return
        host.runner.write(checkpoint, host.disk.write)
        host.checkpoint = None
        host.to_commit = checkpoint
        self.happened["checkpoint"] += 1
        if self.rng.random() < 0.1 and host.tp[0] != "control":
            best = self.snapshots.get(host.tp)
            if best is None or best[0] < checkpoint.next_offset:
                self.snapshots[host.tp] = (checkpoint.next_offset, host.disk.store.copy())

    def commit(self, worker: Worker, host: Host) -> None:
        checkpoint = host.to_commit
        if checkpoint is None:
            return
        hook = self._hook(worker)
        hook("checkpoint.before_commit")
        host.to_commit = None
        if self.group.commit(host.tp, host.lease, host.runner.commit_point(checkpoint)):
            hook("checkpoint.after_commit")
            in_flight = any(runner is host.runner for queue in worker.queued.values() for runner, _ in queue)
            if (
                self.faults and in_flight and self.rng.random() < 0.3
            ):  # the worst moment: what was it that was committed?
                self.happened["crash after a commit, outputs in flight"] += 1
                raise Crash("after a commit, outputs in flight")
            return
        self.happened["fenced"] += 1
        for tp in [tp for tp, held in worker.hosts.items() if self.group.lease[tp] != held.lease]:
            del worker.hosts[tp]

    def tick(self, tp: TP) -> None:
        self.log.append(tp, tick_block(self.log.now_ms))

    # ---- the schedule ----

    def publish(self) -> bool:
        if not self.load:
            return False
        event = self.load.popleft()
        self.log.now_ms = max(self.log.now_ms, event.at_ms)
        tp = (event.topic, event.partition)
        self.log.append(tp, event.value, event.key, event.headers)
        if self.faults and self.rng.random() < 0.01:
            self.log.hole(tp)  # a transaction's marker
        return True

    def run(self) -> None:
        """Publish and work in any order until all is published."""
        rng = self.rng
        busy = rng.choice((0.2, 0.5, 0.8))
        while self.load:
            self.turn += 1
            if rng.random() > busy:
                for _ in range(rng.choice((1, 1, 3, 12))):
                    self.publish()
            worker = rng.choice(self.workers)
            if worker.up and not worker.paused:
                self.guarded(worker, lambda worker=worker: self._some_work(worker))
            if self.faults:
                self._fault()
        self.settle()

    def _some_work(self, worker: Worker) -> None:
        rng = self.rng
        hosts = list(worker.hosts.values())
        for host in rng.sample(hosts, min(len(hosts), 4)):
            if worker.hosts.get(host.tp) is not host:
                continue
            if rng.random() < 0.6:
                self.fetch(host)
            if rng.random() < 0.8:
                self.step(worker, host)
                if rng.random() < 0.3 and worker.hosts.get(host.tp) is host:
                    self.commit(worker, host)  # of what was written before this step, whose outputs are in flight
            stage = host.runner.stage
            if isinstance(stage, TerminalStage) and stage.due_left and rng.random() < 0.3:
                self.tick(host.tp)
            if host.tp[0] == "examples" and rng.random() < 0.15:
                self.tick(host.tp)
        for tp in list(worker.queued):
            while rng.random() < 0.7 and self.append(worker, tp):
                pass
        while worker.acks and rng.random() < 0.8:
            self.acknowledge(worker)
        for host in rng.sample(hosts, min(len(hosts), 3)):
            if worker.hosts.get(host.tp) is not host:
                continue
            chance = rng.random()
            if chance < 0.3:
                self.begin(host)
            elif chance < 0.7:
                self.write(worker, host)
            else:
                self.commit(worker, host)

    def _slow(self, destinations: list[TP]) -> None:
        if destinations:
            self.slow[self.rng.choice(destinations)] = self.turn + 30
            self.happened["slow"] += 1

    def _fault(self) -> None:
        rng = self.rng
        chance = rng.random()
        worker = rng.choice(self.workers)
        if chance < 0.05:
            if worker.up:
                worker.armed = rng.choice(CRASH_POINTS)
        elif chance < 0.06:
            if worker.up and not worker.paused:
                self.crash(worker)
        elif chance < 0.14:
            if not worker.up:
                worker.up = True
                self.rebalance()
        elif chance < 0.17:
            self.rebalance()
        elif chance < 0.21:
            if worker.up and not worker.paused:
                worker.paused = True
                self.happened["paused"] += 1
        elif chance < 0.26:
            if worker.paused:
                worker.paused = False
                if any(self.group.lease[tp] != host.lease for tp, host in worker.hosts.items()):
                    self.happened["zombie"] += 1
        elif chance < 0.28:
            tp = rng.choice(self.tps)
            if tp[0] == "terminal-journal":
                self.held[tp] = self.turn + 60
                self.happened["held"] += 1
        elif chance < 0.30:  # a leader is away: what goes there waits with the producer
            self._slow([tp for worker in self.workers for tp in worker.queued])
        elif chance > 0.95:  # the same of answers: nothing may take them for sent
            self._slow([("decisions", p) for p in range(self.partitions.decisions)])
        elif chance < 0.34:
            stopped = [host for host in worker.hosts.values() if host.stopped_at >= 0]
            if stopped:
                (topic, partition), offset = stopped[0].tp, stopped[0].stopped_at
                for other in JOURNALS if rng.random() < 0.5 else ():  # the same place of journals that go on
                    if other != topic:
                        self.tell("skip", (other, partition), offset)
                self.skip(stopped[0].tp, offset)
        elif chance < 0.36:
            self.publish_twin()
        elif chance < 0.365:  # an operator names a record that nobody stopped at: applied already, or still to come
            tp = rng.choice([tp for tp in self.tps if tp[0] in JOURNALS])
            self.tell("skip", tp, rng.randrange(self.log.end(tp) + 5))
            self.happened["skip of another record"] += 1
        elif chance < 0.38:
            tp = rng.choice(self.tps)
            if tp in self.group.offsets:  # an operator resets the group's offset: it carries no word of ours
                end, word = self.log.end(tp), self.group.offsets[tp][1]  # or that of another offset
                self.group.offsets[tp] = (rng.choice((end, rng.randrange(end + 1))), rng.choice(("", "1:00:0", word)))
                self.happened["offsets reset"] += 1

    def settle(self) -> None:
        """No more faults: everyone comes back, and works until nothing is left."""
        self.faults = False
        self.batch_max = max(self.batch_max, FETCH_MAX)  # small fetches have been tried by now
        self.held.clear()
        self.slow.clear()
        for worker in self.workers:
            worker.armed = None
            worker.up = True
            worker.paused = False
            for host in worker.hosts.values():  # a fetch that was lost at the log's end shows at the next record only
                host.fetched.clear()
                host.position = host.runner.next_offset
        for _ in range(2):  # all that can still come after a rest, comes to partitions that have moved meanwhile
            self.rebalance()
            self.publish_twin()
            self._until_idle()
        for worker in self.workers:
            for host in list(worker.hosts.values()):
                for _ in range(2):  # one may be under way
                    self.begin(host)
                    self.write(worker, host)
                    self.commit(worker, host)
                assert host.checkpoint is None, f"{host.tp} waits for acknowledgements that never come"

    def _until_idle(self) -> None:
        for _ in range(SETTLE_ROUNDS_MAX):
            if not self._round():
                return
        raise AssertionError(f"not settled after {SETTLE_ROUNDS_MAX} rounds")

    def _drain(self, worker: Worker, host: Host) -> bool:
        busy = False
        while host.stopped_at < 0 and (self.fetch(host) or host.fetched):
            busy |= self.step(worker, host)
        return busy

    def _round(self) -> bool:
        busy = False
        for worker in self.workers:
            for host in list(worker.hosts.values()):
                busy |= bool(self.guarded(worker, lambda worker=worker, host=host: self._drain(worker, host)))
            for host in [host for host in worker.hosts.values() if host.stopped_at >= 0]:
                self.skip(host.tp, host.stopped_at)
                busy = True
            for tp in list(worker.queued):
                while self.append(worker, tp):
                    busy = True
            while self.acknowledge(worker):
                pass
            for host in list(worker.hosts.values()):
                if worker.hosts.get(host.tp) is not host:
                    continue
                if self.group.lease[host.tp] != host.lease:  # it learns that it was fenced
                    self.happened["fenced at rest"] += 1
                    del worker.hosts[host.tp]
                    continue
                stage = host.runner.stage
                if isinstance(stage, TerminalStage) and stage.due_left:
                    self.tick(host.tp)
                    busy = True
                if host.tp[0] == "examples" and self.rng.random() < 0.3:
                    self.tick(host.tp)
                    busy = True
                if host.checkpoint is not None or self.rng.random() < 0.2:
                    self.begin(host)
                    self.write(worker, host)
                    self.commit(worker, host)
        return busy

    def host_of(self, tp: TP) -> Host:
        return self.workers[self.group.owner[tp]].hosts[tp]
