"""Exceptions in forward and backward: all ranks hear of them, and go on."""
import contextlib
import re

import pytest
import torch
from torch import nn

from fsdp_models import Block, Net, Pair, joined, token_loss, tokens, vector_loss
from ranks import run


class Trap(nn.Module):
    """The identity, which raises where it is told to."""

    def __init__(self):
        super().__init__()
        self.where = None

    def forward(self, x):
        if self.where == "forward":
            raise ValueError("trap in forward")
        if self.where == "backward" and x.requires_grad:
            x.register_hook(self.spring)
        return x

    def spring(self, gradient):
        raise ValueError("trap in backward")


def trapped_net():
    model = Net(3)
    model.layers[1].dropout = Trap()
    return model


def recovers(where, last=True):
    """The step with the exception counts for nothing, on all ranks; the same step follows without it."""
    pair = Pair(trapped_net)
    for step in range(4):
        if step in (0, 2):
            trap = pair.ours.layers[1].dropout
            trap.where = where if pair.rank == (pair.size - 1 if last else 0) else None
            with pytest.raises((ValueError, RuntimeError)) as caught:
                token_loss(pair.ours, step, pair.rank).backward()
                pair.optimizers[1].step()
            if trap.where:
                assert type(caught.value) is ValueError and "trap" in str(caught.value)
            else:
                assert f"rank {pair.size - 1 if last else 0} gave up" in str(caught.value)
                if where == "forward":
                    assert re.search(r"ValueError: trap in forward \(in .*test_fsdp_exceptions.py, line \d+: raise Val",
                                     str(caught.value))
            trap.where = None
            pair.optimizers[1].zero_grad()
        pair.step(token_loss, step)
    pair.compare_weights()


@pytest.mark.parametrize("transport", ("auto", "gloo"))
@pytest.mark.parametrize("where", ("forward", "backward"))
def test_training_goes_on_after_an_exception_of_one_rank(where, transport):
    run(3, joined, transport, (recovers, where), (recovers, where, False))


def caught_by_all(where):
    """All ranks raise at once, outside and inside of evaluation."""
    pair = Pair(trapped_net)
    trap = pair.ours.layers[1].dropout
    for step in range(2):
        trap.where = where
        with pytest.raises(ValueError, match="trap"):
            token_loss(pair.ours, step, pair.rank).backward()
        if where == "forward":
            with pytest.raises(ValueError, match="trap"), torch.no_grad():
                pair.ours(tokens(0, 0))
        trap.where = None
        pair.optimizers[1].zero_grad()
        pair.step(token_loss, step)
    pair.compare_weights()


@pytest.mark.parametrize("where", ("forward", "backward"))
def test_training_goes_on_after_an_exception_of_all_ranks(where):
    run(2, joined, "auto", (caught_by_all, where))


def other_models(where, raises_on):
    """An exception of one model, caught: another one, with gradients that wait and a graph that is not used up, a new
    one, and the first go on as if nothing had been."""
    first, second = Pair(trapped_net), Pair(Net)
    for pair in (first, second):
        pair.step(token_loss)
    for round in range(2):
        second.ours.set_requires_gradient_sync(False)
        second.backward(token_loss, 1)  # held
        second.ours.set_requires_gradient_sync(True)
        second.backward(token_loss, 2)
        waiting = ([token_loss(second.plain, 3, rank) for rank in range(second.size)],
                   token_loss(second.ours, 3, second.rank))
        trap = first.ours.layers[1].dropout
        trap.where = where if raises_on in (None, first.rank) else None
        with pytest.raises((ValueError, RuntimeError)) as caught:
            token_loss(first.ours, 1, first.rank).backward()
            first.optimizers[1].step()
        if trap.where:
            assert "trap" in str(caught.value)
        elif where == "forward":
            assert "trap in forward" in str(caught.value)
            assert "(in the forward of unit 'layers.1' of Net)" in str(caught.value)
        trap.where = None
        first.optimizers[1].zero_grad()
        (sum(waiting[0]) / second.size).backward()
        waiting[1].backward()
        second.compare_gradients()
        second.update()
        for pair in (second, Pair(Net), first):
            pair.step(token_loss, 5 + round)
    for pair in (first, second):
        pair.compare_weights()


