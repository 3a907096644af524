"""torch's TransformerEncoder under fully_shard: also its evaluation with nested tensors,
which gives zeros at padding."""
import warnings

import pytest
import torch
from torch import nn

from fsdp_models import Pair, close, shard_layers, shard_root
from ranks import run

WIDTH = 8


class Encoder(nn.Module):
    def __init__(self, layers=2):
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True, dropout=0.0)
        self.inp, self.encoder = nn.Linear(WIDTH, WIDTH), nn.TransformerEncoder(layer, layers)

    @property
    def layers(self):
        return self.encoder.layers

    def forward(self, x, padding):
        return self.encoder(self.inp(x), src_key_padding_mask=padding)


def make_encoder():
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True, dropout=0.0), 3)


def shard_parts(model):
    import sherd
    for layer in model.layers:
        sherd.fully_shard(layer.self_attn)
        sherd.fully_shard(layer.linear1)
    return sherd.fully_shard(model)


def batch(step, rank):
    generator = torch.Generator().manual_seed(1000 * step + rank)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[0, 3:], padding[1, 1 + rank:] = True, True
    return torch.randn(3, 5, WIDTH, generator=generator), padding


def loss_of(model, step, rank):
    x, padding = batch(step, rank)
    if isinstance(model, Encoder):
        return model(x, padding).square()[~padding].mean()
    return model(x, src_key_padding_mask=padding).mean()


def evaluated(strategy, transport):
    import sherd
    sherd.init(transport=transport, timeout=20)
    warnings.simplefilter("ignore")  # nested tensors are a prototype
    for make, shard, like_plain in ((Encoder, lambda m: shard_layers(m, strategy=strategy), True),
                                    (make_encoder, shard_layers, True), (Encoder, shard_root, True),
                                    (Encoder, shard_parts, False)):
        pair = Pair(make, shard=shard)
        for step in range(2):
            pair.step(loss_of, step)
            for model in (pair.plain, pair.ours):
                model.eval()
            x, padding = batch(step, pair.rank)
            for grad in (True, False):
                with torch.set_grad_enabled(grad):
                    expected, got = (model(x, src_key_padding_mask=padding) if make is make_encoder
                                     else model(x, padding) for model in (pair.plain, pair.ours))
                if like_plain:
                    close(got, expected)
                    assert grad or not got[0, 3:].any()
                else:
                    close(got[~padding], expected[~padding])
            for model in (pair.plain, pair.ours):
                model.train()
        pair.compare_weights()


@pytest.mark.parametrize("strategy, transport", (("zero3", "host"), ("ddp", "host"), ("zero3", "gloo")))
def test_evaluation_with_padding_is_torchs(strategy, transport):
    run(2, evaluated, strategy, transport)
