"""Muon: torch's own, sharded; with AdamW for what is no matrix."""
import functools
import json
import math
import pickle
import subprocess

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from fsdp_models import token_loss
from ranks import run
from test_precision import seeded

pytest.importorskip("transformers")
import plain

SHAPES = [(1, 8), (8, 1), (16, 16), (33, 70), (70, 33)]


@pytest.fixture
def torchs_in_fp32(monkeypatch):
    """torch.optim.Muon iterates in bf16; its arithmetic is to be compared, not bf16's."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.float().clone())
    plain, of_2_15 = torch.Tensor.to, {"dtype": torch.bfloat16, "copy": True}
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *args, **kwargs: tensor.float().clone()
                        if kwargs == of_2_15 else plain(tensor, *args, **kwargs))


@pytest.mark.parametrize("options",
                         ({}, {"adjust_lr_fn": "match_rms_adamw", "nesterov": False},
                          {"momentum": 0.5, "weight_decay": 0.0}, {"ns_steps": 3, "adjust_lr_fn": "original"}), ids=str)
def test_is_torchs(torchs_in_fp32, options):
    from sherd import optim
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    pairs = [(optim.Muon(ours, lr=0.05, products="fp32", **options), ours),
             (torch.optim.Muon(theirs, lr=0.05, **options), theirs)]
    for _ in range(4):
        gradients = [torch.randn(shape) for shape in SHAPES]
        for optimizer, parameters in pairs:
            for parameter, gradient in zip(parameters, gradients):
                parameter.grad = gradient.clone()
            optimizer.step()
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    # Each goes on from the other's state.
    states = [optimizer.state_dict() for optimizer, _ in pairs]
    for (optimizer, parameters), state in zip(pairs, reversed(states)):
        optimizer.load_state_dict(state)
        for parameter, start in zip(parameters, theirs):
            parameter.data = start.detach().clone()
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("products", ("auto", "fp32", "bf16"))
def test_is_near_torchs_own_in_bf16(products):
    from sherd import optim
    torch.manual_seed(0)
    ours = nn.Parameter(torch.zeros(64, 96))
    theirs = nn.Parameter(torch.zeros(64, 96))
    ours.grad = theirs.grad = torch.randn(64, 96)
    optim.Muon([ours], lr=1.0, products=products).step()
    torch.optim.Muon([theirs], lr=1.0).step()
    cosine = (ours * theirs).sum() / (ours.norm() * theirs.norm())
    assert cosine > 0.999 and abs(ours.norm() / theirs.norm() - 1) < 0.01


def test_survives_pickling():
    from sherd import optim
    parameter = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    copy = pickle.loads(pickle.dumps(optim.Muon([parameter], master="none", lr=0.5)))
    assert copy.master == "none"
    moved = copy.param_groups[0]["params"][0]
    moved.grad = torch.eye(4, dtype=torch.bfloat16)
    copy.step()
    assert not torch.equal(moved, parameter)


def trained(strategy, steps=4, folder=None, load=False, **optimizer):
    import sherd
    config = {"units": ["Block"], "strategy": strategy, "optimizer": {"type": "muon", "lr": 3e-2, **optimizer}}
    engine, optimizer, *_ = sherd.initialize(model=seeded(), config=config)
    if load:
        engine.load_checkpoint(folder)
    losses = []
    for step in range(2 if load else 0, steps):
        loss = token_loss(engine, step % 2, 0)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
        if folder and not load and step == 1:
            engine.save_checkpoint(folder)
    kinds = {name: sorted(k for k in optimizer.state[p]) for name, p in engine.module.named_parameters()}
    return losses, {name: p.detach().full_tensor() for name, p in engine.module.named_parameters()}, kinds


def test_trains_by_the_configuration():
    losses, weights, kinds = run(2, trained, "zero3", 12)[0]
    assert losses[-1] < 0.9 * losses[0]
    for name, states in kinds.items():
        is_muons = weights[name].dim() == 2 and "embed" not in name
        assert states == (["momentum_buffer"] if is_muons else ["exp_avg", "exp_avg_sq", "step"]), name
    for strategy in ("zero1", "zero2", "ddp"):
        other = run(2, trained, strategy, 12)[0]
        assert other[0] == losses and all(torch.equal(other[1][name], weights[name]) for name in weights)


def test_types_of_products_train_alike():
    fp32, bf16 = (run(2, functools.partial(trained, products=products), "zero3", 12)[0][0]
                  for products in ("fp32", "bf16"))
    assert fp32 != bf16
    np.testing.assert_allclose(fp32, bf16, rtol=0.02)


def test_a_checkpoint_goes_on_with_another_number_of_ranks(tmp_path):
    expected, weights, _ = run(2, trained, "zero3", 4, str(tmp_path))[0]
    again, same, _ = run(2, trained, "zero3", 4, str(tmp_path), True)[0]
    assert again == expected[2:] and all(torch.equal(same[name], weights[name]) for name in weights)
    on_three, *_ = run(3, trained, "zero3", 4, str(tmp_path), True)[0]
    np.testing.assert_allclose(on_three, expected[2:], rtol=1e-4)


def steps_before_the_first_forward(how):
    import sherd
    torch.manual_seed(0)
    if how == "materialized":
        with torch.device("meta"):
            model = nn.Linear(6, 10, bias=False)
        sherd.fully_shard(model)
        sherd.materialize(model, init=lambda module: nn.init.ones_(module.weight))
    else:
        model = sherd.fully_shard(nn.Linear(6, 10, bias=False))
    if how == "cast":
        model.to(torch.bfloat16)
    optimizer = sherd.optim.Muon(model.parameters())
    before = model.weight.full_tensor()
    if how == "cast":
        model(torch.ones(2, 6, dtype=torch.bfloat16)).sum().backward()
    else:
        model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    return not torch.equal(before, model.weight.full_tensor())


@pytest.mark.parametrize("how", ("plain", "materialized", "cast"))
def test_steps_however_the_model_came_about(how):
    assert run(2, steps_before_the_first_forward, how) == [True, True]


def mistakes():
    import sherd
    from sherd import optim
    messages = []
    for make in (lambda: optim.Muon([("bias", nn.Parameter(torch.ones(3)))]),
                 lambda: optim.Muon([nn.Parameter(torch.ones(3, 3))], adjust_lr_fn="x"),
                 lambda: optim.Muon([nn.Parameter(torch.ones(3, 3))], momentum=1.5),
                 lambda: optim.Muon([nn.Parameter(torch.ones(3, 3))], ns_steps=0),
                 lambda: optim.Muon([nn.Parameter(torch.ones(3, 3))], products="fp8"),
                 lambda: optim.SGD([nn.Parameter(torch.ones(3, 3))], nesterov=True),
                 lambda: sherd.initialize(model=seeded(), config={"optimizer": {"type": "muon", "exclude": ["a"]}})):
        try:
            make()
        except sherd.ConfigError as error:
            messages.append(str(error))
    return messages


def test_mistakes_are_named():
    messages = run(1, mistakes)[0]
    assert len(messages) == 7, messages
    assert "parameter 'bias' of sizes [3]" in messages[0] and "use_muon=False" in messages[0]
    assert "adjust_lr_fn='x'" in messages[1] and "momentum" in messages[2] and "ns_steps=0" in messages[3]
    assert "'fp8'" in messages[4]
    assert "nesterov" in messages[5] and "exclude" in messages[6]


def test_sherd_train_is_torchs(torchs_in_fp32, sherd, write_config):
    """With the golden Llama: matrices of blocks by Muon, embeddings, head and norms by AdamW."""
    class Both:
        def __init__(self, parameters):
            named = dict(plain.golden_model().named_parameters())
            own = list(zip(named, parameters))
            matrices = [p for name, p in own if p.dim() == 2 and "embed" not in name and "lm_head" not in name]
            rest = [p for name, p in own if not any(p is m for m in matrices)]
            values = dict(lr=2e-3, weight_decay=0.1)
            self.optimizers = [torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **values),
                               torch.optim.AdamW(rest, betas=(0.9, 0.95), **values)]

        def step(self):
            for optimizer in self.optimizers:
                optimizer.step()

        def zero_grad(self):
            for optimizer in self.optimizers:
                optimizer.zero_grad()

    losses, norms, weights = plain.train(Both, 6)
    file = write_config({"steps": 6, "optimizer": {"type": "muon", "lr": 2e-3, "no_decay": [], "products": "fp32"}})
    for ranks in (1, 2, 3):
        done = subprocess.run([sherd, "train", file, "--ranks", str(ranks)], capture_output=True, text=True,
                              timeout=120)
        assert done.returncode == 0, done.stderr
        metrics = [json.loads(line) for line in (file.parent / "run" / "metrics.jsonl").read_text().splitlines()]
        np.testing.assert_allclose([line["loss"] for line in metrics], losses, rtol=1e-5)
        assert all(math.isclose(line["grad_norm"], norm, rel_tol=1e-3) for line, norm in zip(metrics, norms))
        got = load_file(file.parent / "run" / "model" / "model.safetensors")
        for key in weights:
            np.testing.assert_allclose(got[key], weights[key], rtol=0, atol=2e-4, err_msg=key)
