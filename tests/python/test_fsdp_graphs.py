"""Graphs of a sharded model used otherwise than by backward() of what a forward returned, against the plain model."""
import functools

import pytest
import torch
from torch import nn

from fsdp_models import (
    Block,
    Net,
    Pair,
    close,
    joined,
    rows_of,
    shard_layers,
    token_loss,
    tokens,
    vector_loss,
    vectors,
    whole,
)
from ranks import run

STRATEGIES = ("zero3", "zero2", "zero1", "ddp")


def strategies(case):
    """The case under each strategy, in one world."""
    return [(case, functools.partial(shard_layers, strategy=strategy)) for strategy in STRATEGIES]


def on_both_transports(*cases):
    for transport in ("host", "gloo"):
        for size in (2, 3) if transport == "host" else (2,):
            run(size, joined, transport, *(one for case in cases for one in strategies(case)))


class Stack(nn.Module):
    """Blocks on vectors. What they leave beside their result: `leave(block, values)`."""

    class Leaving(Block):
        def forward(self, x, leave):
            hidden = self.up(self.norm(x))
            leave(self, hidden)
            return x + self.down(torch.tanh(hidden))

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(self.Leaving() for _ in range(3))

    def forward(self, x, leave):
        for layer in self.layers:
            x = layer(x, leave)
        return x


class Bag:
    """Of a class that nobody looks into."""

    __slots__ = ("kept",)

    def __init__(self):
        self.kept = []


def side_doors(shard):
    """Losses on what blocks leave on themselves, in a caller's object, and in a hook's dictionary,
    alone or beside the result."""
    def on_itself(block, hidden):
        block.left = hidden.square().mean()

    def left_on_modules(model, x):
        out = model(x, on_itself)
        return out.mean() + sum(layer.left for layer in model.layers)

    def left_alone(model, x):
        model(x, on_itself)
        return model.layers[0].left + model.layers[2].left

    def in_a_bag(model, x):
        bag = Bag()
        out = model(x, lambda block, hidden: bag.kept.append(hidden))
        return out.square().mean() * 0.1 + torch.stack([hidden.mean() for hidden in bag.kept[::-1]]).square().sum()

    def in_a_hook(model, x):
        kept = {}
        handles = [layer.down.register_forward_hook(lambda module, args, out, i=i: kept.update({i: out}))
                   for i, layer in enumerate(model.layers)]
        model(x, lambda *_: None)
        for handle in handles:
            handle.remove()
        return kept[1].square().mean() + kept[0].mean()

    for features in (left_on_modules, left_alone, in_a_bag, in_a_hook):
        pair = Pair(Stack, shard)
        for step in range(2):
            pair.backward(lambda model, step, rank: features(model, vectors(step, rank)), step)
            pair.compare_gradients()
            pair.update()
        pair.compare_weights()


def between_blocks(shard):
    """A later block computes with what an earlier one has left."""
    class Sharing(Stack):
        def forward(self, x, leave):
            for layer in self.layers:
                x = layer(x, leave)
                x = x + self.layers[0].left.mean()
            return x

    pair = Pair(Sharing, shard)
    pair.backward(lambda model, step, rank: model(vectors(step, rank),
                                                  lambda b, h: setattr(b, "left", h)).square().mean())
    pair.compare_gradients()


def test_what_leaves_a_unit_by_side_doors():
    on_both_transports(side_doors, between_blocks)


