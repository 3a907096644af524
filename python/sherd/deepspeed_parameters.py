"""What DeepSpeed's programs ask of parameters: ds_status and its like, safe_get_full_*,
GatheredParameters, zero.Init."""
from __future__ import annotations

import contextlib
import enum
import weakref
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from . import gather, hugging_face, zero
from .faces import sharded_of
from .parameters import ShardedParameter, WholeParameter
from .rows import over_rows, rows_like

OWNER = "_sherd_optimizer"  # the attribute of a parameter that holds its optimizer


class ZeroParamStatus(enum.Enum):
    AVAILABLE = 1
    NOT_AVAILABLE = 2
    INFLIGHT = 3


class ZeroParamType(enum.Enum):
    NORMAL = 1
    PARTITIONED = 2
    REMOTE = 3


def name_attributes() -> None:
    """Gives sharded parameters the attributes by which programs know those of ZeRO-3."""
    for name, value in ATTRIBUTES.items():
        setattr(ShardedParameter, name, value)


ATTRIBUTES = {
    "ds_id": property(id),
    "ds_shape": property(lambda p: p.shape),
    "ds_numel": property(lambda p: p.numel()),
    "ds_tensor": property(lambda p: p._local_tensor),
    "ds_status": property(lambda p: ZeroParamStatus.AVAILABLE if isinstance(p, WholeParameter)
                          else ZeroParamStatus.NOT_AVAILABLE),
    "ds_persist": False,
    "partition_numel": lambda p: p._local_tensor.numel(),
}


def name_wholes(model: nn.Module) -> None:
    """The same for what stands in their places inside of forwards and GatheredParameters."""
    for parameter in model.parameters():
        if isinstance(parameter, ShardedParameter):
            attributes = {"ds_id": id(parameter), "ds_shape": parameter.shape, "ds_numel": parameter.numel(),
                          "ds_persist": False, "ds_status": ZeroParamStatus.AVAILABLE}
            for face in (parameter, parameter._sherd_whole):
                if face is not None:
                    face.__dict__.update(attributes)


class ParameterOffload:
    """optimizer.parameter_offload of ZeRO-3: the hooks that programs take away before they generate. sherd has none."""

    def __init__(self) -> None:
        self.module = self
        self.forward_hooks: list = []
        self.backward_hooks: list = []

    def named_parameters(self, recurse: bool = True) -> list:
        return []

    def ds_external_parameters(self) -> list:
        return []

    def _register_deepspeed_module(self, module: Any) -> None:
        pass


@contextlib.contextmanager
def Init(module: nn.Module | None = None, *_: Any, enabled: bool = True, **__: Any):
    """deepspeed.zero.Init: see :class:`sherd.zero.Init`."""
    if enabled:
        hugging_face.initialize_gathered()
    with zero.Init(module, enabled=enabled):
        yield


@contextlib.contextmanager
def GatheredParameters(params: Any, modifier_rank: int | None = None, fwd_module: nn.Module | None = None,
                       enabled: bool = True):
    """deepspeed.zero.GatheredParameters: see :class:`sherd.GatheredParameters`."""
    if isinstance(params, nn.Module):
        params = params.parameters()
    params = [params] if isinstance(params, torch.Tensor) else list(params)
    if modifier_rank is None:  # what is whole already can be read
        params = [p for p in params if isinstance(p, ShardedParameter)]
    with gather.GatheredParameters(params, modifier_rank, enabled=enabled):
        yield
    settle(params)


def settle(params: list) -> None:
    """Programs see the new values of these parameters. Collective."""
    for root in {id(root): root for p in params
                 if (root := gather.root_of_parameter(sharded_of(p))) is not None}.values():
        root.model.settle()


def whole_tensors(state: dict, *_: Any) -> dict:
    """clone_tensors_for_torch_save: whole values on every rank. Collective."""
    return {name: value.full_tensor().clone() if isinstance(value, DTensor) else value for name, value in state.items()}


def whole(tensor: torch.Tensor | None) -> torch.Tensor | None:
    if tensor is None:
        return None
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach().clone()


def safe_get_full_fp32_param(param: torch.Tensor) -> torch.Tensor:
    """The parameter's whole value. Collective."""
    return whole(sharded_of(param)).float()


def safe_get_full_grad(param: torch.Tensor) -> torch.Tensor | None:
    """The parameter's whole gradient, summed over the ranks; None without one. Collective. For hooks and after
    backward; engine.step() clears gradients."""
    return whole(sharded_of(param).grad)


def safe_get_full_optimizer_state(param: torch.Tensor, optim_state_key: str) -> torch.Tensor | None:
    """A whole moment of the parameter. Collective."""
    return whole(state_of(param).get(optim_state_key))


def safe_set_full_fp32_param(param: torch.Tensor, value: torch.Tensor) -> None:
    """Each rank takes its rows of a whole value. Collective."""
    set_rows(sharded_of(param), value)
    settle([param])


def safe_set_full_grad(param: torch.Tensor, value: torch.Tensor) -> None:
    grad = sharded_of(param).grad
    if grad is not None:
        set_rows(grad, value)


def safe_set_full_optimizer_state(param: torch.Tensor, value: torch.Tensor, optim_state_key: str) -> None:
    state = state_of(param).get(optim_state_key)
    if state is not None:
        set_rows(state, value)


def set_rows(target: torch.Tensor, value: torch.Tensor) -> None:
    with torch.no_grad():
        target.copy_(over_rows(rows_like(value.to(target.dtype), target), target) if isinstance(target, DTensor)
                     else value)


def state_of(param: torch.Tensor) -> dict:
    param = sharded_of(param)
    owner = getattr(param, OWNER, lambda: None)()
    return {} if owner is None else owner.state.get(param, {})


def remember_owner(optimizer: Optimizer) -> None:
    """Lets parameters know whose state they have."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            setattr(parameter, OWNER, weakref.ref(optimizer))
