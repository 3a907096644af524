"""requires_grad that changes between steps: unfreezing by and by, adversaries in turn, adapters switched on and off."""
import copy
import functools

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fsdp_models import WIDTH, Block, Net, Pair, close, joined, shard_layers, token_loss, tokens, vectors, whole
from ranks import run

STRATEGIES = ("zero3", "zero2", "zero1", "ddp")
ADAM = functools.partial(torch.optim.Adam, lr=1e-2)


class Both(Pair):
    """A pair whose optimizers have all parameters, whatever is frozen when they are made."""

    def __init__(self, make, shard=shard_layers, optimizer=ADAM):
        super().__init__(make, shard, lambda parameters: None)
        self.optimizers = [optimizer(m.parameters()) for m in (self.plain, self.ours)]

    def set(self, flag, *parts):
        for model in (self.plain, self.ours):
            for name, p in model.named_parameters():
                if any(part in name for part in parts):
                    p.requires_grad_(flag)

    def gradient_bytes(self):
        from sherd.units import HELD
        return getattr(self.ours, HELD).whole_model().model.memory()["gradients"]


def unfrozen_by_and_by(strategy):
    """From the head down, with the embedding in every other step: optimizers keep the same objects and their states."""
    def make():
        return Net(3).requires_grad_(False)
    pair = Both(make, functools.partial(shard_layers, strategy=strategy))
    objects = list(pair.ours.parameters())
    for step in range(7):
        for parts, since in ((("head", "norm"), 0), (("layers.2",), 1), (("layers.1.down", "layers.1.up.bias"), 2),
                             (("layers.0",), 4)):
            pair.set(step >= since, *parts)
        pair.set(step % 2 == 1, "embed")
        pair.step(token_loss, step)
    assert all(p is q for p, q in zip(objects, pair.ours.parameters(), strict=True))
    pair.compare_weights()
    for p, q in zip(pair.plain.parameters(), objects, strict=True):
        mine, theirs = (optimizer.state.get(x) for optimizer, x in zip(pair.optimizers, (p, q)))
        assert (not mine) == (not theirs)
        if mine:
            assert mine["step"] == theirs["step"]
            close(whole(theirs["exp_avg"]), mine["exp_avg"])


def unfreezing():
    for strategy in STRATEGIES:
        unfrozen_by_and_by(strategy)


@pytest.mark.parametrize("transport", ("host", "gloo"))
@pytest.mark.parametrize("ranks", (1, 2, 3))
def test_gradual_unfreezing(ranks, transport):
    run(ranks, joined, transport, (unfreezing,))


class Adversaries(nn.Module):
    def __init__(self):
        super().__init__()
        self.maker = nn.Sequential(Block(), Block())
        self.judge = nn.Sequential(Block(), nn.Linear(WIDTH, 1))


def in_turns(strategy):
    import sherd
    torch.manual_seed(0)
    plain = Adversaries()
    ours = copy.deepcopy(plain)
    for part in (ours.maker, ours.judge):
        sherd.fully_shard(part[0], strategy=strategy)
        sherd.fully_shard(part, strategy=strategy)
    optimizers = [[torch.optim.Adam(part.parameters(), lr=1e-2) for part in (m.maker, m.judge)] for m in (plain, ours)]
    rank, size = sherd.world().rank, sherd.world().size

    def batches(step):
        return [vectors(step, r) for r in range(size)]

    def judging(model, x):
        return model.judge(x).square().mean() - model.judge(model.maker(x).detach()).mean()

    def making(model, x):
        return model.judge(model.maker(x)).square().mean()

    for step in range(4):
        for frozen, loss_of, which in ((False, judging, 1), (True, making, 0)):
            for model, mine, (makers, judges) in ((plain, batches(step), optimizers[0]),
                                                  (ours, [batches(step)[rank]], optimizers[1])):
                model.judge.requires_grad_(not frozen)
                (sum(loss_of(model, x) for x in mine) / len(mine)).backward()
                assert frozen or all(p.grad is not None for p in model.judge.parameters())
                (makers, judges)[which].step()
                makers.zero_grad()
                judges.zero_grad()
    for (name, p), q in zip(plain.named_parameters(), ours.parameters(), strict=True):
        close(whole(q), p, msg=lambda m: f"{strategy} {name}: {m}")


def turns():
    for strategy in STRATEGIES:
        in_turns(strategy)


@pytest.mark.parametrize("transport", ("host", "gloo"))
def test_a_judge_that_is_frozen_while_its_adversary_learns(transport):
    run(2, joined, transport, (turns,))


def gradients_that_are_there(strategy):
    """What is frozen keeps its gradient, as it is; what is unfrozen again goes on from it."""
    pair = Both(Net, functools.partial(shard_layers, strategy=strategy), functools.partial(torch.optim.SGD, lr=0.1))
    pair.backward(token_loss, 0)
    pair.set(False, "layers.0", "up.weight")
    for step in (1, 2):
        pair.backward(token_loss, step)
        pair.compare_gradients()
    kept = whole(pair.ours.layers[0].down.weight.grad).clone()
    pair.update(set_to_none=step == 1)
    pair.backward(token_loss, 3)
    pair.compare_gradients()
    pair.set(True, "layers.0", "up.weight")
    assert kept.abs().sum() > 0
    for step in (4, 5):
        pair.backward(token_loss, step)
    pair.compare_gradients()
    pair.update()
    pair.compare_weights()


