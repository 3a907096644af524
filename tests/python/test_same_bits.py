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

VOCAB, WIDTH, HIDDEN, ROWS, TIME, STEPS = 61, 23, 37, 3, 11, 5


class Net(nn.Module):
    """tests/tools/aten_model.cpp in Python."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.block0, self.block1, self.block2 = (Block(WIDTH, HIDDEN) for _ in range(3))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)

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
    model = Net()
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
    rows = {name: p.to_local().flatten() for name, p in model.named_parameters()}
    return numpy.array(facts), torch.cat([rows[name] for name in sorted(rows)]).detach().numpy()


def from_cpp(ranks, folder):
    out = folder / "out"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--no-python"]
    done = subprocess.run([*(launcher if ranks > 1 else []), str(BUILD / "aten_model"), str(out), str(STEPS)],
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
