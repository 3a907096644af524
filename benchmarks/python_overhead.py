#!/usr/bin/env python3
"""What a unit costs in Python beside its module: forward and backward of a chain of small units, sharded and plain, one rank.

    PYTHONPATH=build/python OMP_NUM_THREADS=1 .venv/bin/python benchmarks/python_overhead.py

Prints microseconds a unit and step: the difference of the least times of many steps, which both have seen undisturbed.
"""
import copy
import time

import torch
from torch import nn

import sherd

UNITS, PARAMETERS, STEPS = 50, 9, 200


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


def main() -> None:
    plain = nn.Sequential(*(Block() for _ in range(UNITS)))
    model = copy.deepcopy(plain)
    sherd.shard(model, [Block])
    x = torch.ones(2, 8)
    least(plain, x), least(model, x)
    (plain_forward, plain_backward), (forward, backward) = least(plain, x), least(model, x)
    for name, ours, theirs in (("forward", forward, plain_forward), ("backward", backward, plain_backward)):
        print(f"{name}: {1e6 * (ours - theirs) / UNITS:.1f} us a unit more ({1e6 * theirs / UNITS:.1f} without)")


if __name__ == "__main__":
    main()
