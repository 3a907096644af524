"""Mixed precision of sharded modules: FSDP2's policy, by its names and meanings."""
from __future__ import annotations

import dataclasses
import functools
import json
import logging
from typing import Any

import torch
from torch import nn

from . import _C, distributed
from ._C import ConfigError
from .casting import Given, cast
from .rows import CASTABLE

log = logging.getLogger("sherd")
FIELDS = ("param_dtype", "reduce_dtype", "output_dtype", "cast_forward_inputs")
TYPES = (None, *CASTABLE)


@dataclasses.dataclass(frozen=True)
class MixedPrecisionPolicy:
    """What a unit computes with. ``torch.distributed.fsdp.MixedPrecisionPolicy`` means the same and may stand for it.

    Parameters keep their type between uses, and optimizers see that: of fp32 parameters everything but the computation
    is fp32. Integers, float8, complex ones and codes (of bitsandbytes: what has a ``quant_state``) keep their type
    everywhere.

    param_dtype: the unit's parameters inside its forward and backward; None: their own type.
    reduce_dtype: gradients on their way to the ranks that sum them (in fp32, or fp64); None: param_dtype, or without
        one fp32, and fp64 for fp64 parameters.
    output_dtype: what floating-point outputs of the unit's forward are cast to; None: nothing.
    cast_forward_inputs: whether floating-point inputs of the unit's forward are cast to param_dtype: tensors in tuples,
        lists, dicts and dataclasses too. These stay the caller's own objects, and what the unit writes is in them.
        Objects of other classes (a DynamicCache) pass as they are.
    """
    param_dtype: torch.dtype | None = None
    reduce_dtype: torch.dtype | None = None
    output_dtype: torch.dtype | None = None
    cast_forward_inputs: bool = True

    def compute_type(self, parameter: torch.Tensor) -> torch.dtype:
        return self.param_dtype if self.param_dtype is not None and castable(parameter) else parameter.dtype

    def reduce_type(self, parameter: torch.Tensor) -> torch.dtype:
        if parameter.is_complex():
            return parameter.dtype
        own = torch.float64 if parameter.dtype == torch.float64 else torch.float32
        return self.reduce_dtype or self.param_dtype or own

    @property
    def input_dtype(self) -> torch.dtype | None:
        """What inputs are cast to, if at all."""
        return self.param_dtype if self.cast_forward_inputs else None


def policy_of(given: Any) -> MixedPrecisionPolicy:
    """sherd's own from sherd's or torch's. Raises ConfigError."""
    if given is None:
        return MixedPrecisionPolicy()
    if not all(hasattr(given, field) for field in FIELDS):
        raise ConfigError(f"[fully_shard] got a {type(given).__name__} as mp_policy, expected a MixedPrecisionPolicy; "
                          "try sherd.MixedPrecisionPolicy(param_dtype=torch.bfloat16)")
    policy = MixedPrecisionPolicy(*(getattr(given, field) for field in FIELDS))
    for field in FIELDS[:3]:
        if getattr(policy, field) not in TYPES:
            raise ConfigError(f"[fully_shard] got {field}={getattr(policy, field)!r} in mp_policy, expected one of "
                              f"{', '.join(map(str, TYPES))}")
    return policy


def castable(parameter: torch.Tensor) -> bool:
    return parameter.dtype in CASTABLE and getattr(parameter, "quant_state", None) is None


def keep_norms(model: nn.Module) -> set[int]:
    """Makes the norms of a model compute in fp32 and return what they were given: the identities of their parameters,
    which are to stay fp32. A norm is what the command takes for one: by the name of its class or its own."""
    kept: set[int] = set()
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        flat = not list(module.children()) and all(parameter.dim() <= 1 for parameter in own)
        if flat and _C.named_as_norm(name, type(module).__name__):
            kept |= {id(parameter) for parameter in own}
            module.register_forward_hook(as_given)
    return kept


def cast_output(dtype: torch.dtype, module: nn.Module, args: tuple, kwargs: dict, result: Any) -> Any:
    given = Given(None)
    given.cast(args, kwargs)
    return given.cast_result(result, dtype)


def as_given(module: nn.Module, args: tuple, result: Any) -> Any:
    given = next((a.dtype for a in args if isinstance(a, torch.Tensor) and a.is_floating_point()), None)
    return result if given is None else cast(result, given)


class Precision:
    """The sections "precision" and "loss_scale" of a configuration, applied to a model."""

    def __init__(self, settings: dict, loss_scale: Any):
        compute, self.storage, reduce, master, note = _C.resolve_precision(
            settings["compute"], settings["storage"], settings["reduce"], settings["master"])
        if note is not None and distributed.world().rank == 0:
            log.info("%s", note)
        self.mixed = any(dtype != torch.float32 for dtype in (compute, self.storage, reduce))
        self.output = None if settings["output"] is None else _C.precision_type(settings["output"])
        self.norms = settings["norms"]
        self.policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=reduce,
                                           cast_forward_inputs=settings["cast_inputs"]) if self.mixed else None
        self.master = master if self.mixed else "nearest"
        self.loss_scale = _C.loss_scale_options(json.dumps(loss_scale), compute, reduce)

    def prepare(self, model: nn.Module) -> dict[str, Any]:
        """Gives the parameters of a plain model the type that they are stored in; what fully_shard is to be told."""
        if self.output is not None:
            model.register_forward_hook(functools.partial(cast_output, self.output), with_kwargs=True)
        if not self.mixed:
            return {}
        kept = keep_norms(model) if self.norms == "fp32" else set()
        uncast = [parameter for parameter in model.parameters() if id(parameter) in kept]
        for parameter in model.parameters():
            if castable(parameter) and self.storage != torch.float32 and id(parameter) not in kept:
                parameter.data = parameter.data.to(self.storage)
        return {"mp_policy": self.policy, "uncast_params": uncast}
