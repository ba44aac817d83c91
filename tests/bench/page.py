"""`python tests/bench --page`: deploy/performance.md, from the last figure of each kind and from notes.md."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from history import SCALE, Kind, latest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "deploy" / "performance.md"
NOTES = Path(__file__).parent / "notes.md"
RATIO_TARGETS = {"kstreams": 1.0, "quix": 4.0, "faust": 20.0}
NAMES = {"ours": "ours", "kstreams": "Kafka Streams, two stages", "quix": "Quix Streams", "faust": "stock Faust"}
LATENCY_TARGETS = {"p50": 15.0, "p99": 50.0, "p99_9": 250.0}
# design.md's trials on a faster, quiet machine: p50 / p99 in ms
DESIGN_FLOOR = {"200": "2 / 6", "1000": "2 / 10", "4000": "2 / 12", "10000": "2 / 15"}
DESIGN_HOP = {"200": "9 / 27", "1000": "10 / 39", "4000": "22 / 127", "10000": "277 / 700"}


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def source(found: dict[str, Any]) -> str:
    taken = found.get("stolen")
    host = "" if taken is None else f" The host gave {taken:.0%} of its cores' time to others meanwhile."
    return f"    {found['command']}\n\nCommit {found['commit']}, {found['at']}, {found['machine']}.{host}\n"


def whole_way(found: dict[str, Any]) -> str:
    rows: list[list[str]] = []
    for name, us in found["cpu_us_per_payment"].items():
        ratio = found["ratios"].get(name)
        target = RATIO_TARGETS.get(name)
        said = "" if target is None or ratio is None else f"{ratio:.2f} ({'met' if ratio >= target else 'missed'})"
        per_second = found["payments_per_second"][name]
        rows.append([NAMES[name], f"{us:.1f}", f"{per_second:,}", said, "" if target is None else f"{target:g}"])
    head = ["", "CPU µs a payment", "payments/s", "theirs over ours, worst round", "target"]
    threads = ", ".join(f"{name} {us:.0f}" for name, us in found["cpu_us_by_thread"].items())
    times = found["latency_ms"]
    text = f"""## The whole way, beside the peers in one run

{source(found)}
{found["payments"]:,} payments of {found["value_bytes"]} bytes, 50,000 accounts, checkpoints each second,
{found["ours"]["snapshots"]} snapshots in a round, labels, versions;
CPU from `/proc` between 20 % and 95 % of the answers. Load average at the end of our rounds:
{", ".join(map(str, found["load_average"]))}.

{table(head, rows)}
By thread of ours, CPU µs a payment: {threads}.
"""
    if times is None:
        return text
    rows = [
        [name.replace("_", "."), "never" if times[name] is None else f"{times[name]:.1f}", f"{target:g}"]
        for name, target in LATENCY_TARGETS.items()
    ]
    append = times.get("from_append")
    bound = (
        ""
        if append is None
        else f"""
From the broker's own timestamp of a payment, which is before its acknowledgement and which no busy sender sees late:
{append["p50"]} / {append["p99"]} / {append["p99_9"]} ms (never answered: None).
"""
    )
    return f"""{text}
### Latency

Payment acknowledged to answer readable, {times["rate"]:g} payments/s for {times["seconds"]:g} s, open loop; producer,
broker, worker and reader on the same two cores; partitions a topic: {times.get("partitions", 2)}, one worker. Never
answered: {times["unanswered"]} of {times["payments"]:,}. The worker used {times["worker_cores"]:.2f} of a core.

{table(["", "ms", "target"], rows)}{bound}"""


def hop(found: dict[str, Any]) -> str:
    rows = [
        [
            rate,
            f"{found['floor'][rate]['p50']:.0f} / {found['floor'][rate]['p99']:.0f}",
            DESIGN_FLOOR.get(rate, ""),
            f"{at['p50']:.0f} / {at['p99']:.0f}",
            DESIGN_HOP.get(rate, ""),
            f"{found['cpu_us_per_hop'][rate]:.0f}",
        ]
        for rate, at in found["hops"].items()
    ]
    head = ["records/s", "no hop", "design.md", "three hops", "design.md", "CPU µs a record and hop"]
    return f"""## The hop alone, beside design.md's table

{source(found)}
p50 / p99 in ms. Three copies in a row through the worker's own membership and fetching, no stages; design.md's row is
"Faust membership, fetching by a confluent-kafka consumer in a thread".

{table(head, rows)}"""


def steps(found: dict[str, Any]) -> str:
    rows = [[name, f"{us:.1f}"] for name, us in found["cpu_us_per_payment"].items() if us >= 0.05]
    sizes = ", ".join(
        f"{name} {size:.0f}" for name, size in found["bytes_per_payment"].items() if not name.endswith(": written")
    )
    background = ", ".join(f"{name} {us:.1f}" for name, us in found.get("background_us_per_payment", {}).items())
    return f"""## By step, without a broker

{source(found)}
The stages over RocksDB in one thread, rounds of {found["batch"]}; only this thread's CPU counts.

{table(["step", "CPU µs a payment"], [*rows, ["**all**", f"**{found['total_cpu_us']:.1f}**"]])}
RocksDB's own threads meanwhile, CPU µs a payment: {background or "not measured"}.
Bytes a payment that go to the broker: {sizes}.
"""


def scale() -> str:
    """One row per target of issue 5 on scale, each from the last run of its measure."""
    rows: list[list[str]] = []
    plots: list[str] = []
    for measure, kind in SCALE.items():
        found = latest(kind)
        if found is None:
            rows.append([f"{measure}: not measured", "", "", "", "", ""])
            continue
        for row in found["targets"]:
            figure = f"{row['figure']:,g} {row['unit']}".rstrip()
            said = "met" if row["met"] else "missed"
            rows.append([row["what"], figure, row["target"], said, f"`{measure}`", f"{found['commit']}, {found['at']}"])
        plots += found.get("plots", [])
    head = ["", "measured", "target", "", "measure", "commit, time"]
    shown = "".join(f"    {line}\n" for line in plots)
    text = f"""## Scale

Each by `python tests/bench/scale.py MEASURE`, whose text says what is counted; on {_machines()}.

{table(head, rows)}"""
    return text if not plots else f"{text}\nThe soak, from its start to its end:\n\n{shown}"


def _machines() -> str:
    found = [latest(kind) for kind in SCALE.values()]
    return "; ".join(dict.fromkeys(run["machine"] for run in found if run is not None))


def write() -> Path:
    parts = ["# Performance\n\nWritten by `python tests/bench --page` from recorded runs; do not edit.\n"]
    makers: dict[Kind, Callable[[dict[str, Any]], str]] = {"whole way": whole_way, "hop": hop, "steps": steps}
    for kind, make in makers.items():
        found = latest(kind)
        if found is not None:
            parts.append(make(found))
    if any(latest(kind) is not None for kind in SCALE.values()):
        parts.append(scale())
    parts.append(NOTES.read_text())
    PAGE.write_text("\n".join(part.rstrip("\n") + "\n" for part in parts))
    return PAGE
