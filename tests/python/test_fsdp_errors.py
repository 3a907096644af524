"""What fully_shard says to a user's mistakes."""

import pytest
import torch
from torch import nn

import fsdp_models
from fsdp_models import (
    Block,
    Net,
    Pair,
    adam,
    close,
    joined,
    shard_layers,
    shard_root,
    token_loss,
    tokens,
    vector_loss,
    vectors,
)
from ranks import run


class Writing(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.how = nn.Linear(7, 7), None

    def forward(self, x):
        with torch.no_grad():
            if self.how == "in place":
                self.linear.weight.mul_(2.0)
            if self.how == "data":
                self.linear.weight.data.mul_(2.0)
            if self.how == "slice":
                self.linear.weight[0, 0] = 5.0
            if self.how == "numpy":
                self.linear.weight.detach().numpy()[:] = 3.0
        return self.linear(x)


def written(how):
    import sherd
    pair = Pair(lambda: nn.ModuleDict({"layers": nn.ModuleList([Writing(), Block()])}), shard_modules)
    unit = pair.ours["layers"][0]
    loss_of = lambda m, step, rank: m["layers"][0](m["layers"][1](vectors(step, rank))).square().mean()  # noqa: E731
    for step in range(2):
        unit.how = how
        with pytest.raises(sherd.FaultError, match="linear.weight"):
            loss_of(pair.ours, step, pair.rank).backward()
        unit.how = None
        pair.optimizers[1].zero_grad()
        pair.step(loss_of, step)
        pair.compare_weights()


def shard_modules(model):
    import sherd
    for layer in model["layers"]:
        sherd.fully_shard(layer)


@pytest.mark.parametrize("transport, how", (
    ("auto", "in place"), ("auto", "data"), ("auto", "slice"), ("auto", "numpy"), ("gloo", "in place"),
    ("gloo", "slice")))
def test_a_parameter_changed_in_forward_is_named_and_as_it_was(transport, how):
    run(2, joined, transport, (written, how))


def kept_from_forward():
    model = shard_layers(Net())
    kept = []
    model.layers[0].up.register_forward_hook(lambda module, args, output: kept.append(module.weight))
    model(tokens(0, 0)).sum().backward()
    assert type(kept[0]) is nn.Parameter
    for use in (lambda w: w + 1, lambda w: w.sum().item(), lambda w: w.detach().numpy(), lambda w: w.data_ptr(),
                lambda w: w.tolist()):
        with pytest.raises(RuntimeError, match=r"layers\.0\.up\.weight"):
            use(kept[0])


@pytest.mark.parametrize("transport", ("auto", "gloo"))
def test_a_whole_parameter_kept_from_forward_cannot_be_used(transport):
    run(2, joined, transport, (kept_from_forward,))


def outside_of_forward():
    import sherd
    model = shard_layers(Net())
    for _ in range(2):
        with pytest.raises(sherd.FaultError, match=r"layers\.0\.up\.weight|up\.weight"):
            model.layers[0].up(vectors(0, 0))
        with pytest.raises(sherd.FaultError, match="head.weight"):
            model.head(vectors(0, 0))
        with pytest.raises(sherd.FaultError, match="embed.weight"):
            model.embed(tokens(0, 0))
        with pytest.raises(sherd.FaultError, match="norm.weight"):
            model.norm(vectors(0, 0))
        model(tokens(0, 0)).sum().backward()
    model.unshard()
    model.head(vectors(0, 0))
    model.reshard()


def test_a_submodule_called_outside_of_its_units_forward_is_named():
    run(2, joined, "auto", (outside_of_forward,))


def left_on_meta():
    import sherd
    with torch.device("meta"):
        model = Net()
    shard_layers(model)
    for part in (model.embed, model.layers[0], model.norm, model.head):
        part.to_empty(device="cpu")
    with pytest.raises(sherd.ConfigError) as caught:
        model(tokens(0, 0))
    assert "layers.1.up.weight" in str(caught.value) and "layers.1.norm.bias" in str(caught.value)
    assert "embed" not in str(caught.value) and "layers.0" not in str(caught.value)


def test_parameters_left_on_meta_are_listed():
    run(2, joined, "auto", (left_on_meta,))


def added_later(after_forward):
    import sherd
    model = shard_layers(Net())
    if after_forward:
        model(tokens(0, 0)).sum().backward()
    model.layers[1].up.scale = nn.Parameter(torch.ones(3))
    with pytest.raises(sherd.ConfigError, match=r"layers\.1\.up\.scale"):
        model(tokens(0, 0)).sum().backward()
        adam(model.parameters()).step()
        model(tokens(0, 0))
    del model.layers[1].up.scale
    model(tokens(0, 0)).sum().backward()


@pytest.mark.parametrize("after_forward", (False, True))
def test_a_parameter_added_after_sharding_is_named(after_forward):
    run(2, joined, "auto", (added_later, after_forward))


def meshes():
    from torch.distributed.device_mesh import DeviceMesh

    import sherd
    for mesh in (DeviceMesh("cpu", [0]), DeviceMesh("cpu", [1, 0]), DeviceMesh("cpu", [[[0], [1]]])):
        with pytest.raises(sherd.ConfigError, match="mesh"):
            sherd.fully_shard(Block(), mesh=mesh)
    pair = Pair(Block, lambda model: shard_root(model, mesh=DeviceMesh("cpu", [0, 1], mesh_dim_names=("dp",))))
    pair.train(fsdp_models.vector_loss, 2)


def test_a_mesh_that_is_not_the_world_is_rejected():
    run(2, joined, "auto", (meshes,))


def cast_after_sharding():
    pair = Pair(Net)
    for model in (pair.plain, pair.ours):
        model.double()
    pair.train(token_loss, 2)
    assert all(p.dtype == torch.float64 for p in pair.ours.parameters())


def test_a_cast_between_sharding_and_the_first_forward_counts():
    run(2, joined, "auto", (cast_after_sharding,))


def float8():
    import sherd
    model = shard_layers(Net())
    with pytest.raises(sherd.ConfigError, match="float8_e5m2.*requires_grad_"):
        model.to(torch.float8_e5m2)
        model(tokens(0, 0))


def test_a_type_that_cannot_be_trained_is_rejected_after_a_cast():
    run(2, joined, "auto", (float8,))


def other_units():
    """Ranks that run units in another order get an error that says so, and can go on."""
    pair = Pair(Net)
    order = pair.ours.layers if pair.rank == 0 else list(pair.ours.layers)[::-1]
    with pytest.raises(RuntimeError, match="layers.0"):
        x = vectors(0, 0)
        for layer in order:
            x = layer(x)
        x.sum().backward()
        pair.optimizers[1].step()
    pair.optimizers[1].zero_grad()
    pair.train(token_loss, 2)
    close(token_loss(pair.ours, 9, 0), token_loss(pair.plain, 9, 0))


def test_ranks_that_run_other_units_are_told():
    run(2, joined, "auto", (other_units,))


class Clamping(nn.Module):
    """As some models do in every forward: mostly nothing is out of bounds."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(7, 7)

    def forward(self, x):
        self.linear.weight.data.clamp_(-100.0, 100.0)
        return self.linear(x)


def clamped():
    pair = Pair(lambda: nn.Sequential(Clamping(), Clamping()), fsdp_models.shard_children)
    pair.train(vector_loss)


def test_a_write_that_changes_nothing_is_none():
    run(2, joined, "auto", (clamped,))


def plain_states():
    import sherd
    net = Net()
    state = net.state_dict()
    values = {name: value.clone() for name, value in state.items()}
    ours = shard_layers(Net())
    with torch.no_grad(), pytest.raises(sherd.FaultError,
                                        match=r"parameter 'head.weight', expected a DTensor.*load_full_state_dict"):
        ours.head.weight.copy_(values["head.weight"])
    for _ in range(2):
        for options in ({}, {"strict": False}, {"assign": True}):
            for part, prefix in ((ours, ""), (nn.ModuleDict({"a": ours}), "a."), (ours.layers[0], "")):
                whole = values if part is not ours.layers[0] else net.layers[0].state_dict()
                given = {prefix + name: value for name, value in whole.items()}
                with pytest.raises(sherd.ConfigError,
                                   match=r"sharded parameter '.*weight'.*DTensor.*sherd.load_full_state_dict"):
                    part.load_state_dict(given, **options)
        sherd.load_full_state_dict(ours, values)
        close(ours(tokens(0, 0)), net(tokens(0, 0)))
        ours.load_state_dict(ours.state_dict())
    with sherd.GatheredParameters(ours, modifier_rank=0):
        ours.load_state_dict({name: value + 1 for name, value in values.items()})
    close(ours.norm.weight.full_tensor(), values["norm.weight"] + 1)


def test_a_plain_state_dict_is_refused_with_the_way_to_load_it():
    run(2, joined, "auto", (plain_states,))


def warnings_of_a_toy():
    import logging

    import sherd
    said = []
    logging.getLogger("sherd").addHandler(type("Kept", (logging.Handler,),
                                               {"emit": lambda self, record: said.append(record.getMessage())})())
    model = sherd.fully_shard(Net())
    model(tokens(0, 0))
    return said


def test_toys_are_not_warned_about():
    assert run(2, warnings_of_a_toy) == [[], []]
