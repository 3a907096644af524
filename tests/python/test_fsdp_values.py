"""Whatever changes a sharded parameter's values, or its gradient's, counts or is refused by name;
other weights are computed with."""
import copy
import functools

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from fsdp_models import Net, Pair, close, joined, shard_layers, token_loss, whole
from ranks import run

STRATEGIES = ("zero3", "zero2", "zero1", "ddp")
HALF = 0.5


def of_rows(p):
    p.data = p.data.to_local() * HALF


def of_a_dtensor(p):
    p.data = p.data * HALF


def of_a_new_parameter(p):
    p.data = nn.Parameter(p.detach() * HALF).data


def local_replaced(p):
    p._local_tensor = p._local_tensor * HALF


def local_written(p):
    p._local_tensor.mul_(HALF)


def in_place_operator(p):
    p *= HALF


def item(p):
    p[...] = p * HALF


def item_of_data(p):
    p.data[...] = p.data * HALF


def in_inference_mode(p):
    with torch.inference_mode():
        p.mul_(HALF)


def past_torch_functions(p):
    with torch._C.DisableTorchFunctionSubclass():
        p.mul_(HALF)


def out(p):
    torch.mul(p, HALF, out=p)


def foreach(p):
    torch._foreach_mul_([p], HALF)


def copied(p):
    p.copy_(p * HALF)


def detached(p):
    p.detach().mul_(HALF)


WRITES = (of_rows, of_a_dtensor, of_a_new_parameter, local_replaced, local_written, in_place_operator, item,
          item_of_data, in_inference_mode, past_torch_functions, out, foreach, copied, detached)


def sharded_copy(plain, strategy):
    return shard_layers(copy.deepcopy(plain), strategy=strategy)


def halved(plain):
    half = copy.deepcopy(plain)
    with torch.no_grad():
        for p in half.parameters():
            p.mul_(HALF)
    return half


def assert_same(ours, plain):
    close(token_loss(ours, 3, 0), token_loss(plain, 3, 0))
    for (name, p), q in zip(plain.named_parameters(), ours.parameters(), strict=True):
        close(whole(q), p.detach(), msg=lambda m: f"{name}: {m}")


def writes(strategy, has_run):
    import sherd
    torch.manual_seed(0)
    plain = Net()
    half = halved(plain)
    for write in WRITES:
        ours = sharded_copy(plain, strategy)
        if has_run:
            token_loss(ours, 0, sherd.world().rank)
        with torch.no_grad():
            for p in ours.parameters():
                write(p)
        assert_same(ours, half)
    for options in ({}, {"assign": True}):
        ours = sharded_copy(plain, strategy)
        if has_run:
            token_loss(ours, 0, sherd.world().rank)
        ours.load_state_dict({name: value * HALF for name, value in ours.state_dict().items()}, **options)
        assert_same(ours, half)


def refused(strategy):
    import sherd
    torch.manual_seed(0)
    ours = sharded_copy(Net(), strategy)
    token_loss(ours, 0, sherd.world().rank)
    p = ours.head.weight
    before = whole(p).clone()

    def attempt(change, message, error=sherd.ConfigError):
        with pytest.raises(error, match=message), torch.no_grad():
            change()

    attempt(lambda: setattr(p, "data", torch.zeros(3, 7)), "'head.weight'")
    attempt(lambda: setattr(p, "data", p.data.double()), "float64.*'head.weight'")
    attempt(lambda: setattr(p, "data", p.data.redistribute(placements=[torch.distributed.tensor.Replicate()])),
            "'head.weight'")
    attempt(lambda: p.set_(torch.zeros(13, 7)), r"set_\(\).*'head.weight'")
    attempt(lambda: torch.utils.swap_tensors(p, nn.Parameter(p.detach() * 2)), "swap|use_count|weakref", RuntimeError)
    attempt(lambda: p.grad_fn or ours.norm.weight.set_(torch.zeros(7)), "'norm.weight'")
    p._local_tensor, kept = torch.zeros(1, 3), p._local_tensor
    attempt(lambda: token_loss(ours, 0, 0), "'head.weight'")
    p._local_tensor = kept
    assert torch.equal(whole(p), before)
    token_loss(ours, 0, 0)


