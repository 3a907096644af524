"""fully_shard of parameters that are not alike: frozen, tied, of several types."""
import copy
import functools

import pytest
import torch
from torch import nn

import fsdp_models
from fsdp_models import (
    VOCAB,
    WIDTH,
    Block,
    Net,
    Pair,
    close,
    joined,
    shard_children,
    shard_layers,
    shard_root,
    token_loss,
    tokens,
    vector_loss,
    whole,
)
from ranks import run


def freeze(model, *parts):
    for name, p in model.named_parameters():
        if any(part in name for part in parts):
            p.requires_grad_(False)
    return model


def frozen(*parts):
    pair = Pair(lambda: freeze(Net(3), *parts))
    before = {name: whole(p).clone() for name, p in pair.ours.named_parameters()}
    pair.train(token_loss)
    for name, p in pair.ours.named_parameters():
        fixed = any(part in name for part in parts)
        assert p.requires_grad != fixed
        assert not fixed or torch.equal(whole(p), before[name])
    pair.optimizers[1].zero_grad()
    with torch.no_grad():
        for model in (pair.plain, pair.ours):
            for p in model.parameters():
                if not p.requires_grad:
                    p.mul_(1.5)
    pair.train(token_loss, 2)


FROZEN = (("up.weight", "norm.bias"), ("layers.1.",), ("embed", "layers.0", "layers.1"), ("layers.2", "head"),
          ("layers",))


def frozen_all():
    for parts in FROZEN:
        frozen(*parts)


def test_frozen_parameters_in_units_and_whole_frozen_units():
    run(2, joined, "auto", (frozen_all,))


class Adapted(nn.Module):
    """A frozen linear layer and a trained product of two thin ones."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / 10)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x):
        return self.base(x) + x @ self.a.t() @ self.b.t()


def adapted_net():
    model = Net().requires_grad_(False)
    for layer in model.layers:
        layer.up, layer.down = Adapted(layer.up), Adapted(layer.down)
    return model


def adapters():
    pair = Pair(adapted_net)
    pair.train(token_loss, 4)
    assert {n.rsplit(".", 1)[1] for n, p in pair.ours.named_parameters() if p.grad is not None} <= {"a", "b"}
    assert any(whole(layer.up.b).any() for layer in pair.ours.layers)


def test_trained_adapters_in_frozen_layers():
    run(3, joined, "auto", (adapters,))


def all_frozen():
    pair = Pair(lambda: Net().requires_grad_(False), optimizer=lambda parameters: None)
    for step in range(2):
        close(token_loss(pair.ours, step, pair.rank), token_loss(pair.plain, step, pair.rank))
    x = fsdp_models.vectors(0, pair.rank).requires_grad_()
    y = x.detach().clone().requires_grad_()
    pair.ours.layers[0](x).sum().backward()
    pair.plain.layers[0](y).sum().backward()
    close(x.grad, y.grad)
    assert all(p.grad is None for p in pair.ours.parameters())


def test_a_model_that_is_frozen_as_a_whole():
    run(2, joined, "auto", (all_frozen,))


def tied(shard):
    pair = Pair(lambda: Net(tied=True), shard)
    assert pair.ours.head.weight is pair.ours.embed.weight
    before = whole(pair.ours.embed.weight).clone()
    pair.train(token_loss, 4)
    assert pair.ours.head.weight is pair.ours.embed.weight
    assert (whole(pair.ours.embed.weight) != before).any(dim=1).all()


def shard_all_children(model):
    import sherd
    for module in (model.embed, *model.layers, model.head, model):
        sherd.fully_shard(module)


def tied_all():
    for shard in (shard_root, shard_layers, shard_all_children):
        tied(shard)


@pytest.mark.parametrize("ranks", (1, 2, 3, 4))
def test_tied_weights(ranks):
    run(ranks, joined, "auto", (tied_all,))


class Couples(nn.Module):
    """Blocks that are tied in part, in groups that are units too."""

    def __init__(self):
        super().__init__()
        self.pairs = nn.ModuleList(nn.Sequential(Block(), Block()) for _ in range(2))
        self.last = nn.Linear(7, 7)
        self.pairs[0][1].up.weight = self.pairs[0][0].up.weight  # their unit is the pair
        self.pairs[1][1].down.bias = self.pairs[0][0].down.bias  # their unit is the root
        self.pairs[1][0].norm.weight = self.pairs[1][0].down.bias

    def forward(self, x):
        for pair in self.pairs:
            x = pair(x)
        return self.last(x)


def shard_couples(model, outer=True):
    import sherd
    for pair in model.pairs:
        for block in pair:
            sherd.fully_shard(block)
        if outer:
            sherd.fully_shard(pair)
    sherd.fully_shard(model)


def tied_across():
    for shard in (shard_couples, lambda model: shard_couples(model, outer=False)):
        pair = Pair(Couples, shard)
        pair.train(vector_loss, 4)
        assert pair.ours.pairs[0][1].up.weight is pair.ours.pairs[0][0].up.weight


def test_weights_tied_across_units():
    run(3, joined, "auto", (tied_across,))


def tied_roots():
    import sherd
    first, second = Block(), Block()
    second.up.weight = first.up.weight
    sherd.fully_shard(first)
    with pytest.raises(sherd.ConfigError, match="up.weight"):
        sherd.fully_shard(second)
        first(fsdp_models.vectors(0, 0))
        second(fsdp_models.vectors(0, 0))


def test_weights_tied_between_two_models_are_rejected():
    run(2, joined, "auto", (tied_roots,))


class Mixed(nn.Module):
    """float32 norms around bfloat16 layers, in one unit."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(7)
        self.up = nn.Linear(7, 11, dtype=torch.bfloat16)
        self.down = nn.Linear(11, 7, dtype=torch.bfloat16)
        self.scale = nn.Parameter(torch.ones(7, dtype=torch.float16))

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x).bfloat16()))).float() * self.scale.float()


class MixedNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Mixed(), Mixed()])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def mixed_types():
    pair = Pair(MixedNet, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    for step in range(3):
        pair.backward(vector_loss, step, rtol=1e-2, atol=1e-2)
        for (name, p), q in zip(pair.plain.named_parameters(), pair.ours.parameters()):
            assert q.dtype == p.dtype and q.grad.dtype == p.dtype, name
            torch.testing.assert_close(whole(q.grad), p.grad, rtol=5e-2, atol=5e-3, msg=lambda m: f"{name}: {m}")
        pair.update()
    for p, q in zip(pair.plain.parameters(), pair.ours.parameters()):
        torch.testing.assert_close(whole(q), p.detach(), rtol=2e-2, atol=1e-2)


def test_parameters_of_three_types_in_one_unit():
    run(2, joined, "auto", (mixed_types,))


def small_types():
    """bfloat16 gradients accumulate, are clipped, and are kept by a user as float32 ones."""
    pair = Pair(MixedNet, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    vector_loss(pair.ours, 0, pair.rank).backward()
    weight = pair.ours.layers[0].up.weight
    kept, value = weight.grad, whole(weight.grad).clone()
    once = copy.deepcopy(value)
    vector_loss(pair.ours, 0, pair.rank).backward()
    torch.testing.assert_close(whole(weight.grad), 2 * once, rtol=2e-2, atol=1e-3)
    pair.optimizers[1].zero_grad()
    vector_loss(pair.ours, 1, pair.rank).backward()
    assert not torch.equal(whole(weight.grad), value)
    if kept is not weight.grad:
        assert torch.equal(whole(kept), value) or torch.allclose(whole(kept), 2 * value, rtol=2e-2)
    norm = torch.nn.utils.clip_grad_norm_(pair.ours.parameters(), 1e-3)
    assert whole(norm) > 1e-3 and whole(weight.grad).float().norm() < 2e-3


def test_gradients_of_bfloat16_parameters_accumulate():
    run(2, joined, "auto", (small_types,))


class Tiny(nn.Module):
    """Parameters with fewer rows than ranks, and one without any element."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.randn(1, 7))
        self.none = nn.Parameter(torch.zeros(0, 7))
        self.cube = nn.Parameter(torch.randn(2, 3, 7))
        self.block = Block()

    def forward(self, x):
        return self.block(x * self.one) + self.cube.sum((0, 1)) + self.none.sum(0)


def test_fewer_rows_than_ranks_and_no_rows_at_all():
    run(4, joined, "auto", (tiny,))


def tiny():
    for shard in (shard_root, shard_children):
        Pair(Tiny, shard).train(vector_loss)


def test_the_same_by_gloo():
    run(3, joined, "gloo", (frozen_all,), (adapters,), (all_frozen,), (tied_all,), (tied_across,), (mixed_types,),
        (small_types,), (tiny,))


class Bag(nn.Module):
    """Looks up rows by an embedding and a bag, both with max_norm."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH, max_norm=1.5)
        self.bag = nn.EmbeddingBag(VOCAB, WIDTH, max_norm=2.0, norm_type=1.0, mode="sum")
        self.layers = nn.ModuleList([Block()])

    def forward(self, ids):
        return self.layers[0](self.embed(ids) + self.bag(input=ids)[:, None])


def shortened(strategy):
    """Rows are shortened as in the model that sees all ranks' batches, also where the rank that owns them has not
    looked them up."""
    import sherd

    def loss(model, step, rank):
        return model(tokens(step, rank)[:, :2]).square().mean()

    def alone(model, **options):
        sherd.fully_shard([model.embed, model.bag], **options)
        return sherd.fully_shard(model, **options)

    for shard in (shard_layers, alone):
        pair = Pair(Bag, lambda model: shard(model, strategy=strategy),
                    optimizer=functools.partial(torch.optim.SGD, lr=1.0))
        before = pair.plain.embed.weight.detach().norm(dim=1).max()
        for step in range(4):
            with torch.no_grad():
                close(pair.ours(tokens(9, 0)[:, :2]), pair.plain(tokens(9, 0)[:, :2]))
            pair.step(loss, step)
            pair.compare_weights()
        assert before > 1.5

    class Tied(Bag):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(WIDTH, VOCAB)
            self.head.weight = self.embed.weight
    with pytest.raises(sherd.ConfigError, match="'embed.weight' of an embedding with max_norm in 2 places"):
        shard_layers(Tied(), strategy=strategy)(tokens(0, 0))


@pytest.mark.parametrize("transport", ("auto", "gloo"))
def test_embeddings_with_a_largest_norm(transport):
    run(2, joined, transport, (shortened, "zero3"), (shortened, "ddp"))
