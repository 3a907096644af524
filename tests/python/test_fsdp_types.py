"""Parameters of any type: frozen codes as bytes, fp64 and complex ones that train in themselves,
and those without dimensions."""
import copy
import functools

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate

from fsdp_models import WIDTH, Block, Net, Pair, close, joined, shard_layers, token_loss, vector_loss, vectors, whole
from ranks import run

STRATEGIES = ("zero3", "zero2", "zero1", "ddp")
CODES = [getattr(torch, name) for name in (
    "uint8 int8 int16 int32 int64 uint16 uint32 uint64 bool float8_e4m3fn float8_e5m2 float8_e8m0fnu float16 bfloat16 "
    "float64 complex64 complex128").split()]
TWO_WORLDS = [(ranks, transport) for ranks in (1, 2, 3) for transport in ("host", "gloo")
              if (ranks, transport) != (1, "gloo")]
on = pytest.mark.parametrize("ranks,transport", TWO_WORLDS)


def bits(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


class Codes(nn.Parameter):
    """As bitsandbytes' Params4bit: a parameter of a class of its own, with what is needed to read it."""

    def __new__(cls, data, offset):
        parameter = torch.Tensor._make_subclass(cls, data, False)
        parameter.offset = parameter.quant_state = offset
        return parameter

    def __deepcopy__(self, memo):
        return Codes(self.detach().clone(), self.offset)

    def read(self):
        return self.detach().double() / 64 - self.offset


class Quantized(Block):
    """A block with frozen weights of every type, of few and odd rows."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        for i, dtype in enumerate(CODES):
            shape = ((5, 3), (7,), (1, 1, 5))[i % 3]
            values = torch.randint(0, 2, (*shape, dtype.itemsize), dtype=torch.uint8,
                                   generator=generator).view(dtype).squeeze(-1)
            self.register_parameter("of_" + str(dtype).split(".")[1], nn.Parameter(values, requires_grad=False))
        self.codes = Codes(torch.randint(0, 255, (WIDTH, WIDTH), dtype=torch.uint8, generator=generator), 2.0)
        self.stored_as_fp32 = Codes(torch.randint(0, 255, (3, 12), dtype=torch.uint8,
                                                  generator=generator).view(torch.float32), 2.0)

    def forward(self, x):
        assert type(self.codes) is Codes and self.stored_as_fp32.dtype == torch.float32
        x = super().forward(x) + x @ self.codes.read().to(x.dtype)
        total = sum(bits(p).double().sum() for p in self.parameters(recurse=False))
        return x * (total / 4000).to(x.dtype)


class Layers(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def frozen_of_every_type(strategy, **options):
    import sherd
    pair = Pair(lambda: Layers(Quantized(), Quantized()), functools.partial(shard_layers, strategy=strategy, **options))
    before = {name: bits(p).clone() for name, p in pair.plain.named_parameters()}
    for step in range(0 if options else 3):
        pair.step(vector_loss, step)
    if options:
        pair.ours(vectors(0, 0)).float().mean().backward()
    for name, p in pair.ours.named_parameters():
        assert p.dtype == pair.plain.get_parameter(name).dtype
        if p.requires_grad:
            close(whole(p), pair.plain.get_parameter(name))
        else:
            assert torch.equal(bits(p.full_tensor()), before[name]), name
            most = p.shape[0] if p.is_complex() and p.shape[0] == 1 else -(-p.shape[0] // pair.size)
            assert bits(p._local_tensor).numel() <= most * before[name].numel() // p.shape[0]
    with sherd.full_parameters(pair.ours):
        for name, p in pair.ours.named_parameters():
            assert p.requires_grad or torch.equal(bits(p), before[name])


def frozen():
    import sherd
    for strategy in STRATEGIES:
        frozen_of_every_type(strategy)
    frozen_of_every_type("zero3", mp_policy=sherd.MixedPrecisionPolicy(torch.bfloat16, torch.float32))


@on
def test_frozen_parameters_of_every_type_are_sharded_as_they_are(ranks, transport):
    run(ranks, joined, transport, (frozen,))


class Filter(nn.Module):
    """Complex weights between a transform and its inverse."""

    def __init__(self, dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, WIDTH // 2 + 1, dtype=dtype) / 2)
        self.phase = nn.Parameter(torch.randn(1, dtype=dtype))
        self.scale = nn.Parameter(torch.randn(5, dtype=dtype.to_real()))

    def forward(self, x):
        spectrum = torch.fft.rfft(x.to(self.scale.dtype)).unsqueeze(-2) * self.weight * self.phase
        return x + torch.fft.irfft(spectrum, n=WIDTH).mul(self.scale[:, None]).mean(-2).to(x.dtype)


def in_double(strategy, **options):
    """Gradients and weights to the last digits: nothing goes through fp32."""
    tight = functools.partial(torch.testing.assert_close, rtol=1e-12, atol=1e-13)
    pair = Pair(lambda: Layers(Block().double(), Filter(torch.complex128), Block().double()),
                functools.partial(shard_layers, strategy=strategy, **options))
    for step in range(3):
        for accumulated in (0, 1):
            x = vectors(step, pair.rank).double() / 3
            (sum(pair.plain(vectors(step, r).double() / 3).square().mean() for r in range(pair.size))
             / pair.size).backward()
            pair.ours(x).square().mean().backward()
            for (name, p), q in zip(pair.plain.named_parameters(), pair.ours.parameters(), strict=True):
                assert q.grad.dtype == p.grad.dtype == p.dtype
                tight(whole(q.grad), p.grad, msg=lambda m: f"{step} {accumulated} {name}: {m}")
        pair.update()
    for (name, p), q in zip(pair.plain.named_parameters(), pair.ours.parameters(), strict=True):
        torch.testing.assert_close(whole(q), p, rtol=1e-10, atol=1e-10, msg=lambda m: f"{name}: {m}")


def cast_after_sharding():
    """model.double() of a sharded model, before it has run."""
    pair = Pair(Net)
    pair.ours.double()
    pair.plain.double()
    for optimizer in pair.optimizers:
        optimizer.zero_grad()
    pair.optimizers = [torch.optim.Adam(m.parameters(), lr=1e-2) for m in (pair.plain, pair.ours)]
    pair.train(token_loss)
    assert all(p.dtype == torch.float64 for p in pair.ours.parameters())


def norms(strategy):
    """Of fp64, complex and scalar gradients beside fp32 ones, torch's and ours."""
    import sherd
    for clip_ours in (torch.nn.utils.clip_grad_norm_, None):
        pair = Pair(lambda: Layers(Block(), Filter(torch.complex64), Filter(torch.complex128), Scaled()),
                    functools.partial(shard_layers, strategy=strategy))
        for step in range(2):
            pair.backward(vector_loss, step)
            want = torch.nn.utils.clip_grad_norm_(pair.plain.parameters(), 0.01)
            got = clip_ours(pair.ours.parameters(), 0.01) if clip_ours else sherd.clip_grad_norm_(pair.ours, 0.01)
            close(whole(got).to(want.dtype), want)
            for (name, p), q in zip(pair.plain.named_parameters(), pair.ours.parameters(), strict=True):
                assert (p.grad is None) == (q.grad is None)
                if p.grad is not None:
                    close(whole(q.grad), p.grad, msg=lambda m: f"{name}: {m}")
            pair.update()


class Scaled(nn.Module):
    """A learned temperature without dimensions, beside a weight, and a frozen count."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.5))
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.bias = nn.Parameter(torch.tensor(0.25, dtype=torch.float64))
        self.count = nn.Parameter(torch.tensor(3), requires_grad=False)

    def forward(self, x):
        return self.linear(x) * self.temperature / self.count + self.bias.to(x.dtype)


def trainable():
    cast_after_sharding()
    for strategy in STRATEGIES:
        in_double(strategy)
        norms(strategy)


@on
def test_fp64_and_complex_parameters_train_in_themselves(ranks, transport):
    run(ranks, joined, transport, (trainable,))


OPTIMIZERS = (functools.partial(torch.optim.Adam, lr=1e-2),
              functools.partial(torch.optim.AdamW, lr=1e-2, foreach=False),
              functools.partial(torch.optim.SGD, lr=1e-1, momentum=0.9))


def without_dimensions(shard, optimizer):
    import sherd
    pair = Pair(lambda: Layers(Scaled(), Block(), Scaled()), shard, optimizer)
    for step in range(3):
        pair.backward(vector_loss, step)
        for (name, p), q in zip(pair.plain.named_parameters(), pair.ours.parameters(), strict=True):
            assert p.dim() > 0 or (isinstance(q, DTensor) and q.placements[-1] == Replicate() and q.shape == p.shape)
            assert (p.grad is None) == (q.grad is None)
            if p.grad is not None:
                close(whole(q.grad), p.grad, msg=lambda m: f"{name}: {m}")
        pair.update()
    mine = torch.stack([p._local_tensor.detach().double() for p in pair.ours.parameters() if p.dim() == 0])
    everyone = [torch.empty_like(mine) for _ in range(pair.size)]
    torch.distributed.all_gather(everyone, mine)
    assert all(torch.equal(mine, theirs) for theirs in everyone)
    state = sherd.full_state_dict(pair.ours, all_ranks=True)
    for name, value in pair.plain.state_dict().items():
        assert state[name].shape == value.shape and state[name].dtype == value.dtype
        close(state[name], value)


def scalars():
    for strategy in STRATEGIES:
        for optimizer in OPTIMIZERS:
            without_dimensions(functools.partial(shard_layers, strategy=strategy), optimizer)


@on
def test_parameters_without_dimensions_are_whole_and_alike_on_every_rank(ranks, transport):
    run(ranks, joined, transport, (scalars,))


def on_a_mesh():
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    for optimizer in OPTIMIZERS[:1]:
        without_dimensions(functools.partial(shard_layers, mesh=mesh, strategy="hsdp"), optimizer)
    in_double("hsdp", mesh=mesh)


@pytest.mark.parametrize("transport", ("host", "gloo"))
def test_these_types_on_a_mesh_of_two_axes(transport):
    run(4, joined, transport, (on_a_mesh,))


def differing_before():
    """Rank 0's value counts where ranks have drawn others."""
    import sherd
    torch.manual_seed(1)
    model = Layers(Scaled())
    with torch.no_grad():
        model.layers[0].temperature.fill_(1.0 + sherd.world().rank)
    shard_layers(model)
    model(vectors(0, 0))
    assert model.layers[0].temperature._local_tensor.item() == 1.0
    with sherd.full_parameters(model, writeback=True):
        model.layers[0].temperature.data.fill_(2.0 + sherd.world().rank)
    assert model.layers[0].temperature._local_tensor.item() == 2.0
    model.layers[0].temperature.data.clamp_(3.0, 4.0)
    with torch.no_grad():
        model.layers[0].temperature.add_(1.0)
    x = vectors(0, 0)
    close(model(x),
          (torch.nn.functional.linear(x, *map(whole, (model.layers[0].linear.weight, model.layers[0].linear.bias)))
           * 4.0 / 3 + 0.25))


def of_complex128(module):
    module.of_complex128.copy_(Quantized().of_complex128)  # safetensors has no such type


def kept_and_loaded(folder):
    """Whole state, distributed checkpoints, and files, of all these types."""
    from safetensors.torch import save_file

    import sherd

    def make(seed):
        torch.manual_seed(seed)
        return Layers(Quantized(), Filter(torch.complex64), Scaled())
    plain, ours, other = make(0), make(0), make(1)
    for model in (other,):
        for p in model.parameters():
            bits(p).zero_()
    shard_layers(ours)
    shard_layers(other)
    ours(vectors(0, 0))
    other.layers[1](vectors(0, 0))
    state = sherd.full_state_dict(ours)
    if sherd.world().rank == 0:
        for name, value in plain.state_dict().items():
            assert state[name].dtype == value.dtype and torch.equal(bits(state[name]), bits(value)), name

    def same(model):
        for (name, p), q in zip(plain.named_parameters(), model.parameters(), strict=True):
            assert torch.equal(bits(q.full_tensor()), bits(p)), name
    sherd.load_full_state_dict(other, state)
    same(other)
    for p in other.parameters():
        bits(p._local_tensor).zero_()
    dcp.save({"model": ours.state_dict()}, checkpoint_id=f"{folder}/dcp")
    loaded = {"model": other.state_dict()}
    dcp.load(loaded, checkpoint_id=f"{folder}/dcp")
    other.load_state_dict(loaded["model"])
    same(other)
    if sherd.world().rank == 0:
        save_file({name: value for name, value in plain.state_dict().items() if value.dtype != torch.complex128},
                  f"{folder}/model.safetensors")
    sherd.world().transport.barrier()
    with torch.device("meta"):
        empty = make(0)
    shard_layers(empty)
    sherd.materialize(empty, of_complex128, safetensors=f"{folder}/model.safetensors")
    same(empty)
    torch.manual_seed(0)
    with sherd.zero.Init():
        built = Layers(Quantized(), Filter(torch.complex64), Scaled())
    shard_layers(built)
    same(built)
    built(vectors(0, 0)).sum().backward()
    same(built)
    with sherd.zero.GatheredParameters([p for p in built.parameters()
                                        if p.dtype in (torch.uint16, torch.float8_e4m3fn)], 0):
        for p in built.parameters():
            if p.dtype in (torch.uint16, torch.float8_e4m3fn):
                bits(p).fill_(1 + sherd.world().rank)
    assert all(bits(p.full_tensor()).eq(1).all() for p in built.parameters()
               if p.dtype in (torch.uint16, torch.float8_e4m3fn))


@pytest.mark.parametrize("transport", ("host", "gloo"))
def test_state_of_these_types_is_kept_and_loaded(transport, tmp_path):
    run(2, joined, transport, (differing_before,), (kept_and_loaded, str(tmp_path)))


def refused():
    import sherd
    model = Layers(Block().double(), Filter(torch.complex64))
    for optimizer in (sherd.optim.AdamW, sherd.optim.SGD):
        with pytest.raises(sherd.ConfigError, match=r"torch\.float64.*torch\.optim"):
            optimizer(shard_layers(copy.deepcopy(model)).parameters())
    with pytest.raises(sherd.ConfigError, match=r"'weight' of torch\.float8_e4m3fn"):
        block = nn.Module()
        block.weight = nn.Parameter(torch.zeros(4, 4).to(torch.float8_e4m3fn))
        sherd.fully_shard(block)
    codes = nn.Linear(4, 4)
    codes.register_parameter("codes", nn.Parameter(torch.ones(4, 4).to(torch.float8_e4m3fn), requires_grad=False))
    sherd.fully_shard(codes)
    codes(torch.ones(1, 4)).sum().backward()
    codes.codes.requires_grad_(True)
    with pytest.raises(sherd.ConfigError, match="'codes' of Float8_e4m3fn"):
        codes(torch.ones(1, 4))
    codes.codes.requires_grad_(False)
    codes(torch.ones(1, 4)).sum().backward()
    pair = Pair(lambda: Layers(Scaled(), Block()), optimizer=lambda parameters: None)
    for master in ("nearest", "none", "split"):
        half = Layers(Block(), Scalar())
        half = shard_layers(half.bfloat16())
        ours = sherd.optim.AdamW(half.parameters(), lr=1e-1, master=master)
        for step in range(2):
            half(vectors(step, pair.rank).bfloat16()).float().square().mean().backward()
            ours.step()
        mine = half.layers[1].scale._local_tensor.detach().float().reshape(1)
        everyone = [torch.empty_like(mine) for _ in range(pair.size)]
        torch.distributed.all_gather(everyone, mine)
        assert all(torch.equal(mine, theirs) for theirs in everyone) and mine.item() != 1


class Scalar(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return x * self.scale


def test_optimizers_of_sherd_name_types_that_they_lack_and_keep_scalars_alike():
    run(2, joined, "host", (refused,))
