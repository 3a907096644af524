"""fully_shard under autograd's hooks, repeated and partial backwards, evaluation, and activation checkpointing."""
import copy

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from fsdp_models import (
    Block,
    Net,
    Pair,
    adam,
    close,
    joined,
    rows_of,
    shard_layers,
    shard_root,
    token_loss,
    tokens,
    vector_loss,
    vectors,
)
from ranks import run


def post_accumulate(stepping):
    """Hooks on sharded parameters see the reduced gradient, once a backward; an optimizer may run in them."""
    pair = Pair(Net)
    calls, optimizers = [], {}
    for model in (pair.plain, pair.ours):
        for name, p in model.named_parameters():
            optimizers[p] = adam([p])

            def hook(p, name=name):
                sharded = isinstance(p.grad, DTensor)
                calls.append((name, sharded, p.grad.to_local().clone() if sharded else p.grad.clone()))
                if stepping:
                    optimizers[p].step()
                    optimizers[p].zero_grad()

            p.register_post_accumulate_grad_hook(hook)
    for step in range(3):
        calls.clear()
        pair.backward(token_loss, step)
        found = [{name: grad for name, sharded, grad in calls if sharded == kind} for kind in (False, True)]
        assert len(calls) == len(found[0]) + len(found[1]) and found[0].keys() == found[1].keys() != set()
        for name, grad in found[0].items():
            close(found[1][name], rows_of(grad, pair.rank, pair.size))
        if not stepping:
            pair.update()
        assert all(p.grad is None for p in pair.ours.parameters())
    pair.compare_weights()


@pytest.mark.parametrize("stepping", (False, True))
def test_post_accumulate_grad_hooks_also_such_that_step_optimizers(stepping):
    run(2, joined, "auto", (post_accumulate, stepping))


def activation_hooks():
    pair = Pair(Net)
    seen = {False: [], True: []}

    def doubled(model):
        def on_output(module, args, output):
            output.register_hook(lambda g: seen[model is pair.ours].append(g.clone()) or 2 * g)
        return on_output

    for model in (pair.plain, pair.ours):
        for module in (model.layers[0], model.layers[1].up, model.embed):
            module.register_forward_hook(doubled(model))
        model.layers[1].register_full_backward_hook(lambda module, inputs, outputs: (3 * inputs[0],))
        model.layers[0].register_forward_pre_hook(lambda module, args: (args[0] + 0.5,))
    for step in range(3):
        seen[False].clear(), seen[True].clear()
        pair.backward(token_loss, step)
        assert len(seen[True]) == 3 and len(seen[False]) == 3 * pair.size
        for i, grad in enumerate(seen[True]):
            alike = [g * pair.size for g in seen[False] if g.shape == grad.shape]
            assert any(torch.allclose(grad, g, rtol=1e-4, atol=1e-5) for g in alike), i
        pair.compare_gradients()
        pair.update()
    pair.compare_weights()


def test_hooks_on_activations_and_modules():
    run(2, joined, "auto", (activation_hooks,))


def repeated_backward(shard):
    pair = Pair(Net, shard)
    for step in range(2):
        losses = [token_loss(pair.plain, step, rank) for rank in range(pair.size)]
        mean, mine = sum(losses) / pair.size, token_loss(pair.ours, step, pair.rank)
        for repeat in range(3):
            mean.backward(retain_graph=repeat < 2)
            mine.backward(retain_graph=repeat < 2)
            pair.compare_gradients()
        pair.update()
    pair.compare_weights()


def test_backward_twice_through_a_retained_graph():
    run(2, joined, "auto", (repeated_backward, shard_layers), (repeated_backward, shard_root))


def grad_calls():
    """torch.autograd.grad of an activation, and two losses of one forward with backwards of their own."""
    pair = Pair(Net)
    for step in range(2):
        found = []
        for model, ranks in ((pair.plain, range(pair.size)), (pair.ours, (pair.rank,))):
            for rank in ranks:
                x = vectors(step, rank).requires_grad_()
                hidden = model.layers[0](x)
                out = model.layers[1](hidden)
                grad, = torch.autograd.grad(out.square().sum(), hidden, retain_graph=True)
                scale = 1 / pair.size if model is pair.plain else 1.0
                (scale * out.mean()).backward(retain_graph=True)
                (scale * out.square().mean()).backward()
                if rank == pair.rank:
                    found.append((grad, x.grad / scale))
        close(found[1], found[0])
        pair.compare_gradients()
        pair.update()
    pair.compare_weights()


def test_grad_of_activations_and_two_backwards_of_one_forward():
    run(2, joined, "auto", (grad_calls,))


def evaluated():
    """Evaluation between steps, and between a forward and its backward, in all the modes there are."""
    pair = Pair(lambda: Net(dropout=0.5))
    for model in (pair.plain, pair.ours):
        for layer in model.layers:
            layer.dropout.p = 0.0

    def evaluate(step):
        for mode in (torch.no_grad, torch.inference_mode):
            results = []
            for model in (pair.plain, pair.ours):
                model.eval()
                assert not model.layers[0].training
                with mode():
                    out = model(tokens(step, pair.rank))
                    assert not out.requires_grad
                    results.append(out.clone())
                model.train()
            close(results[1], results[0])

    for step in range(3):
        evaluate(step)
        losses = pair.plain_losses(token_loss, step)
        loss = token_loss(pair.ours, step, pair.rank)
        evaluate(step + 20)
        (sum(losses) / pair.size).backward()
        loss.backward()
        pair.compare_gradients()
        evaluate(step + 30)
        pair.update()
    for model in (pair.plain, pair.ours):
        model.eval()
    pair.train(token_loss, 2)


