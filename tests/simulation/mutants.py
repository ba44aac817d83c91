"""Faults planted in the source. Each must be found by some seed, or the simulation is not worth its time.

A mutant is a copy of the source with some text replaced, run in a process of its own, in two of them with different
hash seeds where the order of a set is what went wrong.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
RUNNER = "stream/runner/partition.py"
ACCOUNT = "stream/stages/account.py"
TERMINAL = "stream/stages/terminal.py"
OBSERVE = "stream/stages/observe.py"
STATE = "stream/stages/state.py"
KEYS = "stream/stages/keys.py"
ANSWERS = "stream/stages/answers.py"
LEARNER = "stream/model/learner.py"
CONTROL = "stream/stages/control.py"
SEEDS_MAX = 60
TIMEOUT_S = 900


class Mutant(NamedTuple):
    """`patches`: (file, text, replacement); the text must stand there exactly once. `hashes`: compare two runs."""

    name: str
    patches: tuple[tuple[str, str, str], ...]
    hashes: bool = False


SOUND = Mutant("nothing changed", ())
MUTANTS = (
    Mutant(
        "commit before the acknowledgements",
        ((RUNNER, "return not any(count for generation", "return True or any(count for generation"),),
    ),
    Mutant(
        "checkpoint without its offset",
        ((RUNNER, "self.state.put(META_KEY, self._meta())", "self._meta()"),),
    ),
    Mutant("no prev check", ((RUNNER, "                elif prev == last:", "                elif True:"),)),
    Mutant(
        "origin without n",
        ((RUNNER, "this, width, end = (part.offset, part.n),", "this, width, end = (part.offset, 0),"),),
    ),
    Mutant(
        "state newer than K written with K",
        (
            (
                RUNNER,
                "        write(checkpoint.changes)\n",
                (
                    "        self.stage.settle()\n"
                    "        newer = {k: v for k, v in self.state._live.items() if k != META_KEY}\n"
                    "        checkpoint.changes.writes.update(newer)\n"
                    "        write(checkpoint.changes)\n"
                ),
            ),
        ),
    ),
    Mutant("restore without a gap check", ((RUNNER, "gap = self._gap_in(fresh)", "gap = None"),)),
    Mutant(
        "a gap believed at the first look",
        ((RUNNER, "if gap is not None and gap != self._gap:", "if gap is not None and gap is self._gap:"),),
    ),
    Mutant(
        "learner from newer features",
        (
            (
                TERMINAL,
                "        self._state.put_all(keys.TABLE_PENDING, rows)\n",
                (
                    "        self._state.put_all(keys.TABLE_PENDING, rows)\n"
                    "        for row in rows.values():\n            self._newest = pending.unpack(row).features\n"
                ),
            ),
            (
                TERMINAL,
                "            row.features,\n            truth ==",
                '            getattr(self, "_newest", row.features),\n            truth ==',
            ),
        ),
    ),
    Mutant(
        "what matures is learned from newer features",
        (
            (
                TERMINAL,
                "        self._state.put_all(keys.TABLE_PENDING, rows)\n",
                (
                    "        self._state.put_all(keys.TABLE_PENDING, rows)\n"
                    "        for row in rows.values():\n            self._newest = pending.unpack(row).features\n"
                ),
            ),
            (
                TERMINAL,
                "            weight,\n            row.features,",
                '            weight,\n            getattr(self, "_newest", row.features),',
            ),
        ),
    ),
    Mutant(
        "maturity by the payments' time",
        (
            (
                TERMINAL,
                "soon_ms = self._label_clock_ms - self",
                "soon_ms = self._globals.latest_at_ms - self",
            ),
        ),
    ),
    Mutant(
        "journal records suppressed as answers are",
        (
            (
                RUNNER,
                "        self._sends.append(Send(*to, None, encode_block(block)",
                (
                    "        if items[-1].offset < runner.suppress_below:\n            return\n"
                    "        self._sends.append(Send(*to, None, encode_block(block)"
                ),
            ),
        ),
    ),
    Mutant(
        "a set iterated in apply",
        (
            (
                CONTROL,
                "for journal in JOURNALS_OF_KIND.get(kind, ()) if kind is not None else ():",
                "for journal in set(JOURNALS_OF_KIND.get(kind, ())) if kind is not None else ():",
            ),
        ),
        hashes=True,
    ),
    Mutant(
        "origins not in the checkpoint",
        ((RUNNER, "[(*sender, *last) for sender, last in sorted(self._origins.items())]", "[]"),),
    ),
    Mutant(
        "the chain not in the checkpoint",
        ((RUNNER, "[(*to, *last) for to, last in sorted(self._prevs.items())]", "[]"),),
    ),
    Mutant(
        "answers suppressed on anyone's word",
        ((RUNNER, "return offset if metadata == commit_metadata(topic_id, offset) else 0", "return offset"),),
    ),
    Mutant(
        "answers suppressed one too far",
        (
            (RUNNER, "if steps[0].offset < runner.suppress_below:", "if steps[0].offset <= runner.suppress_below:"),
            (RUNNER, "if step.offset >= runner.suppress_below]", "if step.offset > runner.suppress_below]"),
        ),
    ),
    Mutant(
        "windows not in the checkpoint",
        ((OBSERVE, "    state.put_all(keys.TABLE_ENTITY, changed)\n", ""),),
    ),
    Mutant(
        "contradiction answered as a repeat",
        ((ACCOUNT, "and entry.fingerprint != print_:", "and entry.fingerprint is None:"),),
    ),
    Mutant(
        "labels before their payment are lost",
        ((ACCOUNT, "        words = _orphans.decode(kept)\n", "        words = _orphans.decode(kept)[:1]\n"),),
    ),
    Mutant(
        "a model takes effect one record late",
        (
            (
                TERMINAL,
                "        self.decider.apply(marker)",
                "        self.decider.apply(self.__dict__.pop('_late', marker))\n        self._late = marker",
            ),
        ),
    ),
    Mutant(
        "clocks of one account partition are enough",
        (
            (
                TERMINAL,
                "self._label_clock_ms = self._label_clock_ms, min(clocks)",
                "self._label_clock_ms = self._label_clock_ms, max(clocks)",
            ),
        ),
    ),
    Mutant(
        "skipped answers when the state is older than the group",
        (
            (
                RUNNER,
                "        self.next_offset = meta.next_offset",
                "        self.next_offset = max(meta.next_offset, self.suppress_below)",
            ),
        ),
    ),
    # ---- a second dozen and more, found by thinking of what the first would not show ----
    Mutant("epoch ignored", ((RUNNER, "if epoch is not None and epoch != self.epoch:", "if False:"),)),
    Mutant("a gap accepted in a journal of ours", ((RUNNER, "if gap is not None and self.internal:", "if False:"),)),
    Mutant(
        "senders told apart by partition alone",
        ((RUNNER, "at_ms, (block.sender, block.partition)", 'at_ms, (block.sender[:0] or b"x", block.partition)'),),
    ),
    Mutant(
        "a repeat names the versions of now",
        ((TERMINAL, "answer_of(value, decode_shared(found), item)", "answer_of(value, self.decider.shared, item)"),),
    ),
    Mutant("a run counts as one item", ((RUNNER, "                place += width", "                place += 1"),)),
    Mutant(
        "a run of which a part was here is taken whole",
        ((RUNNER, "if cut and isinstance(item, RUNS) else", "if False and isinstance(item, RUNS) else"),),
    ),
    Mutant(
        "what may be known is entered in columns",
        (
            (
                ACCOUNT,
                "[pid not in known for pid in found.pids]",
                "[True for _ in found.pids]",
            ),
        ),
    ),
    Mutant(
        "in columns nothing is ever too old",
        ((ACCOUNT, "            checked.here\n", "            checked.here or checked.here\n            or True\n"),),
    ),
    Mutant(
        "the answers to a run share one place",
        ((TERMINAL, "counts) + np.arange(n) << 8,", "counts) << 8,"),),
    ),
    Mutant(
        "the last item accepted again",
        ((RUNNER, "                if this <= last:", "                if this < last:"),),
    ),
    Mutant(
        "acknowledgements counted for the newest checkpoint",
        ((RUNNER, "self._outstanding[generation] -= count", "self._outstanding[self._generation] -= count"),),
    ),
    Mutant(
        "a skip counts wherever nobody stopped",
        (("topics/skips.py", "        if place not in self._stopped:\n            return None\n", ""),),
    ),
    Mutant(
        "a skip not honoured",
        (
            (
                RUNNER,
                "if record.offset in self.skips:\n                self._apply(run, out)",
                "if False:\n                self._apply(run, out)",
            ),
        ),
    ),
    Mutant(
        "a skipped payment is not answered",
        ((ACCOUNT, "self._answers.refuse(step, step.item, step.sender, None, SKIPPED, out)", "pass"),),
    ),
    Mutant(
        "a skipped clock stands still", ((TERMINAL, "                self._advance(item)\n", "                pass\n"),)
    ),
    Mutant(
        "state of another topic is taken",
        ((RUNNER, "if meta.topic_id != self.journal.topic_id or", "if"),),
    ),
    Mutant(
        "the frozen state by reference",
        (
            (
                STATE,
                "        self._frozen = self._overlay\n        self._take(_Overlay(self._ordered))\n",
                "        self._frozen = self._overlay\n",
            ),
        ),
    ),
    Mutant(
        "reads do not look through what is being written",
        ((STATE, "            elif key in frozen:", "            elif False:"),),
    ),
    Mutant(
        "scans do not look through what is being written",
        ((STATE, "merge(self._frozen.between(low, high), self._overlay", "merge((), self._overlay"),),
    ),
    Mutant(
        "one watermark for all partitions of payments",
        (
            (
                ACCOUNT,
                "watermark = self._watermarks.get(step.sender)\n            if watermark is None:",
                "watermark = max(self._watermarks.values(), default=None)\n            if watermark is None:",
            ),
        ),
    ),
    Mutant(
        "state dropped by the highest watermark",
        (
            (
                ACCOUNT,
                "return min(self._watermarks.values(), default=0)",
                "return max(self._watermarks.values(), default=0)",
            ),
        ),
    ),
    Mutant(
        "the dedupe horizon off by one",
        ((ACCOUNT, "if payment.event_time < watermark - limits", "if payment.event_time <= watermark - limits"),),
    ),
    Mutant(
        "the skew off by one",
        ((ACCOUNT, "if payment.event_time > raw.at_ms + limits", "if payment.event_time >= raw.at_ms + limits"),),
    ),
    Mutant(
        "maturity off by one",
        (
            (
                TERMINAL,
                "soon_ms = self._label_clock_ms - self._soon_ms",
                "soon_ms = self._label_clock_ms - self._soon_ms - 1",
            ),
        ),
    ),
    Mutant(
        "answers expire off by one",
        ((TERMINAL, "item.at_ms - item.first_at_ms <= self", "item.at_ms - item.first_at_ms < self"),),
    ),
    Mutant("a test payment moves the watermark", ((ACCOUNT, "            if not test:\n", "            if True:\n"),)),
    Mutant(
        "a label's time moves no clock",
        ((ACCOUNT, "self._advance_clock(step, parsed.observed_at, out, forward=False)", "pass"),),
    ),
    Mutant(
        "a marker takes its engine one record late",
        (
            (
                TERMINAL,
                "        self.meaning.apply(marker)\n        self.decider.apply(marker)\n",
                "        self.decider.apply(marker)\n        self.meaning.apply(marker)\n",
            ),
        ),
    ),
    Mutant(
        "of two versions of one place the last holds",
        ((CONTROL, "payload.offset <= self.model_offset", "payload.offset < self.model_offset"),),
    ),
    Mutant(
        "which version was the first is forgotten at a restart",
        ((CONTROL, "-1 if kept is None else int.from_bytes", "-1 if True else int.from_bytes"),),
    ),
    Mutant("a version that the gate held comes into force", ((CONTROL, "payload.held is not None or", ""),)),
    Mutant(
        "one more row is left undone at each step",
        ((TERMINAL, "        g.due_left = due.more\n", "        g.due_left = False\n"),),
    ),
    Mutant(
        "a late payment's row never matures",
        ((TERMINAL, "behind = [key for key in rows if key < cursor]", "behind: list[bytes] = []"),),
    ),
    Mutant(
        "an update's last word is not its last",
        ((TERMINAL, "clear = row.flags & ~(pending.THROUGH_NO | pending.THROUGH_YES)", "clear = row.flags"),),
    ),
    Mutant(
        "a declined payment is learned as legitimate",
        ((TERMINAL, "if not row.went_through or not weight:", "if not weight:"),),
    ),
    Mutant(
        "a correction does not take back",
        ((TERMINAL, "EXAMPLE_CORRECTED if was_weight else EXAMPLE_LABELLED", "EXAMPLE_LABELLED"),),
    ),
    Mutant(
        "an account's fraud is known before it was observed",
        (
            (
                ACCOUNT,
                "observed_ms = word.observed_at if truth.fraud else 0",
                "observed_ms = entry.event_ms if truth.fraud else 0",
            ),
        ),
    ),
    Mutant(
        "orphans come out backwards",
        ((ACCOUNT, "for source, _, value in words:", "for source, _, value in reversed(words):"),),
    ),
    Mutant(
        "a repeat's answer is sent as the first",
        ((TERMINAL, "value, repeat=True, out=out", "value, repeat=False, out=out"),),
    ),
    Mutant(
        "weights that are no numbers are published",
        (("stream/model/compiled.py", "if not (np.abs(numbers) <= NUMBER_MAX).all():", "if False:"),),
    ),
    # ---- a third dozen, of families that the first two have not: names, places, what is forgotten, what is told ----
    Mutant(
        "what is applied is committed, not what is written",
        (
            (
                RUNNER,
                "return checkpoint.next_offset, commit_metadata(self.journal.topic_id, checkpoint.next_offset)",
                "return self.next_offset, commit_metadata(self.journal.topic_id, self.next_offset)",
            ),
        ),
    ),
    Mutant(
        "a commit's word names no topic",
        ((RUNNER, 'return f"1:{topic_id.hex()}:{offset}"', 'return f"1:{offset}"'),),
    ),
    Mutant(
        "what failed half-way may be written",
        ((RUNNER, "            self.broken = True\n", ""),),
    ),
    Mutant(
        "a trace context is lost",
        (
            (
                ACCOUNT,
                "None if raw.traceparent is None else clean_traceparent(raw.traceparent),",
                "None,",
            ),
        ),
    ),
    Mutant(
        "the same id of two tenants is one",
        ((KEYS, 'f"{tenant_id}\\0{account_id}\\0{payment_id}"\n', 'f"{account_id}\\0{payment_id}"\n'),),
    ),
    Mutant(
        "a payment is known in its own epoch only",
        (
            (
                ACCOUNT,
                "return range(max(epoch - reach, first), min(epoch + reach, last) + 1)",
                "return range(max(epoch, first), min(epoch, last) + 1)",
            ),
        ),
    ),
    Mutant(
        "truths are never forgotten",
        ((ACCOUNT, "for table in (keys.TABLE_LEDGER, keys.TABLE_TRUTH):", "for table in (keys.TABLE_LEDGER,):"),),
    ),
    Mutant(
        "a refused label is not buried",
        ((ACCOUNT, "            self._answers.bury(step, raw, step.sender, topic, parsed, out)\n", ""),),
    ),
    Mutant(
        "an answer stands on another partition",
        (
            (
                ANSWERS,
                "zip(partitions, accounts, values, headers,",
                "zip([0] * len(steps), accounts, values, headers,",
            ),
        ),
    ),
    Mutant(
        "details of the payment before",
        (("stream/stages/decide.py", "features=decided.rows[i],", "features=decided.rows[max(i - 1, 0)],"),),
    ),
    Mutant(
        "a provisional word is taken back with all its weight",
        (
            (
                "stream/stages/learn.py",
                "share = PROVISIONAL_WEIGHT if example.was_provisional else 1.0",
                "share = 1.0",
            ),
        ),
    ),
    Mutant(
        "a version is named by the record after it",
        (
            (
                "stream/stages/learn.py",
                "result = self.learner.tick(step.offset)",
                "result = self.learner.tick(step.offset + 1)",
            ),
        ),
    ),
    Mutant(
        "contradictory settings come into force",
        (
            (
                CONTROL,
                (
                    "            found = contradictions(payload_as(record, Limits))\n"
                    "            return found[0] if found else None\n"
                ),
                "            payload_as(record, Limits)\n",
            ),
        ),
    ),
    # ---- found by trying what the lists above would not show; each lived until a check was written for it ----
    Mutant(
        "a test payment teaches",
        ((TERMINAL, 'strict=True) if mode != "test"}', 'strict=True) if mode != "none"}'),),
    ),
    Mutant(
        "the engine is forgotten at a restart",
        ((CONTROL, "self.engine = _held(ENGINE_FIRST if engine is None else int(engine))", "self.engine = _held(1)"),),
    ),
    Mutant(
        "a refusal names another engine",
        (
            (
                ANSWERS,
                "versions=Versions(engine=self._meaning.engine, features=FEATURES_VERSION),",
                "versions=Versions(engine=1, features=FEATURES_VERSION),",
            ),
        ),
    ),
    Mutant(
        "one word too many is kept of a payment that has not come",
        ((ACCOUNT, "if len(words) >= LABELS_MAX or any", "if len(words) > LABELS_MAX or any"),),
    ),
    Mutant(
        "a repeat moves the watermark",
        (
            (
                ACCOUNT,
                "                if entry is not None:\n                    waiting.append(_Repeated",
                (
                    "                if entry is not None:\n"
                    "                    watermarks[step.sender] = max(watermarks.get(step.sender, 0), event_ms)\n"
                    "                    waiting.append(_Repeated"
                ),
            ),
        ),
    ),
    Mutant(
        "a version that the gate held is compared with",
        (
            (
                LEARNER,
                "            self.counts.held += 1\n            return Held",
                "            self.counts.held += 1\n            self.active = compiled\n            return Held",
            ),
        ),
    ),
    Mutant(
        "the least that a model must have learned is off by one",
        (
            (
                "stream/rules/policy.py",
                "return matured_frauds >= policy.matured_frauds_min",
                "return matured_frauds > policy.matured_frauds_min",
            ),
        ),
    ),
    Mutant(
        "a delete is not written",
        ((STATE, "        self._change(key, None)\n", "        self._live.pop(key, None)\n"),),
    ),
)


def planted(mutant: Mutant, directory: Path) -> None:
    """A copy of the source with the fault in it. LookupError if the text is not there once."""
    for package in ("stream", "topics"):
        shutil.copytree(ROOT / package, directory / package)
    for file, text, replacement in mutant.patches:
        path = directory / file
        source = path.read_text()
        if source.count(text) != 1:
            raise LookupError(f"{mutant.name}: {file} holds {source.count(text)} times {text!r}")
        path.write_text(source.replace(text, replacement))


def _run(source: Path, *arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(Path(__file__).parent), "--jobs", "1", *arguments],
        env={**os.environ, "FRAUD_SIMULATED_SOURCE": str(source), "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def caught_by(mutant: Mutant, seeds: int = SEEDS_MAX) -> str | None:
    """What found it; None if it survived."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        source = Path(name)
        planted(mutant, source)
        if mutant.hashes:
            runs = [_run(source, "--seeds", "4", "--digests", hash_seed=seed).stdout for seed in ("1", "2", "3")]
            failed = next((line for run in runs for line in run.splitlines() if line.startswith("seed ")), None)
            found = {tuple(line for line in run.splitlines() if line.startswith("digest")) for run in runs}
            return "hash seeds differ" if len(found) > 1 else failed and failed[:160]
        ran = _run(source, "--seeds", str(seeds), "--stop", "--json")
        try:
            failures = json.loads(ran.stdout.splitlines()[-1])["failures"]
        except (IndexError, ValueError):
            raise RuntimeError(f"{mutant.name}: the simulation itself failed: {ran.stderr[-2000:]}") from None
        if not failures:
            return None
        said = next((line for line in ran.stdout.splitlines() if line.startswith("seed ")), "")
        return said[:160]


def surviving(*, verbose: bool = False, names: tuple[str, ...] = (), jobs: int = 1) -> list[str]:
    """Names of the mutants that no seed found. `jobs`: mutants at a time."""
    sound = caught_by(SOUND, seeds=3)
    if sound is not None:
        raise RuntimeError(f"the source fails without any fault in it, so mutants prove nothing: {sound}")
    tried = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    survivors: list[str] = []
    with ThreadPoolExecutor(jobs) as pool:
        for mutant, found in zip(tried, pool.map(caught_by, tried), strict=True):
            if verbose:
                print(f"mutant {mutant.name}: {found or 'SURVIVED'}", flush=True)
            if found is None:
                survivors.append(mutant.name)
    return survivors
