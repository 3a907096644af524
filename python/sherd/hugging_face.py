"""What Accelerate and transformers do differently for sharded models, under sherd.as_deepspeed."""
from __future__ import annotations

import functools
import inspect
import os
import sys
from typing import Any, Callable

from torch import nn
from torch.distributed.tensor import DTensor

from . import checkpoint, distributed, gather


def initialize_gathered() -> None:
    """transformers' own initialization of a module looks at whole parameters, as far as they are sharded already."""
    try:
        from transformers import PreTrainedModel
    except ImportError:
        return
    plain = PreTrainedModel._initialize_weights
    if plain.__module__ == __name__:
        return

    def _initialize_weights(self: nn.Module, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        with gather.GatheredParameters(module.parameters(recurse=False), modifier_rank=0):
            plain(self, module, *args, **kwargs)

    PreTrainedModel._initialize_weights = _initialize_weights


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


def use_sherd() -> None:
    """Accelerate takes a machine without accelerators for one process, or leaves its DeepSpeed branch, where the CPU was asked for;
    this makes it ask Gloo, on the CPU."""
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
