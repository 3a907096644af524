"""Which parameters a sharded module shows at what time, and what fully_shard does to modules."""
import copy
import pickle

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.two_tensor import TwoTensor

import fsdp_models
from fsdp_models import Block, Net, Pair, shard_layers, token_loss, tokens, vectors
from ranks import run


def kinds(module, recurse=True):
    """What the module's parameters are: {name: "shard" or "whole"}."""
    found = {}
    for name, parameter in module.named_parameters(recurse=recurse):
        assert isinstance(parameter, nn.Parameter), name
        if isinstance(parameter, DTensor):
            assert parameter.placements == (Shard(0),)
            found[name] = "shard"
        else:
            assert type(parameter) is nn.Parameter
            found[name] = "whole"
    return found


def all_are(kind, module):
    found = kinds(module)
    assert found and set(found.values()) == {kind}, found


def watch_forward_and_backward(transport, reshard_after_forward):
    import sherd
    sherd.init(transport=transport)
    torch.manual_seed(0)
    model = Net()
    names, shapes = [n for n, _ in model.named_parameters()], [p.shape for p in model.parameters()]
    shard_layers(model, reshard_after_forward=reshard_after_forward)
    assert [n for n, _ in model.named_parameters()] == names
    assert [p.shape for p in model.parameters()] == shapes
    seen = []
    first, second = model.layers

    def in_forward(module, args, output):
        all_are("whole", first)
        all_are("shard", second)
        assert kinds(model, recurse=False) == {} and model.head.weight.shape == (13, 7)
        assert type(model.head.weight) is nn.Parameter and module.weight.shape == (11, 7)
        seen.append("forward")
        output.register_hook(in_backward)

    def in_backward(gradient):
        all_are("whole", first)
        assert type(first.up.weight) is nn.Parameter
        seen.append("backward")

    first.up.register_forward_hook(in_forward)
    all_are("shard", model)
    for step in range(2):
        loss = token_loss(model, step, 0)
        all_are("shard" if reshard_after_forward else "whole", model)
        loss.backward()
        all_are("shard", model)
        assert all(isinstance(p.grad, DTensor) and p.grad.placements == (Shard(0),) for p in model.parameters())
        model.zero_grad()
    assert seen == ["forward", "backward"] * 2


@pytest.mark.parametrize("transport", ("auto", "gloo"))
@pytest.mark.parametrize("reshard_after_forward", (True, False))
def test_parameters_are_whole_inside_a_units_forward_and_backward_and_between_where_asked(
        transport, reshard_after_forward):
    run(2, watch_forward_and_backward, transport, reshard_after_forward)


def classes():
    import sherd
    sherd.init()
    block = Block()
    assert sherd.fully_shard(block) is block
    assert type(block).__name__ == "Block" and type(block).__module__ == Block.__module__
    assert isinstance(block, Block) and isinstance(block, sherd.ShardedModule)
    assert type(block) is type(sherd.fully_shard(Block()))
    assert type(Block()) is Block and not isinstance(Block(), sherd.ShardedModule)
    net = shard_layers(Net())
    assert repr(net).startswith("Net(") and [type(m).__name__ for m in net.layers] == ["Block", "Block"]
    assert isinstance(net.layers, nn.ModuleList) and not isinstance(net.layers, sherd.ShardedModule)


def test_a_sharded_module_keeps_its_class():
    run(1, classes)


def rejected_modules():
    import sherd
    sherd.init()
    block = sherd.fully_shard(Block())
    with pytest.raises(sherd.ConfigError, match="sharded already"):
        sherd.fully_shard(block)
    with pytest.raises(sherd.ConfigError, match="ModuleList"):
        sherd.fully_shard(nn.ModuleList([Block()]))
    with pytest.raises(sherd.ConfigError, match="ModuleDict"):
        sherd.fully_shard(nn.ModuleDict({"a": Block()}))
    with pytest.raises(sherd.ConfigError, match="Parameter"):
        sherd.fully_shard(nn.Parameter(torch.zeros(3)))
    with pytest.raises(sherd.ConfigError, match="strategy"):
        sherd.fully_shard(Block(), strategy="zero4")
    with pytest.raises(sherd.ConfigError, match="reshard_after_forward"):
        sherd.fully_shard(Block(), reshard_after_forward="yes")
    for net in (block, shard_layers(Net())):
        with pytest.raises(sherd.ConfigError, match="deepcopy"):
            copy.deepcopy(net)
        with pytest.raises(sherd.ConfigError, match="state_dict"):
            pickle.dumps(net)


def test_what_cannot_be_sharded_is_rejected():
    run(1, rejected_modules)


class Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(scale)

    def forward(self, x):
        return x * self.scale.sum()


