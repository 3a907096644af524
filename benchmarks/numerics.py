#!/usr/bin/env python3
"""What precision and 8-bit optimizers cost in loss: the same training, seven times, side by side.

    benchmarks/numerics.py                    # 500 steps of a 10 M model each, about 80 minutes on 2 cores
    benchmarks/numerics.py --steps 50         # a look
    benchmarks/numerics.py --seeds 1 2 3 --only fp32 "8-bit AdamW"    # how much of it is chance

A byte-level Llama of 9.9 M parameters on the Python library's own source text (as `make train`), 2 ranks, zero3. Prints
a Markdown table and writes curves to docs/numerics.svg: the loss (means of ten steps) above, its difference from fp32
below. Numbers of every step go to benchmarks/results/. With --seeds a table of validation losses by seed alone.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

import machine
from engines import ROOT, SHERD, trained_steps

AUTO = '{"compute": "auto", "storage": "%s", "reduce": "%s", "master": "%s"}'
RUNS = {
    "fp32": {},
    "bf16, fp32 master": {"precision": AUTO % ("bf16", "fp32", "fp32")},
    "bf16, split master": {"precision": AUTO % ("bf16", "fp32", "split")},
    "fp16, loss scale": {"precision": AUTO % ("fp16", "fp16", "fp32")},
    "8-bit AdamW": {"optimizer.type": "adamw8bit"},
    "8-bit AdamW, bf16, split": {"precision": AUTO % ("bf16", "bf16", "split"), "optimizer.type": "adamw8bit"},
    "bf16, no master": {"precision": AUTO % ("bf16", "fp32", "none")},
}
COLOURS = ["#222222", "#1f77b4", "#17becf", "#ff7f0e", "#2ca02c", "#9467bd", "#d62728"]
WIDTH, LEFT, RIGHT = 900, 70, 230


def arguments():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--steps", type=int, default=500)
    p.add_argument("--context", type=int, default=256)
    p.add_argument("--seeds", type=int, nargs="+")
    p.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS),
                   help="with --seeds: which of the trainings")
    p.add_argument("--picture", type=pathlib.Path, default=ROOT / "docs" / "numerics.svg")
    p.add_argument("--results", type=pathlib.Path, default=ROOT / "benchmarks" / "results")
    args = p.parse_args()
    if args.seeds and args.only[0] != "fp32":
        p.error("--only has to begin with fp32, which all else is compared with")
    if not SHERD.exists():
        p.error(f"{SHERD} is missing; try make build")
    return args


def train(name: str, settings: dict, args, folder: pathlib.Path, text: str) -> list[dict]:
    settings = {"data.text": text, "data.context": args.context, "steps": args.steps,
                "schedule.warmup": max(1, args.steps // 10), "eval_every": args.steps, "eval_rows": 512, **settings}
    steps = trained_steps("train_stdlib.json", settings, folder / name.replace(" ", "-").replace(",", ""))
    print(f"{name}: validation loss {steps[-1]['validation_loss']:.4f}", file=sys.stderr, flush=True)
    return steps


def smooth(losses: list[float], over: int = 10) -> list[tuple[int, float]]:
    return [(i + over, sum(losses[i:i + over]) / over) for i in range(0, len(losses) - over + 1, over)]


def panel(curves: dict[str, list], top: int, height: int, title: str, marks: int = 5) -> list[str]:
    values = [y for points in curves.values() for _, y in points]
    low, high = min(values), max(values)
    last = max(x for points in curves.values() for x, _ in points)
    span = (high - low) or 1e-9
    def place(x, y):
        return f"{LEFT + (WIDTH - LEFT - RIGHT) * x / last:.1f},{top + height * (high - y) / span:.1f}"
    out = [f'<text x="{LEFT}" y="{top - 10}" font-weight="bold">{title}</text>']
    for k in range(marks + 1):
        y = low + span * k / marks
        at = place(0, y).split(",")[1]
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}" stroke="#dddddd"/>'
                   f'<text x="{LEFT - 6}" y="{float(at) + 4:.1f}" text-anchor="end">{y:.3g}</text>')
    for k in range(6):
        x = last * k // 5
        out.append(f'<text x="{place(x, low).split(",")[0]}" y="{top + height + 18}" text-anchor="middle">{x}</text>')
    for colour, points in zip(COLOURS, curves.values()):
        out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="'
                   + " ".join(place(x, y) for x, y in points) + '"/>')
    return out


def picture(losses: dict[str, list[float]]) -> str:
    curves = {name: smooth(values) for name, values in losses.items()}
    base = dict(curves["fp32"])
    differences = {name: [(x, y - base[x]) for x, y in points] for name, points in curves.items()}
    body = panel(curves, 40, 300, "training loss") + panel(differences, 410, 200, "difference from fp32")
    for k, (colour, name) in enumerate(zip(COLOURS, losses)):
        x, y = WIDTH - RIGHT + 20, 60 + 22 * k
        body.append(f'<line x1="{x}" x2="{x + 24}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"/>'
                    f'<text x="{x + 30}" y="{y + 4}">{name}</text>')
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 650" font-family="sans-serif" '
            'font-size="12"><rect width="100%" height="100%" fill="white"/>' + "\n".join(body) + "</svg>\n")


def table(runs: dict[str, list[dict]]) -> str:
    lines = ["| training | validation loss | beside fp32 | training loss, last 50 steps | state, bytes a parameter |",
             "|---|---|---|---|---|"]
    base = runs["fp32"][-1]["validation_loss"]
    for name, steps in runs.items():
        tail = [s["loss"] for s in steps[-50:]]
        held = steps[-1]["rank0_mib"]
        parameters = runs["fp32"][-1]["rank0_mib"]["parameters"] / 4
        state = sum(held[kind] for kind in ("parameters", "master", "moments", "gradients")) / parameters
        loss = steps[-1]["validation_loss"]
        lines.append(f"| {name} | {loss:.4f} | {100 * (loss / base - 1):+.2f} % | {sum(tail) / len(tail):.4f} | "
                     f"{state:.2f} |")
    return "\n".join(lines)


def chance(args, folder: pathlib.Path, text: str) -> str:
    """Validation losses of several seeds, of weights and data, and the mean of their differences from fp32."""
    losses: dict[str, list[float]] = {name: [] for name in args.only}
    for seed in args.seeds:
        for name in args.only:
            steps = train(name, {**RUNS[name], "seed": seed}, args, folder / str(seed), text)
            losses[name].append(steps[-1]["validation_loss"])
    lines = ["| training | " + " | ".join(f"seed {seed}" for seed in args.seeds) + " | beside fp32, mean |",
             "|---|" + "---|" * (len(args.seeds) + 1)]
    for name, of_seeds in losses.items():
        beside = [100 * (loss / base - 1) for loss, base in zip(of_seeds, losses["fp32"])]
        cells = [f"{loss:.4f} ({difference:+.2f} %)" for loss, difference in zip(of_seeds, beside)]
        lines.append(f"| {name} | {' | '.join(cells)} | {statistics.mean(beside):+.2f} % |")
    return "\n".join(lines)


def main():
    args = arguments()
    script = [sys.executable, ROOT / "scripts" / "stdlib_sources.py"]
    text = subprocess.run(script, check=True, capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        if args.seeds:
            print(chance(args, pathlib.Path(folder), text))
            return
        runs = {name: train(name, settings, args, pathlib.Path(folder), text) for name, settings in RUNS.items()}
    losses = {name: [s["loss"] for s in steps] for name, steps in runs.items()}
    same = losses["bf16, fp32 master"] == losses["bf16, split master"]
    print(table(runs))
    verdict = ("the losses of the fp32 master, bit for bit, in all steps"
               if same else "OTHER LOSSES than the fp32 master")
    print(f"\nsplit master: {verdict}")
    args.picture.write_text(picture(losses))
    here = machine.describe()
    results = {"machine": here, "commit": machine.commit(), "steps": args.steps, "context": args.context,
               "losses": losses, "validation": {name: steps[-1]["validation_loss"] for name, steps in runs.items()}}
    (args.results / f"{machine.today()}-{machine.slug(here)}-numerics.json").write_text(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
