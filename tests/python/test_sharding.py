"""fully_shard against the same model unsharded, on the same data."""
import pytest
import torch
from torch import nn

from fsdp_models import Net, tokens
from ranks import run

STRATEGIES = ("ddp", "zero1", "zero2", "zero3")


def make_model():
    torch.manual_seed(0)
    return Net(3, tied=True)


def batch(step, rank):
    ids = tokens(step, rank)
    return ids[:, :-1], ids[:, 1:]


def loss_of(model, ids, targets):
    return nn.functional.cross_entropy(model(ids).flatten(0, 1), targets.flatten())


def plain_training(ranks, steps=4, clip=None):
    """The mean of the gradients of all ranks' batches, on one model."""
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(steps):
        of_ranks = [loss_of(model, *batch(step, rank)) for rank in range(ranks)]
        (sum(of_ranks) / ranks).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append([loss.item() for loss in of_ranks])
    return losses, {k: v.detach() for k, v in model.state_dict().items()}


def sharded_training(strategy, transport, steps=4, clip=None):
    import sherd
    world = sherd.init(transport=transport)
    model = make_model()
    for layer in model.layers:
        sherd.fully_shard(layer)
    sherd.fully_shard(model, strategy=strategy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(steps):
        loss = loss_of(model, *batch(step, world.rank))
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {k: v.full_tensor().detach() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("ranks", (1, 2, 3, 4))
@pytest.mark.parametrize("transport", ("auto", "gloo"))
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_trains_as_unsharded(strategy, transport, ranks):
    losses, weights = plain_training(ranks, clip=0.5)
    results = run(ranks, sharded_training, strategy, transport, 4, 0.5)
    for rank, (ours, state) in enumerate(results):
        assert ours == pytest.approx([step[rank] for step in losses], rel=1e-5)
        assert state.keys() == weights.keys()
        for name, value in state.items():
            torch.testing.assert_close(value, weights[name], rtol=1e-4, atol=1e-5, msg=lambda m: f"{name}: {m}")
