"""fully_shard trains as the plain model does: units used in all the ways that modules are."""
import collections
import dataclasses

import pytest
import torch
from torch import nn

import fsdp_models
from fsdp_models import (
    Block,
    Net,
    Pair,
    close,
    joined,
    shard_children,
    shard_layers,
    shard_root,
    token_loss,
    vector_loss,
    vectors,
)
from ranks import run


def odd_mlp():
    return nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 1, bias=False), nn.Linear(1, 3))


def trained(make, shard, loss_of, steps):
    Pair(make, shard).train(loss_of, steps)


@pytest.mark.parametrize("transport, ranks", (("auto", 1), ("auto", 2), ("auto", 3), ("auto", 4), ("gloo", 3)))
def test_ten_adam_steps_of_one_unit_of_odd_shapes(transport, ranks):
    run(ranks, joined, transport, (trained, odd_mlp, shard_root, vector_loss, 10))


def test_ten_adam_steps_of_several_units_whether_they_reshard_after_forward_or_not():
    run(2, joined, "auto", (several_units, None), (several_units, True), (several_units, False))


def several_units(reshard_after_forward):
    pair = Pair(Net, lambda model: shard_layers(model, reshard_after_forward=reshard_after_forward))
    pair.train(token_loss, 8)
    pair.ours.set_reshard_after_forward(not reshard_after_forward)
    pair.train(token_loss, 2)


def sharded_every_child(model):
    import sherd
    for module in (model.embed, *model.layers, model.norm, model.head):
        sherd.fully_shard(module)
    sherd.fully_shard(model)


def test_embedding_norm_and_head_are_units_and_the_root_has_no_parameters():
    run(2, joined, "auto", (trained, Net, sharded_every_child, token_loss, 4))


class Repeated(nn.Module):
    """A unit used twice in a forward, around another one."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Block(), Block()

    def forward(self, x):
        return self.first(self.second(self.first(x)))


def test_a_unit_used_twice_in_a_forward():
    run(2, joined, "auto", (trained, Repeated, shard_children, vector_loss, 4))


def preference_loss(model, step, rank):
    return (model(vectors(step, rank)) - model(vectors(step + 50, rank))).square().mean()


def two_forwards():
    for reshard in (True, False):
        Pair(Repeated, lambda model: shard_children(model, reshard_after_forward=reshard)).train(preference_loss)
        Pair(Repeated, lambda model: shard_root(model, reshard_after_forward=reshard)).train(preference_loss)


def test_two_forwards_before_one_backward():
    run(2, joined, "auto", (two_forwards,))


def root_then_unit():
    pair = Pair(Repeated, shard_children)
    for step in range(3):
        pair.backward(vector_loss, step)
        pair.backward(lambda model, step, rank: model.second(vectors(step + 50, rank)).square().mean(), step)
        pair.compare_gradients()
        pair.update()
    pair = Pair(Repeated, shard_children)
    pair.backward(lambda model, step, rank: model.second(vectors(step, rank)).square().mean())
    pair.compare_gradients()
    pair.update()
    pair.train(vector_loss)


def test_the_root_and_then_a_unit_alone():
    run(2, joined, "auto", (root_then_unit,))


class Choosing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.used = [0, 1, 2]

    def forward(self, x):
        for i in self.used:
            x = self.layers[i](x)
        return x


def units_unused():
    pair = Pair(Choosing)
    for step, used in enumerate(([0, 1, 2], [0, 2], [1], [2, 0, 1], [2, 1, 0])):
        pair.plain.used = pair.ours.used = used
        pair.step(vector_loss, step)
    pair.compare_weights()


def test_units_that_a_step_does_not_use():
    run(3, joined, "auto", (units_unused,))


class Outputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(7, 7), nn.Linear(7, 7)

    def forward(self, x):
        return self.a(x), self.b(x)


class OneOutput(nn.Module):
    """An output of `fork` is used in no way; all of `idle`'s is thrown away."""

    def __init__(self):
        super().__init__()
        self.fork, self.idle, self.last = Outputs(), Block(), Block()

    def forward(self, x):
        self.idle(x)
        return self.last(self.fork(x)[0])


def unused_outputs():
    for shard in (shard_children, shard_root):
        pair = Pair(OneOutput, shard)
        pair.train(vector_loss)
        assert pair.ours.fork.b.weight.grad is None and pair.ours.idle.up.weight.grad is None


def test_outputs_that_are_not_used():
    run(2, joined, "auto", (unused_outputs,))


class Branches(nn.Module):
    """Of the parameters `used` is always used, `never` never, `chosen[i]` where the input says so."""

    def __init__(self):
        super().__init__()
        self.used, self.never = nn.Linear(7, 7), nn.Linear(7, 5)
        self.chosen = nn.ModuleList(nn.Linear(7, 7) for _ in range(2))

    def forward(self, x, choice):
        return self.chosen[choice](self.used(x)) if choice < 2 else self.used(x)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Branches(), Branches()])

    def forward(self, x, choice):
        for layer in self.layers:
            x = layer(x, choice)
        return x


