"""torch's optimizers over sharded parameters."""
import functools
import time

import pytest
import torch

from fsdp_models import Net, Pair, adam, close, joined, shard_layers, token_loss, tokens, whole
from ranks import run

OPTIMIZERS = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adamw": functools.partial(torch.optim.AdamW, lr=1e-2),
    "adamw foreach": functools.partial(torch.optim.AdamW, lr=1e-2, foreach=True),
    "adamw one by one": functools.partial(torch.optim.AdamW, lr=1e-2, foreach=False, amsgrad=True),
    "adamw fused": functools.partial(torch.optim.AdamW, lr=1e-2, fused=True),
    "rmsprop": functools.partial(torch.optim.RMSprop, lr=1e-3, momentum=0.5),
    "adagrad": functools.partial(torch.optim.Adagrad, lr=1e-2),
    "nadam": functools.partial(torch.optim.NAdam, lr=1e-2),
    "adamax": functools.partial(torch.optim.Adamax, lr=1e-2),
}


def optimized(name):
    pair = Pair(Net, optimizer=OPTIMIZERS[name])
    pair.train(token_loss, 4)
    for state in pair.optimizers[1].state.values():
        for value in state.values():
            assert not isinstance(value, torch.Tensor) or value.dim() == 0 or hasattr(value, "placements")


@pytest.mark.parametrize("names", (list(OPTIMIZERS)[:5], list(OPTIMIZERS)[5:]), ids=("usual", "others"))
def test_optimizers_of_torch(names):
    run(2, joined, "auto", *[(optimized, name) for name in names])


def scheduled():
    pair = Pair(Net, optimizer=OPTIMIZERS["adamw"])
    schedules = [torch.optim.lr_scheduler.OneCycleLR(o, max_lr=3e-2, total_steps=6) for o in pair.optimizers]
    for step in range(5):
        pair.backward(token_loss, step)
        pair.update()
        for schedule in schedules:
            schedule.step()
    pair.compare_weights()


def grouped():
    """Groups with their own rates, one added in mid-training."""
    pair = Pair(Net)
    optimizers = []
    for model in (pair.plain, pair.ours):
        decay = [p for n, p in model.named_parameters() if p.dim() > 1 and "layers" in n]
        other = [p for n, p in model.named_parameters() if p.dim() == 1]
        optimizers.append(torch.optim.AdamW([{"params": decay, "weight_decay": 0.1, "lr": 1e-2},
                                             {"params": other, "weight_decay": 0.0, "lr": 2e-2}]))
    pair.optimizers = optimizers
    for step in range(4):
        if step == 2:
            for optimizer, model in zip(optimizers, (pair.plain, pair.ours)):
                optimizer.add_param_group({"params": [model.embed.weight, model.head.weight], "lr": 5e-3})
        pair.backward(token_loss, step)
        pair.update()
        pair.ours.zero_grad()
        pair.plain.zero_grad()
    pair.compare_weights()


def two_optimizers():
    """Each with half of the parameters, which step in turns."""
    pair = Pair(Net)
    halves = [[adam(list(model.parameters())[i::2]) for i in range(2)] for model in (pair.plain, pair.ours)]
    for step in range(4):
        pair.backward(token_loss, step)
        for half, model in zip(halves, (pair.plain, pair.ours)):
            half[step % 2].step()
            model.zero_grad()
    pair.compare_weights()


def closures():
    pair = Pair(Net, optimizer=functools.partial(torch.optim.SGD, lr=0.1))
    for step in range(2):
        def plain():
            pair.optimizers[0].zero_grad()
            loss = sum(pair.plain_losses(token_loss, step)) / pair.size
            loss.backward()
            return loss

        def ours():
            pair.optimizers[1].zero_grad()
            loss = token_loss(pair.ours, step, pair.rank)
            loss.backward()
            return loss

        pair.optimizers[0].step(plain)
        pair.optimizers[1].step(ours)
    pair.compare_weights()


def subtract(p, how):
    if how == "in place":
        p.sub_(p.grad, alpha=0.1)
    if how == "data":
        p.data.sub_(p.grad, alpha=0.1)
    if how == "foreach":
        torch._foreach_sub_([p], [0.1 * p.grad])
    if how == "local" and hasattr(p, "to_local"):
        p.to_local().sub_(p.grad.to_local(), alpha=0.1)
    elif how == "local":
        p.sub_(p.grad, alpha=0.1)


