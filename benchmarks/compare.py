#!/usr/bin/env python3
"""sherd beside its peers, on the same weights, tokens, global batch and cores: step time, memory, loss.

    benchmarks/compare.py                                                  # zero3, one process and FSDP2 on small
    benchmarks/compare.py --models small,base --engines all --rounds 5

Engines run in turn (A B C, C A B, ...), each in processes of its own, pinned to the same cores. A round counts with the
median of its steps after the warm-up, an engine with the median of its rounds. Memory is taken in one more run of each.
All must print the same losses, or nothing is reported. An engine that fails twice is left out from then on and named
under the table. Writes a Markdown table to the standard output and everything measured to benchmarks/results/. Exit
code 1 when an engine failed or losses differ.
"""
import argparse
import array
import json
import os
import pathlib
import random
import re
import shlex
import signal
import statistics
import subprocess
import sys

import machine
from engines import FSDP2_FORMS, FSDP2_LOSSES, NAMES, PEERS, PEERS_PYTHON, ROOT, SHERD, Engine, Workload
from measure import RunFailed, run

LOSS_TOLERANCE = 1e-5  # relative: fp32 sums in another order
QUIET_LOAD = 0.5
LR = 3e-4


def arguments():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--engines", default="sherd-zero3,single,fsdp2", help=f"all, or some of {', '.join(NAMES)}; "
                   "fsdp2 stands for its fastest form, fsdp2+compile and the like for one form")
    p.add_argument("--models", default="small", help="presets of benchmarks/peers/model.py")
    p.add_argument("--ranks", type=int, default=2)
    p.add_argument("--rows", type=int, default=4, help="sequences of one step over all ranks")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=8, help="of a run, with the warm-up")
    p.add_argument("--warmup", type=int, default=2, help="steps that are not timed")
    p.add_argument("--results", type=pathlib.Path, default=ROOT / "benchmarks" / "results")
    p.add_argument("--document", type=pathlib.Path,
                   help="also put the tables between this file's two compare: comments")
    args = p.parse_args()
    if args.steps <= args.warmup:
        p.error(f"got {args.steps} steps with a warm-up of {args.warmup}; expected more steps than warm-up")
    return args


def say(text: str):
    print(text, file=sys.stderr, flush=True)


# What all engines work on.

def write_tokens(file: pathlib.Path, count: int, vocab: int):
    """A stream that can be learnt: mostly t -> 5t + 7 (mod vocab), one token in five at random."""
    rng = random.Random(0)
    tokens = array.array("H", [0])
    while len(tokens) < count:
        tokens.append(rng.randrange(vocab) if rng.random() < 0.2 else (5 * tokens[-1] + 7) % vocab)
    if sys.byteorder == "big":
        tokens.byteswap()
    file.write_bytes(tokens.tobytes())


def prepare(model: str, args) -> Workload:
    folder = ROOT / ".cache" / "bench" / model
    if not (folder / "config.json").exists():
        subprocess.run((PEERS_PYTHON, PEERS / "train.py", "--save-init", folder, "--model", model), check=True)
    config = json.loads((folder / "config.json").read_text())
    context = config["max_position_embeddings"]
    tokens = folder / "tokens.bin"
    write_tokens(tokens, args.steps * args.rows * context + 1, config["vocab_size"])
    return Workload(model, args.rows, context, args.steps, LR, folder, tokens)


# Which engines, in which form.

def parse_engines(text: str, ranks: int) -> list[Engine]:
    """Raises SystemExit for a name that does not exist or an engine that cannot run here."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < ranks:
        raise SystemExit(f"compare: got {ranks} ranks on {len(cpus)} cores; every rank needs a core; "
                         f"try --ranks {len(cpus)}")
    cpus = tuple(cpus[: len(cpus) // ranks * ranks])
    engines = []
    for entry in NAMES if text == "all" else text.split(","):
        name, *options = entry.strip().split("+")
        if name not in NAMES:
            raise SystemExit(f"compare: got engine {name}, expected one of {', '.join(NAMES)}")
        engines.append(Engine(name, 1 if name == "single" else ranks, cpus, tuple(f"--{o}" for o in options)))
    if any(e.is_sherd for e in engines) and not SHERD.exists():
        raise SystemExit(f"compare: {SHERD} is missing; try make build")
    if any(e.name.startswith("deepspeed") for e in engines) and subprocess.run(
            (PEERS_PYTHON, "-c", "import deepspeed"), capture_output=True).returncode:
        raise SystemExit("compare: deepspeed is not in .venv-peers; "
                         "try benchmarks/peers/setup.sh benchmarks/peers/requirements-deepspeed.txt")
    return engines


def fastest_form(engine: Engine, work: Workload, args, checks: "Losses") -> tuple[Engine, dict]:
    """FSDP2's fastest form in one run each, and the times of all."""
    times = {}

    def measured(options):
        form = Engine(engine.name, engine.ranks, engine.cpus, options)
        if form not in times:
            result = run(form, work)
            checks.add(form, result)
            times[form] = result.median_s(args.warmup)
            say(f"  {form.label}: {times[form]:.3f} s")
        return times[form]

    say("the fastest form of FSDP2:")
    loss = min(FSDP2_LOSSES, key=measured)
    best = min((loss + form for form in FSDP2_FORMS), key=measured)
    return (Engine(engine.name, engine.ranks, engine.cpus, best), {form.label: t for form, t in times.items()})


class Losses:
    """Every engine has to get the losses of the first, step by step."""

    def __init__(self):
        self.first = None

    def add(self, engine: Engine, result):
        if self.first is None:
            self.first = (engine.label, result.losses)
        for step, (a, b) in enumerate(zip(self.first[1], result.losses), 1):
            if not abs(a - b) <= LOSS_TOLERANCE * abs(a):
                raise RunFailed(f"step {step}: {self.first[0]} has loss {a:.8f}, {engine.label} {b:.8f}: "
                                f"not the same work (tolerance {LOSS_TOLERANCE:g}, relative)")


