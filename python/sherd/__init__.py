"""Sharded data-parallel training of PyTorch models.

    for block in model.layers:
        sherd.fully_shard(block)
    sherd.fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)

and the training loop stays as it was.
"""
from . import updates as _updates  # registers torch's optimizer hooks
from ._C import ConfigError, FaultError
from .distributed import World, init, world
from .parameters import ShardedParameter
from .sharding import fully_shard, shard
from .units import ShardedModule, register_forward_method

__all__ = ["ConfigError", "FaultError", "ShardedModule", "ShardedParameter", "World", "fully_shard", "init",
           "register_forward_method", "shard", "world"]