def rejected_parameters():
    import sherd
    sherd.init()
    with pytest.raises(sherd.ConfigError, match="'scale' of torch.float8_e4m3fn"):
        sherd.fully_shard(Scaled(torch.ones(3).to(torch.float8_e4m3fn)))
    with pytest.raises(sherd.ConfigError, match="'scale' of .* layout torch.sparse_coo"):
        sherd.fully_shard(Scaled(torch.eye(3).to_sparse()))
    with pytest.raises(sherd.ConfigError, match="'scale' that is a TwoTensor"):
        sherd.fully_shard(Scaled(TwoTensor(torch.ones(3), torch.ones(3))))
    strided = sherd.fully_shard(Scaled(torch.arange(12.0).view(3, 4).t()))
    torch.testing.assert_close(strided(torch.ones(2)), torch.full((2,), 66.0))


def test_parameters_that_cannot_be_sharded_are_rejected():
    run(2, rejected_parameters)


class Nest(nn.Module):
    """A unit in a unit, with parameters at each level."""

    def __init__(self):
        super().__init__()
        self.outer = nn.Linear(7, 7)
        self.inner = Block()
        self.bias = nn.Parameter(torch.zeros(7))

    def forward(self, x):
        return self.inner(self.outer(x)) + self.bias


def own_parameters(transport):
    import sherd
    sherd.init(transport=transport)
    model = Nest()
    sherd.fully_shard(model.inner)
    assert kinds(model)["bias"] == "whole" and kinds(model)["outer.weight"] == "whole"
    all_are("shard", model.inner)
    sherd.fully_shard(model)
    all_are("shard", model)
    expected = {name: "shard" if name.startswith("inner") else "whole" for name in kinds(model)}
    model.unshard()
    assert kinds(model) == expected
    model.inner.unshard()
    all_are("whole", model)
    model.reshard()
    assert kinds(model) == {name: "whole" if kind == "shard" else "shard" for name, kind in expected.items()}
    model.inner.reshard()
    all_are("shard", model)
    model(vectors(0, 0)).sum().backward()
    all_are("shard", model)


@pytest.mark.parametrize("transport", ("auto", "gloo"))
def test_a_unit_has_the_parameters_that_no_inner_unit_has(transport):
    run(2, own_parameters, transport)


class Twice(nn.Module):
    """One module under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(7, 7)
        self.layers = nn.ModuleList([Block(), Block()])
        self.second = self.first
        self.layers.append(self.layers[0])

    def forward(self, x):
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return self.second(x)


def shard_two_of_three(model):
    import sherd
    for layer in model.layers[:2]:
        sherd.fully_shard(layer)
    sherd.fully_shard(model)


def shared_modules():
    import sherd
    sherd.init()
    pair = Pair(Twice, shard_two_of_three)
    assert len(list(pair.ours.parameters())) == len(list(pair.plain.parameters()))
    assert pair.ours.first.weight is pair.ours.second.weight
    assert pair.ours.layers[0].up.weight is pair.ours.layers[2].up.weight
    pair.train(fsdp_models.vector_loss)


def test_a_module_under_two_names_is_sharded_once():
    run(3, shared_modules)


class Partly(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])
        self.gate = nn.Parameter(torch.ones(7))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x) * self.gate
        return x


def ignored_parameters():
    import sherd
    world = sherd.init()
    torch.manual_seed(0)
    model = Partly()
    plain = copy.deepcopy(model)
    ignored = {model.gate, model.layers[1].up.weight}
    for layer in model.layers:
        sherd.fully_shard(layer, ignored_params=ignored)
    sherd.fully_shard(model, ignored_params=ignored)
    assert {n for n, kind in kinds(model).items() if kind == "whole"} == {"gate", "layers.1.up.weight"}
    of_ranks = []
    for rank in range(world.size):
        plain.zero_grad()
        fsdp_models.vector_loss(plain, 0, rank).backward()
        of_ranks.append([p.grad.clone() for p in plain.parameters()])
    fsdp_models.vector_loss(model, 0, world.rank).backward()
    for (name, p), *grads in zip(model.named_parameters(), *of_ranks):
        mine = name in ("gate", "layers.1.up.weight")
        expected = grads[world.rank] if mine else sum(grads) / world.size
        assert isinstance(p.grad, DTensor) != mine
        fsdp_models.close(fsdp_models.whole(p.grad), expected)
    assert {id(p) for p in model.parameters()} >= {id(p) for p in ignored}


def test_ignored_parameters_stay_as_they_are():
    run(2, ignored_parameters)


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(13, 7)
        self.layers = nn.ModuleList([Block()])

    def score(self, ids, scale=1.0):
        return self.layers[0](self.embed(ids)) * scale * self.embed.weight.mean()

    def forward(self, ids):
        return self.score(ids)


def forward_methods(transport):
    import sherd
    sherd.init(transport=transport)
    pair = Pair(Custom)
    sherd.register_forward_method(pair.ours, "score")
    pair.train(lambda model, step, rank: model.score(tokens(step, rank), scale=2.0).square().mean())
    with pytest.raises(sherd.ConfigError, match="not sharded"):
        sherd.register_forward_method(nn.Linear(2, 2), "forward")


@pytest.mark.parametrize("transport", ("auto", "gloo"))
def test_a_registered_method_is_a_forward_of_its_unit(transport):
    run(2, forward_methods, transport)
