"""Models built on the meta device, and whole parameters outside of forward."""
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ranks import run
from test_sharding import batch, loss_of, make_model


def on_meta():
    with torch.device("meta"):
        model = make_model()
    model.head.weight = model.embed.weight
    return model


def trains_alike(model, plain):
    """The same weights, and the same after a step."""
    import sherd
    world = sherd.world()
    for _ in range(2):
        state = sherd.full_state_dict(model, all_ranks=True)
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6)
        (sum(loss_of(plain, *batch(0, rank)) for rank in range(world.size)) / world.size).backward()
        loss_of(model, *batch(0, world.rank)).backward()
        for one in (model, plain):
            torch.optim.SGD(one.parameters(), lr=0.1).step()


def from_init():
    import sherd
    model = sherd.shard(on_meta(), ["Block"])
    before = list(model.parameters())
    torch.manual_seed(5)
    sherd.materialize(model)
    assert all(a is b for a, b in zip(before, model.parameters()))
    plain = make_model()
    torch.manual_seed(5)
    for module in plain.modules():
        if hasattr(module, "reset_parameters") and module is not plain.head:
            module.reset_parameters()
    trains_alike(model, plain)


def from_file(path):
    import sherd
    model = sherd.shard(on_meta(), ["Block"])
    sherd.materialize(model, safetensors=path)
    trains_alike(model, make_model())


@pytest.mark.parametrize("ranks", (1, 3))
def test_from_each_modules_own_initialisation(ranks):
    run(ranks, from_init)


@pytest.mark.parametrize("ranks", (1, 3))
def test_from_safetensors_by_rows(tmp_path, ranks):
    state = make_model().state_dict()
    state.pop("head.weight")
    save_file(state, tmp_path / "model.safetensors")
    run(ranks, from_file, tmp_path)


def mistakes(path):
    import sherd
    state = {k: v for k, v in make_model().state_dict().items() if k != "head.weight"}
    save_file({**state, "embed.weight": torch.zeros(3, 3)}, path / "wrong.safetensors")
    for source, message in ((path / "wrong.safetensors", "embed.weight.*shape"),
                            (path / "none.safetensors", "cannot be read")):
        with pytest.raises(sherd.ConfigError, match=message):
            sherd.materialize(sherd.shard(on_meta(), ["Block"]), safetensors=source)

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 3), Bare())
    with pytest.raises(sherd.ConfigError, match="1.scale"):
        sherd.materialize(sherd.fully_shard(model))
    with pytest.raises(sherd.ConfigError, match="meta"):
        model(torch.ones(2, 3))


def test_what_has_no_value_is_named(tmp_path):
    run(1, mistakes, tmp_path)


def whole_outside():
    from torch.distributed.tensor import DTensor

    import sherd
    plain = make_model()
    model = sherd.shard(make_model(), ["Block"])
    rank = sherd.world().rank
    with sherd.full_parameters(model) as inside:
        assert inside is model
        for name, value in plain.named_parameters():
            assert model.get_parameter(name).equal(value)
        with torch.no_grad():
            model.layers[0].up.weight.zero_()
    assert all(isinstance(p, DTensor) for p in model.parameters())
    assert sherd.full_state_dict(model, all_ranks=True)["layers.0.up.weight"].equal(plain.layers[0].up.weight)
    with sherd.full_parameters(model.layers[1], writeback=True), torch.no_grad():
        model.layers[1].down.bias.fill_(3.0)
        assert isinstance(model.layers[0].down.bias, DTensor)
    with sherd.GatheredParameters([model.embed.weight], modifier_rank=1), torch.no_grad():
        model.head.weight.fill_(7.0 + rank)
    with torch.no_grad():
        plain.layers[1].down.bias.fill_(3.0)
        plain.embed.weight.fill_(8.0)
    with pytest.raises(KeyError):
        with sherd.full_parameters(model, writeback=True), torch.no_grad():
            model.layers[2].norm.weight.zero_()
            raise KeyError
    trains_alike(model, plain)


def test_whole_parameters_to_read_and_to_write():
    run(2, whole_outside)