def by_hand(how, strategy):
    """Updates without an optimizer, under no_grad: other ranks' forwards have them, and have them in time."""
    pair = Pair(Net, lambda model: shard_layers(model, strategy=strategy))
    for step in range(6):
        pair.backward(token_loss, step)
        with torch.no_grad():
            for p in (*pair.plain.parameters(), *pair.ours.parameters()):
                subtract(p, how)
        pair.plain.zero_grad()
        pair.ours.zero_grad()
        close(token_loss(pair.ours, 50, 0), token_loss(pair.plain, 50, 0))
    pair.compare_weights()


HAND = ("in place", "data", "foreach", "local")


@pytest.mark.parametrize("how", HAND)
@pytest.mark.parametrize("transport", ("auto", "gloo"))
def test_an_update_by_hand(how, transport):
    run(2, joined, transport, (by_hand, how, "zero3"), (by_hand, how, "ddp"))


def written_early():
    """A rank that is done with an evaluation may write new values; others, still in theirs, compute with the old."""
    pair = Pair(Net)
    pair.train(token_loss, 1)
    values = {name: value.clone() for name, value in pair.ours.state_dict().items()}
    for write in (lambda: pair.ours.load_state_dict({k: 2 * v for k, v in values.items()}),
                  lambda: [p.mul_(2.0) for p in pair.ours.parameters()]):
        if pair.rank == 1:
            slow = pair.ours.layers[0].register_forward_hook(lambda *_: time.sleep(0.5))
        with torch.no_grad():
            expected = pair.plain(tokens(0, 0))
            out = pair.ours(tokens(0, 0))
            write()
        if pair.rank == 1:
            slow.remove()
        close(out, expected)
        pair.ours.load_state_dict(values)
        torch.distributed.barrier()


@pytest.mark.parametrize("transport", ("auto", "gloo"))
def test_values_written_after_an_evaluation_do_not_reach_ranks_that_are_still_in_it(transport):
    run(2, joined, transport, (written_early,))


def averaged():
    """A moving average of the weights, kept by the user as DTensors, put in and taken out again."""
    pair = Pair(Net)
    averages = [{n: p.detach().clone() for n, p in model.named_parameters()} for model in (pair.plain, pair.ours)]
    for step in range(3):
        pair.backward(token_loss, step)
        pair.update()
        for average, model in zip(averages, (pair.plain, pair.ours)):
            for name, p in model.named_parameters():
                average[name].lerp_(p.detach(), 0.5)
    own = []
    for average, model in zip(averages, (pair.plain, pair.ours)):
        own.append({n: p.detach().clone() for n, p in model.named_parameters()})
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(average[name])
    close(pair.ours(tokens(0, 0)), pair.plain(tokens(0, 0)))
    for values, model in zip(own, (pair.plain, pair.ours)):
        model.load_state_dict(values)
    pair.train(token_loss, 2)


def test_a_schedule_and_groups_with_rates_of_their_own():
    run(2, joined, "auto", (scheduled,), (grouped,))


def test_two_optimizers_and_steps_with_closures():
    run(2, joined, "auto", (two_optimizers,), (closures,))


def test_an_average_of_the_weights_swapped_in_and_out():
    run(2, joined, "auto", (averaged,))


def built_before():
    import sherd
    torch.manual_seed(0)
    model = Net()
    optimizer = adam(model.parameters())
    shard_layers(model)
    model(tokens(0, 0)).sum().backward()
    with pytest.raises(sherd.ConfigError, match="embed.weight"):
        optimizer.step()
    assert all(torch.isfinite(whole(p)).all() for p in model.parameters())
    adam(model.parameters()).step()


def test_an_optimizer_made_before_sharding_is_rejected_at_its_step():
    run(2, joined, "auto", (built_before,))


def test_the_same_by_gloo():
    run(2, joined, "gloo", (optimized, "sgd"), (optimized, "adamw fused"), (optimized, "adamw foreach"), (grouped,),
        (two_optimizers,), (closures,), (averaged,))
