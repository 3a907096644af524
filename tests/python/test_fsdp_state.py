"""State of sharded models: state_dict, load_state_dict, torch.distributed.checkpoint, models made on meta."""
import copy

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.tensor import DTensor, Shard

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
    whole,
)
from ranks import run

FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


def local_dict():
    """One rank alone can ask for it: nothing is sent."""
    pair = Pair(lambda: Net(tied=True))
    pair.train(token_loss, 2)
    if pair.rank == 1:
        state = pair.ours.state_dict()
        assert list(state) == list(pair.plain.state_dict())
        for name, value in pair.plain.state_dict().items():
            assert isinstance(state[name], DTensor) and state[name].placements == (Shard(0),)
            assert state[name].shape == value.shape and not state[name].requires_grad
            close(state[name].to_local(), rows_of(value, pair.rank, pair.size))
    dist.barrier()
    for name, value in pair.ours.state_dict().items():
        close(value.full_tensor(), pair.plain.state_dict()[name])
    for name, p in pair.ours.named_parameters():
        assert pair.ours.state_dict()[name].to_local().data_ptr() == p.to_local().data_ptr()


def test_state_dict_is_of_shards_and_sends_nothing():
    run(3, joined, "auto", (local_dict,))


class Buffered(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()
        self.norm = nn.BatchNorm1d(7)
        self.register_buffer("scratch", torch.ones(3), persistent=False)

    def forward(self, x):
        return self.norm(self.block(x))


def buffers():
    pair = Pair(Buffered, shard_root)
    vector_loss(pair.ours, 0, pair.rank).backward()
    vector_loss(pair.plain, 0, pair.rank).backward()
    state = pair.ours.state_dict()
    assert state.keys() == pair.plain.state_dict().keys() and "scratch" not in state
    assert type(state["norm.running_mean"]) is torch.Tensor and state["norm.num_batches_tracked"] == 1
    close(state["norm.running_mean"], pair.plain.norm.running_mean)


def test_buffers_stay_whole_in_the_state_dict():
    run(2, joined, "auto", (buffers,))


def fresh(seed):
    torch.manual_seed(seed)
    return Net()


def loaded():
    """From another sharded model, from its own older state, in place and (before the first forward) by assignment."""
    pair = Pair(Net)
    pair.train(token_loss, 2)
    own = {name: value.clone() for name, value in pair.ours.state_dict().items()}
    for started in (False, True):
        other = shard_layers(fresh(5))
        if started:
            other(tokens(0, 0)).sum().backward()
        assert not torch.equal(other(tokens(1, 0)) if started else torch.zeros(2, 6, 13), pair.ours(tokens(1, 0)))
        other.load_state_dict(pair.ours.state_dict())
        close(other(tokens(1, 0)), pair.plain(tokens(1, 0)))
    assigned = shard_layers(fresh(6))
    assigned.load_state_dict({k: v.clone() for k, v in own.items()}, assign=True)
    close(assigned(tokens(1, 0)), pair.plain(tokens(1, 0)))
    optimizer = torch.optim.SGD(assigned.parameters(), lr=0.1)
    token_loss(assigned, 0, pair.rank).backward()
    optimizer.step()
    assert not torch.equal(assigned(tokens(1, 0)), pair.plain(tokens(1, 0)))
    expected = pair.plain(tokens(1, 0))
    pair.train(token_loss, 1)
    assert not torch.allclose(pair.ours(tokens(1, 0)), expected)
    pair.ours.load_state_dict(own)
    close(pair.ours(tokens(1, 0)), expected)
    with pytest.raises(RuntimeError, match="extra"):
        pair.ours.load_state_dict({**own, "extra": torch.ones(1)})
    close(pair.ours(tokens(1, 0)), expected)


def test_load_state_dict_from_shards():
    run(2, joined, "auto", (loaded,))


def assigned_late():
    """assign=True replaces the parameters of a model in use: its forwards compute with the new ones, or it says no."""
    import sherd
    source, model = shard_layers(fresh(5)), shard_layers(fresh(6))
    expected = source(tokens(0, 0)).detach()
    model(tokens(0, 0)).sum().backward()
    try:
        model.load_state_dict({k: v.clone() for k, v in source.state_dict().items()}, assign=True)
        out = model(tokens(0, 0))
    except sherd.ConfigError:
        return
    close(out.detach(), expected)


def test_load_state_dict_by_assignment_after_the_first_forward():
    run(2, joined, "auto", (assigned_late,))


def full_dicts():
    pair = Pair(Net)
    pair.train(token_loss, 2)
    state = get_model_state_dict(pair.ours, options=FULL)
    if pair.rank == 0:
        assert state.keys() == pair.plain.state_dict().keys()
        for name, value in pair.plain.state_dict().items():
            assert type(state[name]) is torch.Tensor
            close(state[name], value)
    else:
        assert state == {}
    optim = get_optimizer_state_dict(pair.ours, pair.optimizers[1], options=FULL)
    if pair.rank == 0:
        plain = get_optimizer_state_dict(pair.plain, pair.optimizers[0])
        for name, values in plain["state"].items():
            for key, value in values.items():
                close(optim["state"][name][key], value)
    for started in (False, True):
        other = shard_layers(fresh(5 + pair.rank))
        optimizer = adam(other.parameters())
        if started:
            token_loss(other, 0, pair.rank).backward()
            optimizer.step()
            optimizer.zero_grad()
        broadcast = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(other, {k: v.clone() for k, v in state.items()}, options=broadcast)
        set_optimizer_state_dict(other, optimizer, copy.deepcopy(optim), options=broadcast)
        token_loss(other, 7, pair.rank).backward()
        optimizer.step()
        results = other
    pair.backward(token_loss, 7)
    pair.update()
    for name, value in pair.plain.state_dict().items():
        close(whole(results.state_dict()[name]), value)
    whole_on_all = {k: v.detach().clone() for k, v in pair.plain.state_dict().items()}
    set_model_state_dict(other, whole_on_all, options=StateDictOptions(full_state_dict=True))
    close(other(tokens(1, 0)), pair.plain(tokens(1, 0)))


def test_full_state_dicts_of_model_and_optimizer():
    run(2, joined, "auto", (full_dicts,))


def saved(folder, steps):
    pair = Pair(lambda: Net(tied=True))
    pair.train(token_loss, steps)
    model, optim = get_state_dict(pair.ours, pair.optimizers[1])
    dcp.save({"model": model, "optim": optim}, checkpoint_id=folder)


def restored(folder, steps, ranks_before):
    """The plain model goes through the steps of the run that was saved, by the mean of as many ranks."""
    pair = Pair(lambda: Net(tied=True))
    for step in range(steps):
        (sum(token_loss(pair.plain, step, rank) for rank in range(ranks_before)) / ranks_before).backward()
        pair.optimizers[0].step()
        pair.optimizers[0].zero_grad()
    torch.manual_seed(3)
    with torch.no_grad():
        for p in pair.ours.parameters():
            p.mul_(3.0)
    model, optim = get_state_dict(pair.ours, pair.optimizers[1])
    dcp.load({"model": model, "optim": optim}, checkpoint_id=folder)
    set_state_dict(pair.ours, pair.optimizers[1], model_state_dict=model, optim_state_dict=optim)
    pair.compare_weights()
    pair.train(token_loss, 2)


@pytest.mark.parametrize("before, after", ((2, 2), (2, 3), (3, 1)))
def test_checkpoints_load_on_other_numbers_of_ranks(tmp_path, before, after):
    run(before, joined, "auto", (saved, str(tmp_path), 2))
    run(after, joined, "auto", (restored, str(tmp_path), 2, before))


def from_meta(tied):
    """Sharded on meta, then made and filled: from a full state dict, and by an init function on the DTensors."""
    import sherd
    torch.manual_seed(0)
    plain = Net(tied=tied)
    with torch.device("meta"):
        model = Net(tied=tied)
    shard_layers(model)
    assert all(p.device.type == "meta" and isinstance(p, DTensor) for p in model.parameters())
    model.to_empty(device="cpu")
    assert (model.head.weight is model.embed.weight) == tied
    set_model_state_dict(model, {k: v.clone() for k, v in plain.state_dict().items()},
                         options=StateDictOptions(full_state_dict=True))
    rank, size = sherd.world().rank, sherd.world().size
    optimizers = [adam(m.parameters()) for m in (plain, model)]
    for step in range(2):
        (sum(token_loss(plain, step, r) for r in range(size)) / size).backward()
        token_loss(model, step, rank).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for name, value in plain.state_dict().items():
        close(whole(model.state_dict()[name]), value)
    with torch.device("meta"):
        other = Net(tied=tied)
    shard_layers(other)
    other.to_empty(device="cpu")
    for p in other.parameters():
        nn.init.constant_(p, 0.25)
    with torch.no_grad():
        for p in plain.parameters():
            p.fill_(0.25)
    close(other(tokens(0, 0)), plain(tokens(0, 0)))


@pytest.mark.parametrize("tied", (False, True))
def test_a_model_sharded_on_meta(tied):
    run(3, joined, "auto", (from_meta, tied))


def test_the_same_by_gloo(tmp_path):
    run(2, joined, "gloo", (local_dict,), (buffers,), (loaded,), (full_dicts,), (saved, str(tmp_path), 2),
        (restored, str(tmp_path), 2, 2))