def gradients(strategy):
    def data_written(p):
        p.grad.data.mul_(2)

    def data_assigned(p):
        p.grad.data = p.grad.data * 2

    def replaced(p):
        p.grad = p.grad * 2

    def local(p):
        p.grad.to_local().mul_(2)

    for change in (data_written, data_assigned, replaced, local):
        pair = Pair(Net, functools.partial(shard_layers, strategy=strategy), functools.partial(torch.optim.SGD, lr=0.1))
        pair.backward(token_loss)
        for p in pair.plain.parameters():
            p.grad.mul_(2)
        for p in pair.ours.parameters():
            change(p)
        pair.compare_gradients()
        pair.backward(token_loss, 1)
        pair.compare_gradients()
        pair.update()
        pair.compare_weights()


@pytest.mark.parametrize("transport", ("host", "gloo"))
def test_whatever_changes_values_counts_or_is_refused(transport):
    run(2, joined, transport, *((case, strategy, *more) for strategy in STRATEGIES
                                for case, *more in ((writes, True), (writes, False), (refused,), (gradients,))),
        timeout=180)


def other_weights(strategy, has_run):
    """functional_call with plain tensors, with what is computed from the shards,
    and with another sharded model's parameters."""
    pair = Pair(Net, functools.partial(shard_layers, strategy=strategy))
    if has_run:
        pair.step(token_loss)
    shown = {name: p for name, p in pair.ours.named_parameters()}

    def call(model, weights, step=0, rank=0):
        return token_loss(lambda ids: torch.func.functional_call(model, weights, (ids,)), step, rank)

    plain = {name: p.detach() * 2 for name, p in pair.plain.named_parameters()}
    close(call(pair.ours, plain), call(pair.plain, plain))
    part = {"layers.0.up.weight": plain["layers.0.up.weight"]}
    close(call(pair.ours, part), call(pair.plain, part))
    of_shards = {name: p.detach() * 2 for name, p in pair.ours.named_parameters()}
    assert all(isinstance(p, DTensor) for p in of_shards.values())
    close(call(pair.ours, of_shards), call(pair.plain, plain))
    leaves = [{name: nn.Parameter(value.clone()) for name, value in plain.items()} for _ in range(2)]
    if has_run:
        for model, own in zip((pair.plain, pair.ours), leaves):
            call(model, own).backward()
        for name in plain:
            close(leaves[1][name].grad, leaves[0][name].grad)
    assert {name: p for name, p in pair.ours.named_parameters()} == shown  # and all is as it was
    pair.step(token_loss, 1)

    other = Pair(Net, functools.partial(shard_layers, strategy=strategy))
    close(call(pair.ours, dict(other.ours.named_parameters())), call(pair.plain, dict(other.plain.named_parameters())))


def fast_weights(strategy):
    """A step on the weights that the loss's gradient flows through (MAML)."""
    pair = Pair(Net, functools.partial(shard_layers, strategy=strategy))
    pair.step(token_loss)

    def adapted(model, losses):
        names, parameters = zip(*model.named_parameters())
        gradients = torch.autograd.grad(losses(model), parameters, create_graph=True)
        return {name: p - 0.1 * g for name, p, g in zip(names, parameters, gradients)}

    def after(model, weights, rank):
        return token_loss(lambda ids: torch.func.functional_call(model, weights, (ids,)), 2, rank)

    plain = adapted(pair.plain, lambda m: sum(token_loss(m, 1, r) for r in range(pair.size)) / pair.size)
    (sum(after(pair.plain, plain, r) for r in range(pair.size)) / pair.size).backward()
    ours = adapted(pair.ours, lambda m: token_loss(m, 1, pair.rank))
    after(pair.ours, ours, pair.rank).backward()
    pair.compare_gradients()
    pair.update()
    pair.compare_weights()


def inside_full_parameters(strategy):
    import sherd
    pair = Pair(Net, functools.partial(shard_layers, strategy=strategy))
    pair.step(token_loss)
    with sherd.full_parameters(pair.ours, writeback=True):
        with torch.no_grad():
            for model in (pair.plain, pair.ours):
                model.head.weight.mul_(3)
            close(token_loss(pair.ours, 0, 0), token_loss(pair.plain, 0, 0))
        with pytest.raises(sherd.ConfigError, match="full_parameters.*no_grad"):
            token_loss(pair.ours, 0, 0)
    pair.train(token_loss)


@pytest.mark.parametrize("transport", ("host", "gloo"))
def test_other_weights_are_computed_with(transport):
    run(2, joined, transport, *((case, strategy, *more) for strategy in STRATEGIES
                                for case, *more in ((other_weights, True), (other_weights, False), (fast_weights,),
                                                    (inside_full_parameters,))), timeout=180)
