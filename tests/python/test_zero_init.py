"""Models sharded while they are built (sherd.zero.Init), and GatheredParameters before the first forward."""
import pathlib

import pytest
import torch
from torch import nn

from fsdp_models import Block, Net, token_loss
from ranks import RanksFailed, run


class Initialized(nn.Module):
    """Whose constructor gives its parts other values after they are sharded."""

    def __init__(self):
        super().__init__()
        self.net = Net(tied=True)
        self.out = nn.Linear(13, 13)
        self.scale = nn.Parameter(torch.full((13,), 2.0))
        nn.init.xavier_uniform_(self.net.layers[0].up.weight)
        nn.init.kaiming_uniform_(self.net.layers[0].down.weight, a=0.5)
        nn.init.trunc_normal_(self.net.layers[1].up.weight, std=0.02)
        nn.init.constant_(self.out.bias, 0.5)
        self.out.weight.data.normal_(std=0.3)
        self.net.norm.weight.data.fill_(0.9)

    def forward(self, ids):
        return self.out(self.net(ids)) * self.scale


def same_values_and_training():
    import sherd
    world = sherd.world()
    torch.manual_seed(3)
    plain = Initialized()
    torch.manual_seed(3)
    with sherd.zero.Init():
        model = Initialized()
    assert model.net.head.weight is model.net.embed.weight
    for name, parameter in model.net.named_parameters():
        assert isinstance(parameter, sherd.ShardedParameter), name
        rows = -(-parameter.shape[0] // world.size)
        assert parameter._local_tensor.shape[0] <= rows
    assert not isinstance(model.scale, sherd.ShardedParameter)  # of the outermost module: sharded by initialize
    engine, *_ = sherd.initialize(model=model,
                                  config={"units": ["Block"],
                                          "optimizer": {"type": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0},
                                          "schedule": {"type": "constant"}, "clip": None})
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for step in range(3):
        state = sherd.full_state_dict(model, all_ranks=True)
        for name, value in plain.state_dict().items():
            if step == 0:
                assert torch.equal(state[name], value), name
            torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6)
        optimizer.zero_grad()
        sum(token_loss(plain, step, rank) / world.size for rank in range(world.size)).backward()
        optimizer.step()
        engine.backward(token_loss(engine, step, world.rank))
        engine.step()


@pytest.mark.parametrize("ranks", (1, 2, 3))
def test_has_the_plain_models_values_and_trains_alike(ranks):
    run(ranks, same_values_and_training)


