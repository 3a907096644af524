#!/usr/bin/env python3
"""How sherd zero3 grows: step time and memory of all ranks against ranks, parameters and tokens of a step.

    benchmarks/growth.py                               # all three, about 10 minutes on 2 cores
    benchmarks/growth.py --by ranks,tokens --quick     # fewer and smaller points

Llamas of random weights on synthetic tokens, fp32, ranks of one thread. A time is the median of the steps after the
first; memory is the most of all ranks together, taken in a run of its own (measure.py). Prints Markdown tables, with a
straight line fitted to each (least squares of relative deviations), and writes everything to benchmarks/results/.
"""
import argparse
import json
import os
import pathlib
import shlex
import signal
import sys

import machine
from engines import ROOT, SHERD, Engine, Workload
from measure import RunFailed, run

CONTEXT, VOCAB, LR = 128, 8192, 3e-4
TIMED_STEPS, MEMORY_STEPS = 4, 2  # with one for warm-up
BYTES_PER_PARAMETER = 19  # 16 for what training keeps, the rest for slots, activations and libraries
# dim, layers, ffn
SHAPES = {"10 M": (256, 7, 704), "30 M": (512, 7, 1408), "100 M": (768, 12, 2048), "300 M": (1024, 22, 2816),
          "1 B": (2048, 19, 5632)}
RANKS, ROWS_BY_RANKS = (1, 2, 3, 4), 12
ROWS = (2, 4, 8, 16, 32, 64)


def arguments():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--by", default="ranks,parameters,tokens", help="which tables")
    p.add_argument("--quick", action="store_true", help="models up to 100 M parameters, up to 2048 tokens")
    p.add_argument("--results", type=pathlib.Path, default=ROOT / "benchmarks" / "results")
    args = p.parse_args()
    if unknown := set(args.by.split(",")) - TABLES.keys():
        p.error(f"got {', '.join(sorted(unknown))}, expected some of {', '.join(TABLES)}")
    if not SHERD.exists():
        p.error(f"{SHERD} is missing; try make build")
    return args


def say(text: str):
    print(text, file=sys.stderr, flush=True)


def parameters(shape: str) -> int:
    dim, layers, ffn = SHAPES[shape]
    return 2 * VOCAB * dim + layers * (4 * dim * dim + 3 * dim * ffn + 2 * dim) + dim


def available_bytes() -> int:
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def measure(shape: str, ranks: int, rows: int) -> dict:
    dim, layers, ffn = SHAPES[shape]
    model = {"preset": "tiny", "dim": dim, "layers": layers, "ffn": ffn, "heads": dim // 64, "vocab": VOCAB,
             "context": CONTEXT}
    cpus = tuple(sorted(os.sched_getaffinity(0))[:ranks])
    engine = Engine("sherd-zero3", ranks, cpus)

    def work(steps: int) -> Workload:
        return Workload(shape, rows, CONTEXT, steps, LR, model, None)

    timed = run(engine, work(TIMED_STEPS))
    memory = run(engine, work(MEMORY_STEPS), sample_memory=True)
    point = {"shape": shape, "parameters": parameters(shape), "ranks": ranks, "tokens": rows * CONTEXT,
             "step_s": timed.median_s(1), "steps_s": timed.step_s, "memory_mib": memory.peak_mib,
             "others_cores": timed.others}
    say(f"{shape}, {ranks} ranks, {rows * CONTEXT} tokens: {point['step_s']:.3f} s, {memory.peak_mib:.0f} MiB "
        f"(other processes: {timed.others:.2f} cores)")
    return point


# A straight line through the points: relative deviations count, so that small points count as much as large ones.

def fit(x: list[float], y: list[float]) -> tuple[float, float, float]:
    """a and b of a + b x, and the largest deviation of it from a point, relative to the point."""
    weights = [1 / v**2 for v in y]
    total = sum(weights)
    mean_x, mean_y = (sum(w * v for w, v in zip(weights, vs)) / total for vs in (x, y))
    b = (sum(w * (u - mean_x) * (v - mean_y) for w, u, v in zip(weights, x, y))
         / sum(w * (u - mean_x) ** 2 for w, u in zip(weights, x)))
    a = mean_y - b * mean_x
    return a, b, max(abs(a + b * u - v) / v for u, v in zip(x, y))