class Smooth(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.out = nn.Linear(7, 1)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return torch.sigmoid(self.out(x))


def penalty(model, step, rank):
    """WGAN-GP's."""
    x = vectors(step, rank).requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return (slope.norm(dim=1) - 1).square().mean() + model(x).mean()


def second_derivatives(shard):
    pair = Pair(Smooth, shard)
    for step in range(3):
        pair.backward(penalty, step)
        pair.compare_gradients()
        pair.update()
    pair.compare_weights()


def penalties_of_two(shard):
    """A penalty whose graph waits while another model, and this one, have a backward of their own."""
    first, second = Pair(Smooth, shard), Pair(Smooth, shard)
    losses = [penalty(first.plain, 0, rank) for rank in range(first.size)]
    mine = penalty(first.ours, 0, first.rank)
    second.step(vector_loss)
    for pair in (first, second):
        pair.backward(vector_loss, 1)
    first.plain.zero_grad()
    first.ours.zero_grad()
    (sum(losses) / first.size).backward()
    mine.backward()
    first.compare_gradients()


def third_derivatives(shard):
    def loss(model, step, rank):
        x = vectors(step, rank).requires_grad_()
        (first,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
        return second.square().mean()

    pair = Pair(Smooth, shard)
    pair.backward(loss)
    pair.compare_gradients()


def test_second_and_third_derivatives():
    on_both_transports(second_derivatives, penalties_of_two, third_derivatives)


def inputs_of_backward(shard):
    """Only the parameters named get gradients, of one model and of another that the loss goes through."""
    first, second = Pair(Smooth, shard), Pair(Smooth, shard)
    through = nn.Linear(1, 7)

    def loss(a, b, rank):
        return b(through(a(vectors(0, rank)))).square().mean()

    for names in ([n for n, _ in first.plain.named_parameters()], ["layers.1.up.weight", "out.bias"]):
        for kind in ("backward", "grad", "grad, unused"):
            plain, ours = ([dict(m.named_parameters())[n] for n in names] for m in (first.plain, first.ours))
            other = [second.plain.out.weight], [second.ours.out.weight]
            mean = sum(loss(first.plain, second.plain, rank) for rank in range(first.size)) / first.size
            mine = loss(first.ours, second.ours, first.rank)
            if kind == "backward":
                mean.backward(inputs=plain)
                mine.backward(inputs=ours)
                first.compare_gradients()
                second.compare_gradients()
                assert through.weight.grad is None
                first.update()
                continue
            if kind == "grad, unused":
                with pytest.raises(RuntimeError, match="out.weight|not have been used"):
                    torch.autograd.grad(first.ours(vectors(0, first.rank)).sum(), ours + other[1])
                wanted = torch.autograd.grad(mean, plain + other[0], allow_unused=True)
                got = torch.autograd.grad(mine, ours + other[1], allow_unused=True)
            else:
                wanted, got = torch.autograd.grad(mean, plain), torch.autograd.grad(mine, ours)
            for a, b in zip(wanted, got, strict=True):
                close(whole(b), a)
            assert all(p.grad is None for p in first.ours.parameters())
    unused = torch.autograd.grad(first.ours(vectors(0, 0)).sum(), [second.ours.out.weight], allow_unused=True)
    assert unused == (None,)


def gradients_beside_those_that_are_there(shard):
    """torch.autograd.grad leaves .grad as it is, and what it gave is not touched by what comes later."""
    pair = Pair(Smooth, shard)
    pair.backward(vector_loss)
    parameters = list(pair.ours.parameters())
    given = torch.autograd.grad(vector_loss(pair.ours, 1, pair.rank), parameters)
    kept = [whole(g).clone() for g in given]
    pair.compare_gradients()
    pair.backward(vector_loss, 2)
    pair.compare_gradients()
    for a, b in zip(kept, given):
        assert torch.equal(a, whole(b))
    with torch.no_grad():
        for p, g in zip(parameters, given):
            p.sub_(g, alpha=0.1)


def of_gradients(shard):
    """A loss of the gradients of all parameters: meta-learning, sharpness, curvature."""
    pair = Pair(Smooth, shard)

    def sum_of_squares(gradients):
        return sum(g.square().sum() for g in gradients)

    mean = sum(vector_loss(pair.plain, 0, rank) for rank in range(pair.size)) / pair.size
    plain = sum_of_squares(torch.autograd.grad(mean, list(pair.plain.parameters()), create_graph=True))
    plain.backward()
    ours = sum_of_squares(torch.autograd.grad(vector_loss(pair.ours, 0, pair.rank), list(pair.ours.parameters()),
                                              create_graph=True))
    ours = ours.full_tensor()
    close(ours, plain)
    ours.backward()
    pair.compare_gradients()


def test_gradients_of_chosen_parameters():
    on_both_transports(inputs_of_backward, gradients_beside_those_that_are_there, of_gradients)


def hooks_on_parameters(shard):
    """See the new gradient of each reduced backward as a DTensor of this rank's rows; what they return counts."""
    pair = Pair(Net, shard)
    calls = {False: [], True: []}
    for model in (pair.plain, pair.ours):
        for name, p in model.named_parameters():
            if name in ("embed.weight", "layers.1.up.bias", "head.weight"):
                p.register_hook(lambda g, n=name, m=model is pair.ours: calls[m].append((n, g.detach().clone()))
                                or g * 2)
                p.register_hook(lambda g: g + 1)
            if name == "norm.weight":
                p.register_hook(lambda g, n=name, m=model is pair.ours: calls[m].append((n, g.detach().clone()))
                                and None)
    for step in range(4):  # the second and the fourth add to what is there
        pair.backward(token_loss, step)
        pair.compare_gradients()
        assert sorted(n for n, _ in calls[True]) == sorted(n for n, _ in calls[False]) and len(calls[True]) == 4
        for name, seen in calls[True]:
            close(seen.to_local(), rows_of(dict(calls[False])[name], pair.rank, pair.size))
        calls[False].clear(), calls[True].clear()
        if step % 2:
            pair.update()
    pair.ours.set_requires_gradient_sync(False)
    token_loss(pair.ours, 5, pair.rank).backward()
    assert not calls[True]
    pair.compare_weights()


def hook_on_many(shard):
    """torch's register_multi_grad_hook: once a reduced backward, with the gradients of all."""
    pair = Pair(Net, shard)
    calls = {False: [], True: []}
    names = ("embed.weight", "layers.1.up.bias", "head.weight")
    handles = []
    for model in (pair.plain, pair.ours):
        parameters = dict(model.named_parameters())
        handles.append(torch.autograd.graph.register_multi_grad_hook(
            [parameters[name] for name in names],
            lambda gradients, m=model is pair.ours: calls[m].append([g.detach().clone() for g in gradients])))
    for step in range(2):
        pair.backward(token_loss, step)
        assert len(calls[True]) == step + 1
        for seen, expected in zip(calls[True][-1], calls[False][-1]):
            close(seen.to_local(), rows_of(expected, pair.rank, pair.size))
    for handle in handles:
        handle.remove()
    pair.backward(token_loss, 2)
    assert len(calls[True]) == 2


def test_hooks_on_sharded_parameters():
    on_both_transports(hooks_on_parameters, hook_on_many)


def parameters_in_the_loss(shard):
    """Whole values of parameters, of what is computed from them, and norms of rows, beside or without the forward."""
    def times_input(model, step, rank):
        w = model.layers[0].up.weight
        w = w.full_tensor() if hasattr(w, "full_tensor") else w
        return (vectors(step, rank) @ w.t()).square().mean() + vector_loss(model, step, rank)

    def alone(model, step, rank):
        w = model.out.weight
        w = w.full_tensor() if hasattr(w, "full_tensor") else w
        return (vectors(step, rank) @ w.t()).square().mean()

    def of_a_view(model, step, rank):
        w = (model.layers[1].down.weight * 2).t()
        w = w.full_tensor() if hasattr(w, "full_tensor") else w
        return (vectors(step, rank) @ w.t()).square().mean() + vector_loss(model, step, rank)

    def decay(model, step, rank):
        norm = sum(p.square().sum() for p in model.parameters())
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return vector_loss(model, step, rank) + 0.1 * (rank + 1) * norm

    def norms(model, step, rank):
        return vector_loss(model, step, rank) * (rank + 1) + 0.1 * sum(p.norm() for p in model.parameters())

    def weighed(model, step, rank):
        return (1 + model.out.weight.square().sum()) * vector_loss(model, step, rank)

    for loss in (times_input, alone, of_a_view, decay, norms, weighed):
        pair = Pair(Smooth, shard)
        for step in range(3):  # the second adds to what is there
            pair.backward(loss, step)
            pair.compare_gradients()
            if step != 1:
                pair.update()
        pair.compare_weights()


def heads_weight(shard):
    """f(features, model.head.weight): shown from the forward to the backward, where asked for;
    else an error that says how."""
    import sherd
    with pytest.raises(sherd.FaultError, match=r"'head.weight'.*set_reshard_after_forward\(False\)"):
        pair = prepared(shard)
        pair.ours.features(tokens(0, 0)) @ pair.ours.head.weight.t()
    with torch.no_grad():
        w = pair.ours.head.weight
        for use in (lambda x: x @ w.t(), lambda x: x @ w[...].t(), lambda x: nn.functional.linear(x, w),
                    lambda x: x * w[0]):
            with pytest.raises(sherd.FaultError, match=r"'head.weight'.*set_reshard_after_forward\(False\)"):
                use(torch.ones(2, 7))
        assert type(w.detach()) is type(w.data.detach()) is torch.distributed.tensor.DTensor
    for way in ("unshard", "keep", "both"):
        pair = prepared(shard)
        for step in range(3):
            if way != "unshard":
                pair.ours.set_reshard_after_forward(False, recurse=False)
            if way != "keep":
                pair.ours.unshard()
            losses = [features_loss(pair.plain, step, rank) for rank in range(pair.size)]
            (sum(losses) / pair.size).backward()
            mine = features_loss(pair.ours, step, pair.rank)
            assert not hasattr(pair.ours.head.weight, "full_tensor")
            pair.ours.zero_grad()
            assert hasattr(pair.ours.state_dict()["head.weight"], "full_tensor")
            mine.backward()
            assert hasattr(pair.ours.head.weight, "full_tensor")
            pair.compare_gradients()
            pair.update()
        pair.compare_weights()


class WithFeatures(Net):
    def features(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def features_loss(model, step, rank):
    ids = tokens(step, rank)
    logits = model.features(ids[:, :-1]) @ model.head.weight.t()
    return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def prepared(shard):
    import sherd
    pair = Pair(WithFeatures, shard)
    sherd.register_forward_method(pair.ours, "features")
    return pair


def test_parameters_outside_of_their_units_forward():
    on_both_transports(parameters_in_the_loss, heads_weight)


def functional(shard):
    """torch.func over a sharded model: gradients of inputs, products with Jacobians, batches."""
    pair = Pair(Smooth, shard)
    x, direction = vectors(0, pair.rank), vectors(1, pair.rank)
    for call in (lambda f: torch.func.grad(lambda v: f(v).sum())(x),
                 lambda f: torch.func.jvp(f, (x,), (direction,))[1],
                 lambda f: torch.func.vjp(f, x)[1](torch.ones(3, 1))[0],
                 lambda f: torch.func.vmap(f)(x),
                 lambda f: torch.func.vmap(torch.func.grad(lambda v: f(v).sum()))(x),
                 lambda f: torch.func.grad(lambda v: torch.func.grad(lambda u: f(u).sum())(v).square().sum())(x),
                 lambda f: torch.func.hessian(lambda v: f(v).sum())(x[0])):
        close(call(pair.ours), call(pair.plain))
    pair.step(vector_loss)
    with torch.autograd.forward_ad.dual_level():
        dual = [torch.autograd.forward_ad.unpack_dual(m(torch.autograd.forward_ad.make_dual(x, direction))).tangent
                for m in (pair.plain, pair.ours)]
    close(dual[1], dual[0])
    pair.step(vector_loss)


def test_torch_func_over_a_sharded_model():
    on_both_transports(functional)