def memory_mib(field):
    """VmRSS: resident now; VmHWM: the most since the peak was cleared."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


LAYERS, SIDE = 48, 1024  # of 4 MiB


def build_large():
    import sherd
    sherd.world()
    before = memory_mib("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    with sherd.zero.Init():
        model = nn.Sequential()
        for index in range(LAYERS):
            model.add_module(str(index), nn.Sequential(nn.Linear(SIDE, SIDE, bias=False)))
    assert len(list(model.parameters())) == LAYERS
    return memory_mib("VmHWM") - before


def test_whole_parameters_do_not_stay():
    for more in run(3, build_large):
        assert more < LAYERS / 3 * 4 + 64 + 24, f"{more:.0f} MiB"


def changed_before_the_first_forward():
    import sherd
    world = sherd.world()
    torch.manual_seed(1)
    plain = nn.Embedding(7, 3)
    torch.manual_seed(1)
    with sherd.zero.Init():
        model = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 2))
    weight = model[0].weight
    with sherd.zero.GatheredParameters(weight):  # to look at: what is written is gone
        assert torch.equal(model[0].weight, plain.weight) and type(weight.data) is torch.Tensor and weight.requires_grad
        weight.data[2] = 9.0
    with sherd.zero.GatheredParameters([weight, model[1].weight], modifier_rank=world.size - 1):
        assert torch.equal(weight, plain.weight)
        if world.rank == world.size - 1:
            weight.data[5].zero_()
            nn.init.orthogonal_(model[1].weight)
    with pytest.raises(ZeroDivisionError):
        with sherd.zero.GatheredParameters(weight, modifier_rank=0):
            weight.data.zero_()
            raise ZeroDivisionError
    assert isinstance(weight, sherd.ShardedParameter) and model[0].weight is weight
    with torch.no_grad():
        plain.weight[5] = 0
    state = sherd.full_state_dict(model, all_ranks=True)
    assert torch.equal(state["0.weight"], plain.weight)
    torch.testing.assert_close(state["1.weight"] @ state["1.weight"].T, torch.eye(2))
    sherd.shard(model, [nn.Embedding])
    with sherd.GatheredParameters(model.parameters(), modifier_rank=0):  # given to fully_shard, not run yet
        model[1].bias.data.fill_(4.0)
    assert model(torch.tensor([5])).tolist() == [[4.0, 4.0]]


@pytest.mark.parametrize("ranks", (1, 2, 4))
def test_gathered_before_the_first_forward(ranks):
    run(ranks, changed_before_the_first_forward)


def drawn_after_training():
    """New random values for a model that has run: those of a plain one."""
    import sherd
    model, plain = sherd.shard(Net(), ["Block"]), Net()
    token_loss(model, 0, 0).backward()
    for one in (model, plain):
        torch.manual_seed(2)
        nn.init.normal_(one.head.weight, std=0.5)
        with torch.no_grad():
            one.layers[0].up.bias.uniform_(-1, 1)
        one.embed.weight.data.normal_()
    with pytest.raises(RuntimeError, match="leaf"):
        model.head.weight.normal_()
    state = sherd.full_state_dict(model, all_ranks=True)
    for name in ("head.weight", "layers.0.up.bias", "embed.weight"):
        assert torch.equal(state[name], plain.state_dict()[name]), name
    ids = torch.arange(5)[None]
    model.load_state_dict(model.state_dict())
    assert torch.isfinite(model(ids)).all()


@pytest.mark.parametrize("ranks", (1, 3))
def test_values_drawn_later_do_not_depend_on_the_ranks(ranks):
    run(ranks, drawn_after_training)


def built_already(enabled):
    import sherd
    model = Net()
    with sherd.zero.Init(module=model, enabled=enabled):
        later = nn.Sequential(Block())
    kinds = {isinstance(p, sherd.ShardedParameter) for p in (*model.parameters(), *later.parameters())}
    assert kinds == {enabled}
    nn.Sequential(outside := nn.Linear(2, 2))
    assert not isinstance(outside.weight, sherd.ShardedParameter)


@pytest.mark.parametrize("enabled", (True, False))
def test_a_model_that_is_built_already_and_a_switch(enabled):
    run(2, built_already, enabled)


def with_another_mesh():
    import sherd
    sherd.init(transport="gloo")
    with sherd.zero.Init():
        model = nn.Sequential(nn.Linear(4, 4))
    sherd.fully_shard(model, mesh=sherd.distributed.hybrid_mesh(2, 1), strategy="hsdp")


def test_another_mesh_afterwards_is_an_error():
    with pytest.raises(RanksFailed, match=r"zero.Init\(mesh=\)"):
        run(2, with_another_mesh)


def transformers_own_initialization():
    import transformers

    import sherd
    from sherd import deepspeed_parameters
    config = transformers.GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=17, n_positions=16, bos_token_id=0,
                                     eos_token_id=0)
    padded = transformers.LlamaConfig(vocab_size=17, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
                                      num_attention_heads=2, pad_token_id=3)
    for settings in (config, padded):
        torch.manual_seed(4)
        plain = transformers.AutoModelForCausalLM.from_config(settings)
        torch.manual_seed(4)
        with deepspeed_parameters.Init():
            model = transformers.AutoModelForCausalLM.from_config(settings)
        assert all(isinstance(p, sherd.ShardedParameter) for p in model.parameters())
        state = sherd.full_state_dict(model, all_ranks=True)
        for name, value in plain.state_dict().items():
            assert torch.equal(state[name], value), name


def test_transformers_own_initialization_under_it():
    run(2, transformers_own_initialization)
