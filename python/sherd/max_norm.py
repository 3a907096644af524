"""Embeddings with max_norm, which torch writes to in forward: rows that it looks up, where they are longer than that.

Each rank's forward works on a copy, in which it shortens the rows of its own batch. Before the next step of an
optimizer the ranks tell each other which rows these were, and their owners shorten them for all: as in a model that has
seen all batches.
"""
from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from ._C import ConfigError
from .rows import own_rows

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


class InPlaceOf(torch.autograd.Function):
    """Values that are used in the place of a parameter, which gets their gradient."""

    @staticmethod
    def forward(ctx, parameter, values):
        return values.view_as(values)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class ShorteningEmbedding:
    """What stands around the forward of such a module, inside of its unit's."""

    def __init__(self, module: nn.Module):
        self.module, self.max_norm = module, module.max_norm
        self.parameter: nn.Parameter | None = None  # while a copy stands in its place
        self.looked_up = torch.zeros(module.num_embeddings, dtype=torch.uint8)
        module.register_forward_pre_hook(self.before, with_kwargs=True)
        module.register_forward_hook(self.after, always_call=True)

    def before(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        parameter = module._parameters["weight"]
        if isinstance(parameter, DTensor):
            return  # outside of the unit's forward: an error that names it
        rows = (args[0] if args else kwargs["input"]).flatten()
        self.looked_up[rows] = 1
        values = parameter.detach().clone()
        with torch.no_grad():
            torch.embedding_renorm_(values, rows, self.max_norm, module.norm_type)
        self.parameter, module.max_norm = parameter, None
        module._parameters["weight"] = InPlaceOf.apply(parameter, values)

    def after(self, module: nn.Module, args: tuple, result: Any) -> None:
        if self.parameter is not None:
            module._parameters["weight"], self.parameter = self.parameter, None
            module.max_norm = self.max_norm

    def shorten(self, shard: DTensor) -> None:
        """This rank's rows of those that any rank has looked up. Collective, where no rank reads them."""
        if dist.get_world_size() > 1:
            dist.all_reduce(self.looked_up, op=dist.ReduceOp.MAX)
        mine = self.looked_up[own_rows(shard.shape[0], shard.device_mesh)].nonzero().flatten()
        self.looked_up.zero_()
        if mine.numel() > 0:
            with torch.no_grad():
                torch.embedding_renorm_(shard._local_tensor, mine, self.max_norm, self.module.norm_type)


def shortening(module: nn.Module) -> ShorteningEmbedding | None:
    """For a module that is about to be sharded."""
    wanted = isinstance(module, EMBEDDINGS) and module.max_norm is not None
    return ShorteningEmbedding(module) if wanted else None


def check_alone(name: str, places: int) -> None:
    if places > 1:
        raise ConfigError(f"[fully_shard] got parameter '{name}' of an embedding with max_norm in {places} places, "
                          "expected it there alone: others would not see what its forward writes; try without max_norm")
