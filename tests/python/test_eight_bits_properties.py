"""8-bit moments of any values: every block on its own, every code the nearest entry,
nothing out of range, nothing lost."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sherd

functional = pytest.importorskip("bitsandbytes.functional")

BLOCK, LEAST = 256, 4096
AWKWARD = [0.0, -0.0, 1e-45, -1e-40, 1.1754944e-38, 1e-30, 1e-19, 1e-4, 0.99999994, 1.0, -1.0, 3.0, 1e18, -1e18, 3e38,
           math.inf, -math.inf, math.nan]
BOOKS = {signed: functional.create_dynamic_map(signed=signed) for signed in (True, False)}


@st.composite
def gradients(draw):
    """Of 64 to 40000 elements, block by block: ordinary values of any size, one awkward value, or a mixture of all."""
    rows, columns = draw(st.integers(1, 40)), draw(st.sampled_from([64, 255, 256, 257, 300, 1000]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = np.empty(rows * columns, np.float32)
    for first in range(0, values.size, BLOCK):
        block = values[first:first + BLOCK]
        kind = draw(st.sampled_from(["ordinary", "constant", "mixture", "rare"]))
        if kind == "ordinary":
            block[:] = generator.standard_normal(block.size) * 10.0 ** draw(st.integers(-20, 10))
        elif kind == "constant":
            block[:] = draw(st.sampled_from(AWKWARD))
        elif kind == "mixture":
            block[:] = generator.choice(np.array(AWKWARD, np.float32), block.size)
        else:
            block[:] = generator.standard_normal(block.size)
            block[generator.integers(block.size)] = draw(st.sampled_from(AWKWARD))
    return torch.from_numpy(values).view(rows, columns)


def stepped(gradient, steps=1):
    parameter = torch.nn.Parameter(torch.zeros_like(gradient))
    optimizer = sherd.optim.AdamW8bit([parameter], lr=1e-3, betas=(0.0, 0.5))
    for _ in range(steps):
        parameter.grad = gradient
        optimizer.step()
    return parameter.detach(), optimizer.state[parameter]


def blocks(values):
    flat = values.flatten()
    return torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)


def distance_to_nearest(values, book):
    at = torch.searchsorted(book, values).clamp(1, len(book) - 1)
    return torch.minimum((values - book[at - 1]).abs(), (book[at] - values).abs())


def expect_nearest(codes, absmax, moments, book):
    """Of finite blocks: the scale is the largest magnitude, and codes say the nearest multiples of it."""
    fine = moments.isfinite().all(1)
    largest = moments.abs().amax(1)
    zero = largest < torch.finfo(torch.float32).tiny
    assert torch.equal(absmax.flatten()[fine], torch.where(zero, 0.0, largest)[fine])
    fine &= ~zero
    scaled = (moments[fine] / largest[fine, None]).double()
    off = (book.double()[codes[fine].long()] - scaled).abs()
    assert (off <= distance_to_nearest(scaled, book.double()) + 1e-5 * scaled.abs() + 1e-9).all()


@settings(max_examples=60, deadline=None)
@given(gradients(), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_any_gradient(gradient, dtype):
    gradient = gradient.to(dtype)
    parameter, state = stepped(gradient)
    if gradient.numel() < LEAST:
        assert "exp_avg" in state and "state1" not in state
        return
    g = gradient.float()
    moments = [blocks(g), blocks(0.5 * g * g)]
    assert state["state1"].shape == state["state2"].shape == gradient.shape
    assert state["absmax1"].numel() == state["absmax2"].numel() == len(moments[0])
    for k, (signed, moment) in enumerate(zip((True, False), moments), start=1):
        codes = blocks(state[f"state{k}"])
        codes.view(-1)[gradient.numel():] = 127 if signed else 0  # padding: zeros
        expect_nearest(codes, state[f"absmax{k}"], moment, BOOKS[signed])
    finite = moments[1].isfinite().all(1)
    assert blocks(parameter)[finite].isfinite().all()


@settings(max_examples=30, deadline=None)
@given(gradients(), st.integers(1, 3), st.data())
def test_no_block_disturbs_another(gradient, steps, data):
    if gradient.numel() < LEAST:
        return
    hit = data.draw(st.integers(0, -(-gradient.numel() // BLOCK) - 1))
    other = gradient.clone()
    other.view(-1)[hit * BLOCK:(hit + 1) * BLOCK] = math.nan
    (one, of_one), (two, of_two) = stepped(gradient, steps), stepped(other, steps)
    kept = torch.ones(len(blocks(gradient)), dtype=torch.bool)
    kept[hit] = False

    def same(a, b):
        return torch.equal(blocks(a)[kept].view(torch.uint8), blocks(b)[kept].view(torch.uint8))
    assert same(one, two)
    for name in ("state1", "state2"):
        assert same(of_one[name], of_two[name])
    for name in ("absmax1", "absmax2"):
        assert torch.equal(of_one[name].flatten()[kept].view(torch.uint8),
                           of_two[name].flatten()[kept].view(torch.uint8))
