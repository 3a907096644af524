"""What fully_shard says to a user's mistakes, and that all ranks go on after an exception of one."""
import re

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
                    assert re.search(r"ValueError: trap in forward \(in .*test_fsdp_errors.py, line \d+: raise Val",
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


def fault_type():
    """A fault that another rank causes is a FaultError in backward too, and says where to look for the cause."""
    import sherd
    pair = Pair(trapped_net)
    pair.ours.layers[1].dropout.where = "backward" if pair.rank == 1 else None
    expected = ((ValueError, "trap in backward") if pair.rank == 1
                else (sherd.FaultError, "rank 1 gave up: .* its backward"))
    with pytest.raises(expected[0], match=expected[1]):
        token_loss(pair.ours, 0, pair.rank).backward()
        pair.optimizers[1].step()


def test_a_fault_in_backward_is_a_fault_error_with_its_cause():
    run(2, joined, "auto", (fault_type,))


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