# Running and reporting.

def rotated(engines: list, by: int) -> list:
    """Who runs before an engine matters, by the memory it leaves behind: each round starts with another one."""
    return engines[by % len(engines):] + engines[:by % len(engines)]


def compare(model: str, args) -> dict:
    work = prepare(model, args)
    engines, checks, fsdp2_forms = [], Losses(), {}
    for engine in parse_engines(args.engines, args.ranks):
        if engine.name == "fsdp2" and not engine.options:
            engine, fsdp2_forms = fastest_form(engine, work, args, checks)
        engines.append(engine)
    rounds = {engine: [] for engine in engines}
    losses, failures, others = {}, {}, 0.0

    def attempt(engine, sample_memory=False):
        """None for an engine that has failed twice in a row, now or before."""
        if engine.label in failures:
            return None
        for then in ("gets another try", "is left out from here on"):
            try:
                return run(engine, work, sample_memory)
            except RunFailed as failure:
                last = str(failure)
                say(f"{model}: {last}\n{engine.label} {then}")
        failures[engine.label] = last

    for number in range(1, args.rounds + 1):
        for engine in rotated(engines, number * len(engines) // args.rounds):
            if not (result := attempt(engine)):
                continue
            checks.add(engine, result)
            rounds[engine].append(result.median_s(args.warmup))
            losses[engine] = result.losses
            others = max(others, result.others)
            say(f"{model}, round {number} of {args.rounds}: {engine.label} {rounds[engine][-1]:.3f} s "
                f"(other processes: {result.others:.2f} cores)")
    rows = []
    for engine in engines:
        if not (result := attempt(engine, sample_memory=True)):
            continue
        say(f"{model}, memory: {engine.label} {result.peak_mib:.0f} MiB")
        rows.append({"engine": engine.label, "ranks": engine.ranks, "threads": len(engine.cpus) // engine.ranks,
                     "step_s": statistics.median(rounds[engine]), "rounds_s": rounds[engine],
                     "memory_mib": result.peak_mib, "losses": losses[engine]})
    return {"model": model, "tokens_per_step": args.rows * work.context, "fsdp2_forms_s": fsdp2_forms,
            "others_cores": others, "engines": rows, "failures": failures}


def table(result: dict) -> str:
    rows = result["engines"]

    def by_name(name: str) -> dict | None:
        return next((r for r in rows if r["engine"].split()[0] == name), None)

    def ratio(row: dict, other: dict | None, key: str) -> str:
        return f"{row[key] / other[key]:.2f}" if other else ""

    fsdp2, single = by_name("fsdp2"), by_name("single")
    text = [f"`{result['model']}`, {result['tokens_per_step']} tokens a step", "",
            "| engine | ranks x threads | step, s | min-max | / the first | / FSDP2 | / one process | memory, MiB "
            "| / FSDP2 | last loss |",
            "|---|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        text.append(f"| {row['engine']} | {row['ranks']} x {row['threads']} | {row['step_s']:.3f} "
                    f"| {min(row['rounds_s']):.3f}-{max(row['rounds_s']):.3f} | {ratio(row, rows[0], 'step_s')} "
                    f"| {ratio(row, fsdp2, 'step_s')} "
                    f"| {ratio(row, single, 'step_s')} | {row['memory_mib']:.0f} | {ratio(row, fsdp2, 'memory_mib')} "
                    f"| {row['losses'][-1]:.6f} |")
    for label, failure in result["failures"].items():
        text += ["", f"{label} failed: {failure.strip().splitlines()[-1]}"]
    text += ["", f"Other processes took at most {result['others_cores']:.2f} cores in any run."]
    if result["fsdp2_forms_s"]:
        forms = ", ".join(f"{label} {seconds:.3f}" for label, seconds in result["fsdp2_forms_s"].items())
        text += [f"FSDP2 is in the fastest of its forms (one run each, s): {forms}."]
    return "\n".join(text)


def put_into(document: pathlib.Path, text: str):
    begin, end = re.findall(r"^<!-- compare: .*-->$", document.read_text(), re.M)
    before, rest = document.read_text().split(begin)
    document.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")


def main():
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a run ends its processes
    parse_engines(args.engines, args.ranks)  # mistakes first
    load = os.getloadavg()[0]
    if load > QUIET_LOAD:
        say(f"warning: the load of this machine is {load:.1f}: times will be too long and vary")
    here = machine.describe()
    record = {"date": machine.today(), "commit": machine.commit(), "machine": here, "load_before": load,
              "command": shlex.join(("benchmarks/compare.py", *sys.argv[1:])), "results": []}
    try:
        for model in args.models.split(","):
            record["results"].append(compare(model, args))
    except RunFailed as failure:
        say(f"compare: {failure}")
        return 1
    args.results.mkdir(parents=True, exist_ok=True)
    file = args.results / f"{record['date']}-{machine.slug(here)}.json"
    file.write_text(json.dumps(record, indent=1) + "\n")
    text = (f"{record['date']}, {here['cpu']}, {here['cores']} cores, {', '.join(here['vector'])}, "
            f"{here['memory_gib']} GiB; commit {record['commit']}; `{record['command']}`\n\n"
            + "\n\n".join(map(table, record["results"])))
    print(text)
    if args.document:
        put_into(args.document, text)
    say(f"\nwritten: {file.relative_to(ROOT) if file.is_relative_to(ROOT) else file}")
    return int(any(result["failures"] for result in record["results"]))


if __name__ == "__main__":
    sys.exit(main())
