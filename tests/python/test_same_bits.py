"""The same operators in the same order, from C++ and from Python: the same bits."""
import os
import subprocess
import sys

import numpy
import pytest
import torch
from torch import nn

from conftest import BUILD
from fsdp_models import Block
from ranks import run

VOCAB, ROWS, TIME, STEPS = 61, 3, 11, 5
NARROW, WIDE = (23, 37), (64, 128)  # width and hidden; matrices of whole blocks of 8-bit moments on a rank


class Net(nn.Module):
    """tests/tools/aten_model.cpp in Python."""

    def __init__(self, width, hidden):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, width)
        self.block0, self.block1, self.block2 = (Block(width, hidden) for _ in range(3))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCAB, bias=False)

    def forward(self, ids, scale):
        import sherd
        x = self.embed(ids[:, :-1])
        for block in (self.block0, self.block1, self.block2):
            x = block(x)
        return sherd.linear_cross_entropy(self.norm(x), self.head.weight, ids[:, 1:], reduction="sum", scale=scale)


def tokens(step, rank):
    i = torch.arange(ROWS * TIME)
    return ((i * i * 7 + i * 13 + step * 29 + rank * 17) % VOCAB).view(ROWS, TIME)


def from_python(transport):
    """Losses and norms as doubles, then this rank's rows."""
    import sherd
    world = sherd.init(transport=transport)
    torch.manual_seed(0)
    model = Net(*NARROW)
    for block in (model.block0, model.block1, model.block2):
        sherd.fully_shard(block)
    sherd.fully_shard(model)
    model.set_gradient_divide_factor(1.0)
    optimizer = sherd.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    facts = []
    for step in range(STEPS):
        loss = model(tokens(step, world.rank), 1.0 / (ROWS * (TIME - 1) * world.size))
        loss.backward()
        norm = sherd.optim.gradient_norm(model)
        optimizer.step(gradient_scale=sherd.optim.clip_scale(norm, 0.5))
        optimizer.zero_grad()
        facts += [loss.item(), norm]
    return numpy.array(facts), rows_of(model)


def rows_of(model):
    rows = {name: p.to_local().flatten() for name, p in model.named_parameters()}
    return torch.cat([rows[name] for name in sorted(rows)]).detach().numpy()


def from_python_engine(transport, rule):
    """The same by initialize(): with a loss scale, clipping, a schedule, and a step that overflows."""
    import sherd
    world = sherd.init(transport=transport)
    torch.manual_seed(0)
    model = Net(*WIDE)
    config = {"strategy": "zero3", "clip": 0.5, "steps": STEPS, "units": ["Block"],
              "loss_scale": {"initial": 64, "hysteresis": 1},
              "schedule": {"type": "linear", "warmup": 2, "final_ratio": 0.1},
              "optimizer": {"type": "".join(rule), "lr": 1e-2, "betas": [0.9, 0.95], "weight_decay": 0.1,
                            "no_decay": []}}
    engine, _, _, _ = sherd.initialize(model=model, config=config)
    model.set_gradient_divide_factor(1.0)
    facts = []
    for step in range(STEPS):
        loss = engine(tokens(step, world.rank), 2e36 if step == 1 else 1.0 / (ROWS * (TIME - 1) * world.size))
        engine.backward(loss)
        engine.step()
        facts += [loss.item(), engine.get_global_grad_norm()]
    assert engine.skipped_steps == 1
    return numpy.array(facts), rows_of(model)


def from_cpp(ranks, folder, rule=()):
    out = folder / "out"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--no-python"]
    done = subprocess.run([*(launcher if ranks > 1 else []), str(BUILD / "aten_model"), str(out), str(STEPS), *rule],
                          env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    results = []
    for rank in range(ranks):
        raw = out.with_suffix(f".{rank}").read_bytes()
        results.append((numpy.frombuffer(raw[:16 * STEPS], numpy.float64),
                        numpy.frombuffer(raw[16 * STEPS:], numpy.float32)))
    return results


@pytest.mark.parametrize("ranks", (1, 2, 3))
def test_cpp_and_python_train_to_the_same_bits(ranks, tmp_path):
    expected = from_cpp(ranks, tmp_path)
    for transport in ("auto", "gloo")[:1 if ranks == 1 else 2]:
        for (facts, rows), (our_facts, our_rows) in zip(expected, run(ranks, from_python, transport), strict=True):
            assert numpy.array_equal(facts, our_facts)
            assert rows.shape == our_rows.shape and numpy.array_equal(rows, our_rows)
            assert len(set(facts.tolist())) == len(facts)  # every step is another


RULES = [("adamw",), ("adamw", "8bit"), ("adam",), ("adam", "8bit"), ("muon",), ("lion",), ("lion", "8bit")]


@pytest.mark.parametrize("rule", RULES, ids="".join)
def test_every_rule_has_the_same_bits_with_a_loss_scale_a_schedule_and_a_skipped_step(rule, tmp_path):
    """The skipped step moves neither parameters nor the schedule, on either side."""
    expected = from_cpp(2, tmp_path, rule)
    for (facts, rows), (our_facts, our_rows) in zip(expected, run(2, from_python_engine, "auto", rule), strict=True):
        assert not numpy.isfinite(facts[3]) and numpy.isfinite(facts[[1, 5, 7, 9]]).all()
        assert numpy.array_equal(facts, our_facts, equal_nan=True)
        assert rows.shape == our_rows.shape and numpy.array_equal(rows, our_rows)
