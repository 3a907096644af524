#!/usr/bin/env python3
"""The time of a step and the memory of each precision, as ratios of fp32: the same training, taking turns.

    benchmarks/precision_steps.py                       # about 4 minutes on 2 cores
    benchmarks/precision_steps.py --rounds 5 --model base

A Llama of a preset on synthetic tokens, 4 rows of 256 tokens a step, 2 ranks, zero3, AdamW. A round is the median of
the steps after two for warm-up; the table shows the least and the median of the rounds, and the most memory that all
ranks held together.
"""
import argparse
import pathlib
import statistics
import tempfile

import machine
from engines import SHERD, trained_steps

MIXED = '{"compute": "auto", "storage": "%s", "reduce": "%s"}'
KINDS = {
    "fp32": {},
    "bf16, split master": {"precision": MIXED % ("bf16", "fp32")},
    "bf16, split master, bf16 gradients": {"precision": MIXED % ("bf16", "bf16")},
    "fp16, fp32 master, loss scale": {"precision": MIXED % ("fp16", "fp16")},
    "bf16, split master, bf16 gradients, 8-bit AdamW": {"precision": MIXED % ("bf16", "bf16"),
                                                        "optimizer.type": "adamw8bit"},
}


def arguments():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--model", default="small")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=6)
    args = p.parse_args()
    if not SHERD.exists():
        p.error(f"{SHERD} is missing; try make build")
    return args


def measure(settings: dict, args, folder: pathlib.Path) -> tuple[float, float]:
    settings = {"model.preset": args.model, "data.context": 256, "batch.rows": 4, "steps": args.steps + 2, **settings}
    steps = trained_steps("train_tiny.json", settings, folder / "run")[2:]
    return statistics.median(step["step_s"] for step in steps), max(step["memory_mib"] for step in steps)


def main():
    args = arguments()
    times: dict[str, list[float]] = {name: [] for name in KINDS}
    memory: dict[str, float] = {}
    for turn in range(args.rounds):
        names = list(KINDS)
        for name in names[turn % len(names):] + names[:turn % len(names)]:
            with tempfile.TemporaryDirectory() as folder:
                seconds, mib = measure(KINDS[name], args, pathlib.Path(folder))
            times[name].append(seconds)
            memory[name] = max(memory.get(name, 0), mib)
    here = machine.describe()
    print(f"{machine.today()}, {here['cpu']}, {here['cores']} cores, {here['vector'][-1]}; commit {machine.commit()}; "
          f"`benchmarks/precision_steps.py --model {args.model} --rounds {args.rounds} --steps {args.steps}`\n")
    print("| precision | step, s: least, median | of fp32 | memory of all ranks, MiB | of fp32 |\n"
          "|---|---|---|---|---|")
    base = times["fp32"]
    for name, values in times.items():
        least, middle = min(values), statistics.median(values)
        print(f"| {name} | {least:.3f}, {middle:.3f} | {least / min(base):.2f}, {middle / statistics.median(base):.2f} "
              f"| {memory[name]:.0f} | {memory[name] / memory['fp32']:.2f} |")


if __name__ == "__main__":
    main()