@pytest.mark.parametrize("transport", ("auto", "gloo"))
def test_an_exception_belongs_to_the_model_it_happened_in(transport):
    for where in ("forward", "backward"):
        run(2, joined, transport, (other_models, where, None), (other_models, where, 1), (other_models, where, 0))


class Around(nn.Module):
    """A model in whose forward another model runs, and fails."""

    def __init__(self, inner):
        super().__init__()
        self.layers, self.inner = nn.ModuleList(Block() for _ in range(2)), [inner]

    def forward(self, x):
        x = self.layers[0](x)
        if self.inner[0] is not None:
            for _ in range(2):
                with pytest.raises((ValueError, RuntimeError), match="trap"), torch.no_grad():
                    self.inner[0](tokens(0, 0))
        return self.layers[1](x)


def around_another():
    inner = Pair(trapped_net)
    inner.step(token_loss)
    outer = Pair(lambda: Around(None))
    inner.ours.layers[1].dropout.where = "forward"
    for step in range(3):
        outer.ours.inner[0] = inner.ours if step else None
        outer.step(vector_loss, step)
    inner.ours.layers[1].dropout.where = None
    inner.step(token_loss, 1)
    outer.compare_weights()


@pytest.mark.parametrize("transport", ("auto", "gloo"))
def test_an_exception_in_a_model_that_runs_inside_of_another(transport):
    run(2, joined, transport, (around_another,))


def shapes_do_not_fit():
    pair = Pair(Net)
    for _ in range(2):
        with pytest.raises((RuntimeError, IndexError)):
            pair.ours.layers[0](torch.ones(2, 3))
    pair.train(token_loss, 2)


def test_an_exception_of_torch_in_a_unit():
    run(2, joined, "auto", (shapes_do_not_fit,))


def fault_type():
    """A fault that another rank causes is a FaultError in backward too, and says where to look for the cause."""
    import sherd
    pair = Pair(trapped_net)
    pair.ours.layers[1].dropout.where = "backward" if pair.rank == 1 else None
    expected = ((ValueError, "trap in backward") if pair.rank == 1
                else (sherd.FaultError, r"rank 1 gave up: ValueError: trap in backward \(in .*line \d+: .*backward of"))
    with pytest.raises(expected[0], match=expected[1]):
        token_loss(pair.ours, 0, pair.rank).backward()
        pair.optimizers[1].step()


def before_the_model():
    """An exception that ends a backward before it comes to the model is the others' too; training goes on."""
    import sherd
    pair = Pair(Net)
    pair.train(token_loss, 1)

    def trap(_):
        raise KeyError("in the loss")

    loss = token_loss(pair.ours, 1, pair.rank)
    if pair.rank == 1:
        loss.register_hook(trap)
    with pytest.raises(KeyError if pair.rank == 1 else sherd.FaultError, match="in the loss"):
        loss.backward()
        pair.optimizers[1].step()
    pair.ours.zero_grad()
    pair.train(token_loss, 2)
    # One of a graph in which the model has no part is nobody else's.
    other = torch.ones(3, requires_grad=True).sum()
    if pair.rank == 0:
        other.register_hook(trap)
    loss = token_loss(pair.ours, 3, pair.rank)
    with contextlib.nullcontext() if pair.rank else pytest.raises(KeyError):
        other.backward()
    loss.backward()


def test_a_fault_in_backward_is_a_fault_error_with_its_cause():
    run(2, joined, "auto", (fault_type,), (before_the_model,))


def test_an_exception_before_a_backward_comes_to_the_model_by_gloo():
    run(2, joined, "gloo", (before_the_model,))