def test_evaluation_between_steps_and_between_forward_and_backward():
    run(2, joined, "auto", (evaluated,))


def first_evaluated(strategy, **options):
    """What a model takes in its first forward is written to by later ones, whatever mode that one was in."""
    pair = Pair(Net, lambda model: shard_layers(model, strategy=strategy, **options))
    with torch.inference_mode():
        close(pair.ours(tokens(0, 0)), pair.plain(tokens(0, 0)))
    pair.train(token_loss)


@pytest.mark.parametrize("transport", ("auto", "gloo"))
def test_training_after_an_evaluation_in_inference_mode(transport):
    from sherd import MixedPrecisionPolicy
    bf16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    run(2, joined, transport, *((first_evaluated, strategy) for strategy in ("zero3", "zero2", "zero1", "ddp")),
        (first_evaluated_in_bf16, bf16))


def first_evaluated_in_bf16(policy):
    model = shard_layers(Net(), mp_policy=policy)
    with torch.inference_mode():
        model(tokens(0, 0))
    for step in range(2):
        token_loss(model, step, 0).backward()
        assert all(p.grad is not None for p in model.parameters())


class Checkpointed(nn.Module):
    """Every block in a checkpoint, which is inside the unit (of the block) or around it."""

    def __init__(self, reentrant, inside, dropout=0.0):
        super().__init__()
        self.embed = nn.Embedding(13, 7)
        self.layers = nn.ModuleList(Inside(reentrant, dropout) if inside else Block(dropout=dropout) for _ in range(3))
        self.reentrant, self.inside = reentrant, inside
        self.head = nn.Linear(7, 13)

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x) if self.inside else checkpoint(layer, x, use_reentrant=self.reentrant)
        return self.head(x)


class Inside(nn.Module):
    def __init__(self, reentrant, dropout):
        super().__init__()
        self.block, self.reentrant = Block(dropout=dropout), reentrant

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=self.reentrant)


def two_checkpointed_forwards(model, step, rank):
    return (model(tokens(step, rank)) * model(tokens(step + 40, rank))).mean()


def checkpointed(reentrant, inside):
    for reshard in (True, False):
        pair = Pair(lambda: Checkpointed(reentrant, inside), lambda m: shard_layers(m, reshard_after_forward=reshard))
        pair.train(token_loss)
        pair.train(two_checkpointed_forwards, 2)
    pair.ours.set_requires_gradient_sync(False)
    pair.backward(token_loss, 7)
    pair.ours.set_requires_gradient_sync(True)
    pair.backward(token_loss, 8)
    pair.compare_gradients()


def checkpointed_all():
    for reentrant in (True, False):
        for inside in (True, False):
            checkpointed(reentrant, inside)


@pytest.mark.parametrize("reentrant", (True, False))
def test_activation_checkpointing_inside_and_around_units(reentrant):
    run(2, joined, "auto", (checkpointed, reentrant, True), (checkpointed, reentrant, False))


class Grouped(nn.Module):
    """One checkpoint around two units, one of them used twice in it."""

    def __init__(self, reentrant):
        super().__init__()
        self.layers, self.reentrant = nn.ModuleList([Block(), Block(), Block()]), reentrant

    def both(self, x):
        return self.layers[0](self.layers[1](self.layers[0](x)))

    def forward(self, x):
        x = checkpoint(self.both, x.requires_grad_(), use_reentrant=self.reentrant)
        return self.layers[2](x)


def grouped(reentrant):
    Pair(lambda: Grouped(reentrant)).train(vector_loss, 3)


def test_several_units_in_one_checkpoint():
    run(2, joined, "auto", (grouped, True), (grouped, False))


def dropout(reentrant, inside):
    """The recomputed forward draws the same numbers: gradients are those of the plain model with the same seed."""
    pair = Pair(lambda: Checkpointed(reentrant, inside, dropout=0.4))

    def loss_of(model, step, rank):
        torch.manual_seed(100 * step + rank)
        return token_loss(model, step, rank)

    alike = copy.deepcopy(pair.plain)
    torch.manual_seed(1)
    assert not torch.equal(alike(tokens(0, 0)), alike(tokens(0, 0)))
    pair.train(loss_of)


def dropout_all():
    for reentrant in (True, False):
        for inside in (True, False):
            dropout(reentrant, inside)


def test_dropout_under_checkpointing():
    run(2, joined, "auto", (dropout_all,))


def checkpoint_wrapped():
    """checkpoint_wrapper of torch, applied before fully_shard as users of FSDP do."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
        CheckpointImpl,
        apply_activation_checkpointing,
        checkpoint_wrapper,
    )

    def make():
        model = Net()
        apply_activation_checkpointing(
            model, lambda m: checkpoint_wrapper(m, checkpoint_impl=CheckpointImpl.NO_REENTRANT),
            check_fn=lambda m: isinstance(m, Block))
        return model

    pair = Pair(make)
    pair.train(token_loss)
    assert "layers.0.up.weight" in pair.ours.state_dict()


def test_units_that_are_checkpoint_wrappers():
    run(2, joined, "auto", (checkpoint_wrapped,))


def test_the_same_by_gloo():
    run(2, joined, "gloo", (post_accumulate, False), (activation_hooks,), (repeated_backward, shard_layers),
        (grad_calls,), (evaluated,), (checkpointed_all,), (grouped, True), (grouped, False), (dropout_all,))
