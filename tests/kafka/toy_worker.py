"""A worker whose stages copy: every record of `--copy FROM:TO` goes to the same partition of TO, behind its origin.

It tells what happens as JSON lines on standard output. Its position is the group's: what was copied and not committed
when it dies is copied again by the next one. Run by test_membership.py as a process of its own.
"""

import argparse
import asyncio
import json
import logging
import resource
import sys
import time
from typing import Any

from confluent_kafka import Producer

from stream.worker.fetch import TP, FetchError, FetchSettings, Round
from stream.worker.membership import CommitFenced, MembershipSettings, create_app, run


def tell(event: str, **more: Any) -> None:
    print(json.dumps({"event": event, "at": time.time(), **more}), flush=True)


class Toy:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.to: dict[str, str] = dict(pair.split(":") for pair in args.copy)
        self.next: dict[TP, int] = {}
        self.epochs: dict[TP, int] = {}
        self.epoch = 0
        self.committed: dict[TP, int] = {}
        self.rounds = 0
        self.copied = 0
        self.producer = Producer(
            {"bootstrap.servers": args.bootstrap, "linger.ms": args.linger_ms, "enable.idempotence": True}
        )
        self.membership = create_app(
            MembershipSettings(
                group_id=args.group,
                bootstrap_servers=args.bootstrap,
                session_timeout_s=args.session_s,
                heartbeat_s=args.session_s / 4,
                rebalance_s=max(args.session_s, 15),
            ),
            {topic: f"copy-{topic}" for topic in self.to},
            fetch=FetchSettings(
                bootstrap_servers=args.bootstrap,
                group_id=args.group,
                fetch_min_bytes=args.min_bytes,
                fetch_wait_ms=args.wait_ms,
            ),
            on_assigned=self.assigned,
            on_revoked=self.revoked,
            on_hold=self.hold,
            on_fetch_error=self.fetch_error,
            on_start=self.start,
            on_disk=self.on_disk,
        )
        for topic in self.to:
            self.membership.agent(f"copy-{topic}")(self.copy)

    async def start(self) -> None:
        self.membership.spawn(self.checkpoints(), name="checkpoints")
        self.membership.spawn(self.report(), name="report")

    def on_disk(self) -> dict[TP, int]:
        places = (place.rsplit(":", 2) for place in self.args.held)
        return {TP(topic, int(partition)): int(offset) for topic, partition, offset in places}

    async def assigned(self, added: set[TP]) -> None:
        found = await self.membership.committed(added)
        for tp in added:
            at = found[tp]
            self.epoch += 1
            self.epochs[tp] = self.epoch
            self.next[tp] = self.committed[tp] = at[0] if at is not None else 0
            self.membership.fetcher.start(tp, self.next[tp], self.epoch)
        tell(
            "assigned",
            added=sorted(added),
            owned=sorted(self.membership.owned),
            generation=self.membership.generation,
            starts={f"{tp.topic}-{tp.partition}": self.next[tp] for tp in added},
        )

    async def revoked(self, lost: set[TP]) -> None:
        for tp in lost:
            del self.next[tp], self.epochs[tp], self.committed[tp]
        tell("revoked", lost=sorted(lost))

    async def hold(self, owned: set[TP]) -> None:
        await self.commit(unchanged=True)  # so that one who was thrown out learns it here
        tell("hold", owned=sorted(owned))

    def fetch_error(self, error: FetchError) -> None:
        tell("fetch_error", tp=error.tp, cause=error.cause)

    async def copy(self, arrived: Round) -> None:
        self.rounds += 1
        produce = self.producer.produce
        for tp, epoch, records in arrived.parts:
            if self.epochs.get(tp) != epoch:
                continue
            to = self.to[tp.topic]
            for record in records:
                if record.offset != self.next[tp]:
                    raise AssertionError(f"{tp}: expected {self.next[tp]}, found {record.offset}")
                if record.value == b"crash":
                    raise RuntimeError("told to crash")
                self.next[tp] = record.offset + 1
                while to != "-":  # "-": only read
                    try:
                        produce(to, record.value, b"%d" % record.offset, tp.partition)
                        break
                    except BufferError:
                        self.producer.poll(0.01)
            self.copied += len(records)
        self.producer.poll(0)

    async def commit(self, *, unchanged: bool = False) -> None:
        due = {tp: at for tp, at in self.next.items() if unchanged or at != self.committed[tp]}
        if not due:
            return
        while await asyncio.to_thread(self.producer.flush, 5):
            pass
        try:
            await self.membership.commit({tp: (at, "toy") for tp, at in due.items()})
        except CommitFenced as error:
            tell("fenced", why=str(error), due=sorted(due))
        else:
            for tp, at in due.items():
                if tp in self.committed:
                    self.committed[tp] = at

    async def checkpoints(self) -> None:
        while True:
            await asyncio.sleep(self.args.checkpoint_s)
            if self.membership.settled:
                await self.commit()

    async def report(self) -> None:
        before = time.perf_counter(), cpu_s(), 0, 0
        while self.args.report_s:
            await asyncio.sleep(self.args.report_s)
            now = time.perf_counter(), cpu_s(), self.copied, self.rounds
            tell(
                "report",
                s=now[0] - before[0],
                cpu_s=now[1] - before[1],
                copied=now[2] - before[2],
                rounds=now[3] - before[3],
            )
            before = now


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--copy", action="append", required=True)
    parser.add_argument("--held", action="append", default=[])
    parser.add_argument("--session-s", type=float, default=6.0)
    parser.add_argument("--checkpoint-s", type=float, default=1.0)
    parser.add_argument("--report-s", type=float, default=0.0)
    parser.add_argument("--linger-ms", type=float, default=1.0)
    parser.add_argument("--min-bytes", type=int, default=1)
    parser.add_argument("--wait-ms", type=int, default=500)
    parser.add_argument("--log", default="WARNING")
    args = parser.parse_args()
    logging.basicConfig(level=args.log, stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    code = run(Toy(args).membership)
    tell("ended", code=code)
    return code


if __name__ == "__main__":
    sys.exit(main())
