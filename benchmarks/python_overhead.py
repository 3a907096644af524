#!/usr/bin/env python3
"""What a unit costs in Python beside its module: forward and backward of a chain of small units, sharded and plain, one
rank.

    PYTHONPATH=build/python OMP_NUM_THREADS=1 taskset -c 0 .venv/bin/python benchmarks/python_overhead.py

Prints microseconds a unit and step: the difference of the least times of many steps, which both have seen undisturbed.
build/bench_unit measures the same chain of units from C++, in turns with this: what is more here is Python's part.
"""
import copy
import json
import pathlib
import statistics
import subprocess
import time

import torch
from torch import nn

import sherd

UNITS, PARAMETERS, STEPS, ROUNDS = 50, 9, 200, 5
FROM_CPP = pathlib.Path(__file__).resolve().parent.parent / "build" / "bench_unit"


class Block(nn.Module):
    """As many parameters as a Llama block, of next to no work."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.ones(8)) for _ in range(PARAMETERS))

    def forward(self, x):
        for weight in self.weights:
            x = x * weight
        return x


def least(model: nn.Module, x: torch.Tensor) -> tuple[float, float]:
    """Of a forward, and of the backward that follows."""
    forward, backward = [], []
    for _ in range(STEPS):
        start = time.perf_counter()
        loss = model(x).sum()
        middle = time.perf_counter()
        loss.backward()
        end = time.perf_counter()
        forward.append(middle - start)
        backward.append(end - middle)
        for parameter in model.parameters():
            parameter.grad = None
    return min(forward), min(backward)


def a_unit_more(plain: nn.Module, model: nn.Module, x: torch.Tensor) -> dict[str, float]:
    """In the words of bench_unit."""
    (plain_forward, plain_backward), (forward, backward) = least(plain, x), least(model, x)
    return {"forward_us": 1e6 * (forward - plain_forward) / UNITS,
            "backward_us": 1e6 * (backward - plain_backward) / UNITS}


def main() -> None:
    plain = nn.Sequential(*(Block() for _ in range(UNITS)))
    model = copy.deepcopy(plain)
    sherd.shard(model, [Block])
    x = torch.ones(2, 8)
    a_unit_more(plain, model, x)
    ours, theirs = [], []
    for _ in range(ROUNDS):
        ours.append(a_unit_more(plain, model, x))
        theirs.append(json.loads(subprocess.run([FROM_CPP], check=True, capture_output=True, text=True).stdout))
    print(f"us a unit, medians of {ROUNDS} rounds: from Python, from C++, Python's part")
    for part in ("forward_us", "backward_us"):
        here, there = (statistics.median(one[part] for one in rounds) for rounds in (ours, theirs))
        print(f"{part.removesuffix('_us')}: {here:.1f}, {there:.1f}, {here - there:.1f}")


if __name__ == "__main__":
    main()