def held_across_a_change(strategy):
    """Gradients of no_sync() count, also those of parameters that were frozen, or got a place, in the window."""
    pair = Both(lambda: freeze(Net(), "layers.1"), functools.partial(shard_layers, strategy=strategy))
    for first in (0, 10):
        pair.ours.set_requires_gradient_sync(False)
        pair.backward(token_loss, first)
        pair.set(False, "layers.0", "head")
        pair.set(True, "layers.1")
        pair.backward(token_loss, first + 1)
        pair.ours.set_requires_gradient_sync(True)
        pair.set(False, "embed")
        pair.backward(token_loss, first + 2)
        pair.compare_gradients()
        pair.update()
        pair.set(True, "layers.0", "head", "embed")
        pair.set(False, "layers.1")
        pair.step(token_loss, first + 3)
    pair.compare_weights()


def freeze(model, *parts):
    for name, p in model.named_parameters():
        if any(part in name for part in parts):
            p.requires_grad_(False)
    return model


def windows():
    for strategy in STRATEGIES:
        gradients_that_are_there(strategy)
        held_across_a_change(strategy)


@pytest.mark.parametrize("ranks,transport", ((2, "host"), (2, "gloo"), (1, "host")))
def test_gradients_that_are_there_or_held_when_requires_grad_changes(ranks, transport):
    run(ranks, joined, transport, (windows,))


def sums_kept_back():
    """The same for sums along the shard axis that have yet to be added over the replicas."""
    import sherd
    mesh = sherd.distributed.hybrid_mesh(2)
    pair = Both(lambda: freeze(Net(), "layers.1"), functools.partial(shard_layers, mesh=mesh, strategy="hsdp"))
    pair.ours.set_requires_all_reduce(False)
    pair.backward(token_loss, 0)
    pair.set(True, "layers.1.up")
    pair.set(False, "layers.0.down", "embed")
    pair.backward(token_loss, 1)
    pair.ours.set_requires_all_reduce(True)
    pair.backward(token_loss, 2)
    pair.compare_gradients()
    pair.update()
    pair.step(token_loss, 3)
    pair.compare_weights()


def test_sums_along_the_shard_axis_outlive_a_change():
    run(4, joined, "gloo", (sums_kept_back,))


def between_forward_and_backward():
    """As in torch: what is frozen when its gradient comes gets none; what was frozen in forward gets none either."""
    pair = Both(Net)
    pair.step(token_loss, 0)
    for frozen_after in (True, False, True):
        pair.set(frozen_after, "layers.0", "head")
        losses = [sum(pair.plain_losses(token_loss, 1)) / pair.size, token_loss(pair.ours, 1, pair.rank)]
        pair.set(not frozen_after, "layers.0", "head")
        for loss in losses:
            loss.backward()
        assert pair.ours.head.weight.grad is None
        pair.compare_gradients()
        pair.set(True, "layers.0", "head")
        pair.update()
        pair.step(token_loss, 2)
    pair.compare_weights()


def switched_off_for_another_forward(strategy):
    """As adapters are for the model of reference: between a forward and its backward, and before it."""
    pair = Both(Net, functools.partial(shard_layers, strategy=strategy))

    def loss_of(model, step, rank):
        first = token_loss(model, step, rank)
        adapters = [p for p in model.layers.parameters()]
        for p in adapters:
            p.requires_grad_(False)
        with torch.no_grad() if step % 2 else torch.enable_grad():
            reference = token_loss(model, step + 1, rank)
        for p in adapters:
            p.requires_grad_(True)
        return first + 0.3 * reference

    for step in range(8):
        pair.step(loss_of, step)
    pair.compare_weights()


class FreezesByStep(Net):
    """Parameters of its own and of units in it are frozen and unfrozen by its forward."""
    calls = 0

    def forward(self, ids):
        step = self.calls // self.of_a_step
        self.calls += 1
        self.layers[0].requires_grad_(step % 2 == 0)
        self.layers[1].requires_grad_(step % 3 != 0)
        self.head.requires_grad_(step % 2 == 1)
        return super().forward(ids)


def in_the_models_own_forward():
    pair = Both(FreezesByStep)
    pair.plain.of_a_step, pair.ours.of_a_step = pair.size, 1
    for step in range(7):
        pair.step(token_loss, step)
    pair.compare_weights()