def fitted_lines(points: list[dict], variable: str, unit: float, name: str) -> list[str]:
    if len(points) < 3:
        return []
    x = [p[variable] / unit for p in points]
    text = []
    for key, what in (("step_s", "s"), ("memory_mib", "MiB")):
        a, b, deviation = fit(x, [p[key] for p in points])
        text.append(f"{a:.3g} {what} + {b:.3g} {what} per {name} (deviation at most {100 * deviation:.0f} %)")
    return ["", "Fitted lines: " + "; ".join(text) + "."]


def nanoseconds(point: dict) -> float:
    return 1e9 * point["step_s"] / point["parameters"] / point["tokens"]


def by_ranks(quick: bool):
    cores = len(os.sched_getaffinity(0))
    points = [measure("10 M" if quick else "30 M", ranks, ROWS_BY_RANKS) for ranks in RANKS]
    first = points[0]
    text = [f"Ranks: {first['shape']} parameters, {first['tokens']} tokens a step over all ranks; ranks beyond the "
            f"{cores} cores share them", "",
            "| ranks | step, s | times faster than 1 | of cores | memory, MiB | / 1 rank |",
            "|---|---|---|---|---|---|"]
    for p in points:
        faster = first["step_s"] / p["step_s"]
        text.append(f"| {p['ranks']} | {p['step_s']:.3f} | {faster:.2f} | {faster / min(p['ranks'], cores):.2f} "
                    f"| {p['memory_mib']:.0f} | {p['memory_mib'] / first['memory_mib']:.2f} |")
    return points, text


def by_parameters(quick: bool):
    rows, points, skipped = 2, [], []
    for shape in list(SHAPES)[:3] if quick else SHAPES:
        needed = parameters(shape) * BYTES_PER_PARAMETER
        if needed > available_bytes():
            skipped.append(f"{shape} is left out: it needs {needed / 2**30:.0f} GiB, "
                           f"{available_bytes() / 2**30:.0f} are there.")
            continue
        points.append(measure(shape, 2, rows))
    text = [f"Parameters: 2 ranks, {rows * CONTEXT} tokens a step", "",
            "| parameters | step, s | ns / parameter / token | memory, MiB | bytes / parameter |",
            "|---|---|---|---|---|"]
    for p in points:
        text.append(f"| {p['parameters'] / 1e6:.1f} M | {p['step_s']:.3f} | {nanoseconds(p):.4f} "
                    f"| {p['memory_mib']:.0f} | {p['memory_mib'] * 2**20 / p['parameters']:.1f} |")
    return points, text + fitted_lines(points, "parameters", 1e6, "million parameters") + ["", *skipped]


def by_tokens(quick: bool):
    points = [measure("10 M" if quick else "30 M", 2, rows) for rows in (ROWS[:4] if quick else ROWS)]
    text = [f"Tokens: 2 ranks, {points[0]['shape']} parameters, rows of {CONTEXT} tokens", "",
            "| tokens a step | step, s | ns / parameter / token | memory, MiB |", "|---|---|---|---|"]
    for p in points:
        text.append(f"| {p['tokens']} | {p['step_s']:.3f} | {nanoseconds(p):.4f} | {p['memory_mib']:.0f} |")
    return points, text + fitted_lines(points, "tokens", 1e3, "thousand tokens")


TABLES = {"ranks": by_ranks, "parameters": by_parameters, "tokens": by_tokens}


def main():
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a run ends its processes
    here = machine.describe()
    record = {"date": machine.today(), "commit": machine.commit(), "machine": here,
              "command": shlex.join(("benchmarks/growth.py", *sys.argv[1:])), "tables": {}}
    print(f"{record['date']}, {here['cpu']}, {here['cores']} cores, {', '.join(here['vector'])}, "
          f"{here['memory_gib']} GiB; commit {record['commit']}; `{record['command']}`")
    try:
        for name in args.by.split(","):
            points, text = TABLES[name](args.quick)
            record["tables"][name] = points
            print("\n" + "\n".join(text), flush=True)
    except RunFailed as failure:
        say(f"growth: {failure}")
        return 1
    others = max(p["others_cores"] for points in record["tables"].values() for p in points)
    print(f"\nOther processes took at most {others:.2f} cores in any run.")
    args.results.mkdir(parents=True, exist_ok=True)
    file = args.results / f"{record['date']}-{machine.slug(here)}-growth.json"
    file.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
