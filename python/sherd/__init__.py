"""Sharded data-parallel training of PyTorch models.

    for block in model.layers:
        sherd.fully_shard(block)
    sherd.fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)

and the training loop stays as it was.
"""
import torch as _torch

from . import _build

_build.check(_torch.__version__)

from . import optim, zero
from . import updates as _updates  # registers torch's optimizer hooks
from ._C import ConfigError, FaultError
from .checkpoint import full_state_dict, load_full_state_dict
from .distributed import World, init, world
from .engine import Engine, initialize
from .gather import GatheredParameters, full_parameters
from .loss import linear_cross_entropy
from .materialize import materialize
from .optim import clip_grad_norm_
from .parameters import ShardedParameter
from .precision import MixedPrecisionPolicy
from .sharding import fully_shard, shard
from .units import ShardedModule, register_forward_method

__all__ = [
    "ConfigError", "Engine", "FaultError", "GatheredParameters", "MixedPrecisionPolicy", "ShardedModule",
    "ShardedParameter", "World", "clip_grad_norm_", "full_parameters", "full_state_dict", "fully_shard", "init",
    "initialize", "linear_cross_entropy", "load_full_state_dict", "materialize", "optim", "register_forward_method",
    "shard", "world", "zero",
]
