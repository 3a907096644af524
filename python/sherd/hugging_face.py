"""What Accelerate and transformers do differently for sharded models, under sherd.as_deepspeed."""
from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from . import checkpoint, distributed, gather
from ._C import ConfigError
from .parameters import ShardedParameter


def initialize_gathered() -> None:
    """transformers' own initialization of a module looks at whole parameters, as far as they are sharded already. Of
    what is whole for a time it is no collective: transformers 5's from_config gathers, and initializes on rank 0."""
    try:
        from transformers import PreTrainedModel
    except ImportError:
        return
    plain = PreTrainedModel._initialize_weights
    if plain.__module__ == __name__:
        return

    def _initialize_weights(self: nn.Module, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        own = [parameter for parameter in module.parameters(recurse=False) if type(parameter) is ShardedParameter]
        with contextlib.ExitStack() as stack:
            if own:
                stack.enter_context(gather.GatheredParameters(own, modifier_rank=0))
            stack.enter_context(without_draws(module))
            plain(self, module, *args, **kwargs)

    PreTrainedModel._initialize_weights = _initialize_weights


def without_draws(module: nn.Module) -> contextlib.AbstractContextManager:
    """Leaves the generators as they are where a checkpoint is to fill all of a module. transformers 4 initializes such
    a module again if it has buffers outside of the state (GPT-2's attention): on the meta device in a plain model."""
    parameters = list(module.parameters())
    if not parameters or not all(getattr(parameter, "_is_hf_initialized", False) for parameter in parameters):
        return contextlib.nullcontext()
    return torch.random.fork_rng({parameter.device for parameter in parameters if parameter.is_cuda})


def save_whole() -> None:
    """save_pretrained of transformers and PEFT writes whole weights of what is sharded, by rank 0. Collective."""
    for module, name in (("transformers", "PreTrainedModel"), ("peft", "PeftModel")):
        cls = getattr(sys.modules.get(module), name, None)
        if cls is not None and cls.save_pretrained.__module__ != __name__:
            cls.save_pretrained = of_whole_weights(cls.save_pretrained)


def of_whole_weights(plain: Callable) -> Callable:
    signature = inspect.signature(plain)

    @functools.wraps(plain)
    def save_pretrained(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        given = bound.arguments.get("state_dict") or bound.arguments.get("kwargs", {}).get("state_dict")
        if given is not None or not any(isinstance(p, DTensor) for p in self.parameters()):
            return plain(self, *args, **kwargs)
        world = distributed.world()
        state = checkpoint.full_state_dict(self)
        result = plain(self, *args, **kwargs, state_dict=state) if world.rank == 0 else None
        world.transport.barrier()
        return result

    save_pretrained.__module__ = __name__
    return save_pretrained


REFUSED_OF_FSDP = {"FSDP_OFFLOAD_PARAMS": "fsdp_offload_params",
                   "FSDP_ACTIVATION_CHECKPOINTING": "fsdp_activation_checkpointing"}
STAGE_OF_FSDP = {"true": 3, "full_shard": 3, "false": 2, "shard_grad_op": 2, "no_shard": 0}


def follow_fsdp() -> None:
    """What ``accelerate launch`` says of an FSDP configuration, in words of ZeRO; says so on rank 0."""
    environment = os.environ
    if environment.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return
    for variable, key in REFUSED_OF_FSDP.items():
        if environment.get(variable, "false").lower() == "true":
            raise ConfigError(f"[accelerate] got {key}: true in an FSDP configuration, expected false; try gradient "
                              "checkpointing of the program's own, and no offloading")
    version = environment.get("FSDP_VERSION", "1")
    key = "FSDP_RESHARD_AFTER_FORWARD" if version == "2" else "FSDP_SHARDING_STRATEGY"
    given = environment.get(key, "true").lower()
    given = {"1": "full_shard", "2": "shard_grad_op", "3": "no_shard"}.get(given, given)
    if given not in STAGE_OF_FSDP:
        raise ConfigError(f"[accelerate] got {key.lower()} {given!r}, expected one of {', '.join(STAGE_OF_FSDP)}")
    stage = STAGE_OF_FSDP[given]
    environment.pop("ACCELERATE_USE_FSDP")
    environment.update(ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_ZERO_STAGE=str(stage))
    if environment.get("RANK", "0") == "0":
        print(f"sherd: an FSDP {version} configuration ({key.lower()}: {given}) runs as ZeRO-{stage}, by Accelerate's "
              "DeepSpeed branch: accelerator.distributed_type is DEEPSPEED, and fsdp_plugin None", file=sys.stderr,
              flush=True)
    clip_as_told()


def clip_as_told() -> None:
    """FSDP clips where the program says so, DeepSpeed at every step as its configuration says: here not at all without
    one, and a program that says something else is told."""
    from accelerate import Accelerator
    prepare, clip = Accelerator._prepare_deepspeed, Accelerator.clip_grad_norm_

    @functools.wraps(prepare)
    def _prepare_deepspeed(self, *args: Any) -> Any:
        config = self.deepspeed_plugin.deepspeed_config
        if config.get("gradient_clipping", "auto") == "auto":
            config["gradient_clipping"] = 0.0
        return prepare(self, *args)

    @functools.wraps(clip)
    def clip_grad_norm_(self, parameters: Any, max_norm: float, norm_type: float = 2) -> Any:
        clipped = float(self.deepspeed_plugin.deepspeed_config.get("gradient_clipping") or 0.0)
        if float(max_norm) != clipped:
            raise ConfigError(f"[accelerate] got clip_grad_norm_ with max_norm={max_norm}, after a step that was "
                              f"clipped at {clipped:g} (0: not at all), expected the same: under ZeRO backward() makes "
                              f"the step; try ACCELERATE_GRADIENT_CLIPPING={max_norm}")
        return clip(self, parameters, max_norm, norm_type)

    Accelerator._prepare_deepspeed, Accelerator.clip_grad_norm_ = _prepare_deepspeed, clip_grad_norm_


def use_sherd() -> None:
    """Accelerate takes a machine without accelerators for one process, or leaves its DeepSpeed branch, where the CPU
    was asked for; this makes it ask Gloo, on the CPU."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    os.environ.pop("ACCELERATE_USE_CPU", None)
    try:
        from accelerate import state
    except ImportError:
        return
    ask = state.PartialState._prepare_backend

    @functools.wraps(ask)
    def _prepare_backend(self, cpu: bool = False, *args: Any, **kwargs: Any) -> tuple:
        backend, kind = ask(self, cpu, *args, **kwargs)
        return (backend or "gloo", kind)

    state.PartialState._prepare_backend = _prepare_backend
    for cls in (state.PartialState, state.AcceleratorState):
        cls.__init__ = without_cpu(cls.__init__)


def without_cpu(init: Callable) -> Callable:
    """A constructor that takes cpu=True for what it is anyway."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.arguments.pop("cpu", None)
        init(*bound.args, **bound.kwargs)

    return __init__