def of_whole_parameters():
    """Frozen through what a unit shows: between unshard() and reshard(), in full_parameters(), in its forward."""
    import sherd
    pair = Both(Net)
    pair.step(token_loss, 0)
    pair.set(False, "embed")
    pair.ours.embed.weight.requires_grad_(True)
    pair.ours.unshard()
    pair.ours.embed.requires_grad_(False)
    pair.ours.reshard()
    pair.step(token_loss, 1)
    assert not pair.ours.embed.weight.requires_grad
    pair.plain.layers.requires_grad_(False)
    with sherd.full_parameters(pair.ours):
        pair.ours.layers.requires_grad_(False)
    pair.step(token_loss, 2)
    with sherd.zero.GatheredParameters(pair.ours.layers[0].up.weight):
        pair.ours.layers[0].up.weight.requires_grad_(True)
    pair.plain.layers[0].up.weight.requires_grad_(True)
    pair.step(token_loss, 3)
    pair.compare_weights()


def recomputed():
    """Through torch's checkpoint around units, and frozen units in between pass gradients on to their inputs."""
    pair = Both(lambda: Checkpointed(3))
    for step in range(4):
        pair.set(step % 2 == 0, "layers.1", "layers.2.norm")
        pair.set(step != 2, "embed")
        pair.step(token_loss, step)
        x, y = vectors(step, pair.rank).requires_grad_(), vectors(step, pair.rank).requires_grad_()
        pair.ours.layers[1](x).sum().backward()
        pair.plain.layers[1](y).sum().backward()
        close(x.grad, y.grad)
        for optimizer in pair.optimizers:
            optimizer.zero_grad()


class Checkpointed(Net):
    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False)
        return self.head(self.norm(x))


def test_frozen_between_forward_and_backward_by_any_face_and_recomputed():
    switched = [(switched_off_for_another_forward, strategy) for strategy in STRATEGIES]
    for transport in ("host", "gloo"):
        run(2, joined, transport, (between_forward_and_backward,), (of_whole_parameters,), (in_the_models_own_forward,),
            (recomputed,), *switched)


def memory_follows():
    """Gradients of what is frozen for good are let go; turns of freezing and unfreezing keep the places."""
    pair = Both(Net)
    pair.step(token_loss, 0)
    full = pair.gradient_bytes()
    pair.set(False, "layers")
    for step in range(6):
        pair.step(token_loss, step)
    frozen = Both(lambda: freeze(Net(), "layers"))
    frozen.step(token_loss, 0)
    assert frozen.gradient_bytes() <= pair.gradient_bytes() < full
    pair.set(True, "layers.1")
    pair.step(token_loss, 6)
    between = pair.gradient_bytes()
    assert frozen.gradient_bytes() < between < full
    for step in range(12):
        pair.set(step % 2 == 1, "layers.1")
        pair.step(token_loss, step)
        assert pair.gradient_bytes() == between


def test_memory_of_gradients_follows_what_is_frozen():
    run(2, joined, "host", (memory_follows,))
    run(2, joined, "gloo", (memory_follows,))


def in_bf16():
    import sherd
    policy = sherd.MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    pair = Both(lambda: freeze(Net(), "layers.0"), functools.partial(shard_layers, mp_policy=policy))
    for step in range(4):
        pair.set(step >= 1, "layers.0")
        pair.set(step % 2 == 0, "head")
        pair.backward(lambda *args: token_loss(*args).float(), step, rtol=0.05, atol=0.05)
        for (name, p), q in zip(pair.plain.named_parameters(), pair.ours.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None), name
            if p.grad is not None:
                close(whole(q.grad), p.grad, rtol=0.05, atol=0.02, msg=lambda m: f"{step} {name}: {m}")
        pair.update()
        with torch.no_grad():
            for p, q in zip(pair.plain.parameters(), pair.ours.parameters()):
                p.copy_(whole(q))


def test_requires_grad_changes_under_bf16():
    run(2, joined, "host", (in_bf16,))
    run(2, joined, "gloo", (in_bf16,))


def on_one_rank_only(transport):
    """After a backward, and where ranks exchange nothing before a forward: errors on all ranks,
    from which they recover."""
    import sherd
    sherd.init(transport=transport, timeout=3)
    pair = Both(Net)
    pair.step(token_loss, 0)
    pair.backward(token_loss, 1)
    weight = pair.ours.layers[1].up.weight
    weight.requires_grad_(pair.rank != 1)
    with pytest.raises(sherd.ConfigError,
                       match=r"requires_grad=False of parameter 'layers\.1\.up\.weight' on rank 1 and True on rank 0"):
        pair.ours(tokens(1, 0))
    weight.requires_grad_(True)
    for optimizer in pair.optimizers:
        optimizer.zero_grad()
    pair.train(token_loss, 2)
    pair.ours(tokens(0, 0))
    with torch.no_grad():
        pair.ours(tokens(0, 0))
    if pair.rank == 1:
        weight.requires_grad_(False)
    with pytest.raises(sherd.FaultError, match=r"requires_grad of parameter 'layers\.1\.up\.weight' on rank 1"
                       if pair.rank == 1 else ""):
        pair.backward(token_loss, 2)
    weight.requires_grad_(True)
    for optimizer in pair.optimizers:
        optimizer.zero_grad()
    pair.train(token_loss, 2)


def test_a_change_on_one_rank_only_is_named():
    for transport in ("host", "gloo"):
        run(2, on_one_rank_only, transport)
