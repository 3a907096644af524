"""Small models for the tests of fully_shard, and Pair: a model sharded beside the same model unsharded."""
import copy
import functools

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Shard

VOCAB, WIDTH, HIDDEN = 13, 7, 11


class Block(nn.Module):
    def __init__(self, width=WIDTH, hidden=HIDDEN, dropout=0.0):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return x + self.dropout(self.down(nn.functional.gelu(self.up(self.norm(x)))))


class Net(nn.Module):
    """Embedding, blocks, norm, head: odd sizes, so shards of unequal rows and empty ones."""

    def __init__(self, layers=2, tied=False, dropout=0.0):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList(Block(dropout=dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def tokens(step, rank):
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randint(0, VOCAB, (2, 6), generator=generator)


def vectors(step, rank, width=WIDTH, rows=3):
    generator = torch.Generator().manual_seed(7000 + 1000 * step + rank)
    return torch.randn(rows, width, generator=generator)


def token_loss(model, step, rank):
    ids = tokens(step, rank)
    return nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def vector_loss(model, step, rank):
    return model(vectors(step, rank)).square().mean()


def shard_layers(model, **options):
    import sherd
    for layer in model.layers:
        sherd.fully_shard(layer, **options)
    return sherd.fully_shard(model, **options)


def shard_children(model, **options):
    import sherd
    for child in model.children():
        sherd.fully_shard(child, **options)
    return sherd.fully_shard(model, **options)


def shard_root(model, **options):
    import sherd
    return sherd.fully_shard(model, **options)


adam = functools.partial(torch.optim.Adam, lr=1e-2)
close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)


def whole(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def rows_of(tensor, rank, size):
    """The rows of a plain tensor that a rank has of it, by torch.chunk's rule."""
    rows = tensor.detach().chunk(size)
    return rows[rank] if rank < len(rows) else tensor.detach()[:0]


def own_rows_of(tensor, sharded):
    """Those that this rank has where they are spread as `sharded` is, along the last axis of its mesh."""
    mesh = sharded.device_mesh
    return rows_of(tensor, mesh.get_local_rank(mesh.ndim - 1), mesh.size(mesh.ndim - 1))


class Pair:
    """The same model unsharded (on all ranks' data) and sharded (on this rank's), trained side by side.

    Losses are functions of (model, step, rank).
    """

    def __init__(self, make, shard=shard_layers, optimizer=adam):
        import sherd
        self.rank, self.size = sherd.world().rank, sherd.world().size
        torch.manual_seed(0)
        self.plain = make()
        self.ours = copy.deepcopy(self.plain)
        shard(self.ours)
        self.optimizers = [optimizer([p for p in m.parameters() if p.requires_grad]) for m in (self.plain, self.ours)]

    def plain_losses(self, loss_of, step):
        return [loss_of(self.plain, step, rank) for rank in range(self.size)]

    def backward(self, loss_of, step=0, ours=None, **tolerance):
        """Of both models; ours: what stands for the sharded one in its call."""
        losses = self.plain_losses(loss_of, step)
        (sum(losses) / self.size).backward()
        loss = loss_of(self.ours if ours is None else ours, step, self.rank)
        loss.backward()
        close(loss, losses[self.rank], **tolerance)

    def compare_gradients(self):
        for (name, p), (our_name, q) in zip(self.plain.named_parameters(), self.ours.named_parameters(), strict=True):
            assert name == our_name
            assert (p.grad is None) == (q.grad is None), f"{name}: plain {p.grad}, sharded {q.grad}"
            if p.grad is not None:
                assert type(p.grad) is torch.Tensor and isinstance(q.grad, DTensor), name
                assert q.grad.shape == p.grad.shape and q.grad.placements == q.placements, name
                assert q.placements[-1] == Shard(0), name
                close(q.grad.to_local(), own_rows_of(p.grad, q), msg=lambda m: f"{name}.grad: {m}")

    def compare_weights(self):
        plain, ours = self.plain.state_dict(), self.ours.state_dict()
        assert plain.keys() == ours.keys()
        for name, value in plain.items():
            mine = own_rows_of(value, ours[name]) if isinstance(ours[name], DTensor) else value
            close(getattr(ours[name], "_local_tensor", ours[name]).detach(), mine, msg=lambda m: f"{name}: {m}")

    def update(self, set_to_none=True):
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)

    def step(self, loss_of, step=0):
        self.backward(loss_of, step)
        self.compare_gradients()
        self.update()

    def train(self, loss_of, steps=3):
        for step in range(steps):
            self.step(loss_of, step)
        self.compare_weights()


def joined(transport, *cases):
    """Runs cases, (function, *arguments), one after the other in one world."""
    import sherd
    sherd.init(transport=transport, timeout=20)
    for function, *args in cases:
        function(*args)