def unused_parameters():
    pair = Pair(Branching)
    choices = ([0, 0, 0], [0, 1, 2], [2, 2, 2], [1, 1, 0])  # of each rank, by step
    for step, choice in enumerate(choices):
        pair.backward(lambda model, step, rank: model(vectors(step, rank), choice[rank]).square().mean(), step)
        pair.compare_gradients()
        unused = {"never"} | {f"chosen.{i}" for i in range(2) if i not in choice}
        for name, p in pair.ours.named_parameters():
            assert (p.grad is None) == any(part in name for part in unused), (step, name)
        pair.update()
    pair.compare_weights()


def test_a_parameter_has_no_gradient_where_no_rank_uses_it_and_counts_as_zero_where_some_do():
    run(3, joined, "auto", (unused_parameters,))


@dataclasses.dataclass
class State:
    hidden: torch.Tensor
    extras: dict
    name: str = "state"


Pieces = collections.namedtuple("Pieces", "x mask note")


class Structured(nn.Module):
    def __init__(self, last=False):
        super().__init__()
        self.linear = nn.Linear(7, 7)
        self.last = last

    def forward(self, state, *lists, pieces, flag=None, **options):
        hidden = self.linear(state.hidden) * state.extras["scale"] + lists[0][0][1] + pieces.x * options["factor"]
        if flag is not None or self.last:
            return hidden
        return State(hidden.tanh(), {"scale": state.extras["scale"], "n": 3, "deep": [(hidden,), None, "text"]})


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Structured(), Structured(last=True)])
        self.scale = nn.Parameter(torch.full((3, 1), 0.5))

    def forward(self, batch, mode="train", *, missing=None):
        assert mode == "train" and missing is None
        x = batch["x"]
        state = State(x, {"scale": self.scale})
        state = self.layers[0](state, [(None, x)], pieces=Pieces(x, None, "n"), factor=2)
        deep = state.extras["deep"][0][0]
        hidden = self.layers[1](state, [(1, deep)], pieces=Pieces(x.double().float(), None, "n"), factor=0.5)
        return {"hidden": hidden, "note": ["text", 7, None, True], "batch": batch, "deep": (deep, {"x": x})}


def nested_loss(model, step, rank):
    out = model({"x": vectors(step, rank), "ids": [1, 2]})
    assert out["note"] == ["text", 7, None, True] and out["batch"]["ids"] == [1, 2]
    return out["hidden"].square().mean() + out["deep"][0].mean()


def test_nested_inputs_and_outputs_and_such_that_are_no_tensors():
    run(2, joined, "auto", (trained, Nested, shard_layers, nested_loss, 4))


class NoInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 3))
        self.inner = Block()
        self.start = nn.Parameter(torch.randn(2, 7))

    def forward(self):
        return self.inner(self.start).sum() * self.weight.square().mean()


def input_gradients():
    pair = Pair(Net)
    pair.train(lambda model, step, rank: model.layers[1](model.layers[0](vectors(step, rank))).square().mean())
    for needed in (True, False, True):
        results = []
        for model in (pair.plain, pair.ours):
            x = vectors(0, pair.rank).requires_grad_(needed)
            model.layers[0](model.layers[1](x)).square().sum().backward()
            results.append(x.grad)
            model.zero_grad()
        assert (results[0] is not None) == needed
        if needed:
            close(results[1], results[0])
    results = []
    for model in (pair.plain, pair.ours):
        x = vectors(1, pair.rank).requires_grad_()
        results.append(torch.autograd.grad(model.layers[0](x).sum(), x)[0])
    close(results[1], results[0])


def test_gradients_of_inputs_that_need_them_and_inputs_that_need_none():
    run(2, joined, "auto", (input_gradients,))


def test_a_root_without_inputs():
    run(2, joined, "auto", (trained, NoInput, shard_inner, scaled_loss, 3))


def shard_inner(model):
    import sherd
    sherd.fully_shard(model.inner)
    sherd.fully_shard(model)


def scaled_loss(model, step, rank):
    return model() * (1.0 + rank + step)


def cast_after_sharding():
    pair = Pair(Net)
    for model in (pair.plain, pair.ours):
        model.to(torch.bfloat16)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    loss = token_loss(pair.ours, 0, pair.rank)
    torch.testing.assert_close(loss, token_loss(pair.plain, 0, pair.rank))
    loss.backward()
    sum(loss / pair.size for loss in pair.plain_losses(token_loss, 0)).backward()
    for p, q in zip(pair.plain.parameters(), pair.ours.parameters()):
        assert q.grad.dtype == torch.bfloat16
        torch.testing.assert_close(fsdp_models.whole(q.grad), p.grad, rtol=0.05, atol=2e-3)
    before = [fsdp_models.whole(p).clone() for p in pair.ours.parameters()]
    torch.optim.SGD(pair.ours.parameters(), lr=0.1).step()
    assert any(not torch.equal(b, fsdp_models.whole(p)) for b, p in zip(before, pair.ours.parameters()))
    token_loss(pair.ours, 1, pair.rank).backward()


def test_a_model_cast_to_bfloat16_after_it_was_sharded():
    run(2, joined, "auto", (cast_after_sharding,))


def test_the_same_by_gloo():
    run(3, joined, "gloo", (trained, Net, sharded_every_child, token_loss, 3),
        (trained, Repeated, shard_children, vector_loss, 3), (several_units, True), (two_forwards,), (root_then_unit,),
        (units_unused,), (unused_outputs,), (unused_parameters,), (trained, Nested, shard_layers, nested_loss, 3),
        (trained, NoInput, shard_inner, scaled_loss, 3), (input_gradients,))
