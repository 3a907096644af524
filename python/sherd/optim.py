"""sherd's own optimizers: the C++ updates, on this rank's rows, without a DTensor operation per parameter.

They are ``torch.optim`` optimizers in everything else: parameter groups, schedulers, hooks, ``state_dict`` under torch's
names (so torch's own AdamW reads it, and the reverse). Moments are DTensors, sharded as the parameters, of fp32 or 8 bits.
"""
from __future__ import annotations

import itertools
import logging
import math
from collections import defaultdict
from typing import Any, Callable, Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from . import _C
from ._C import ConfigError
from .parameters import over_rows, own_rows
from .units import HELD, ShardedModule

log = logging.getLogger("sherd")
MASTERS = ("nearest", "fp32", "split", "none")
STATES = ("exp_avg", "exp_avg_sq", "momentum_buffer", "state1", "state2", "absmax1", "absmax2", "master", "remainder")  # in order
BLOCK, LEAST_8_BIT = 256, 4096  # of 8-bit moments: elements with one scale, and of the smallest parameter that has them


class ShardedOptimizer(Optimizer):
    """What the optimizers share. ``step`` costs about 2 microseconds a parameter beside the update itself.

    master: what 16-bit parameters are rounded from after an update: "nearest" (nothing, as in torch), "fp32" (a state "master"),
        "split" (a state "remainder" with the 16 bits that bf16 lacks, as two bytes: an fp32 master without loss in half the
        memory), or "none" (nothing: rounded stochastically, bf16 only). fp32 parameters are their own.
    """

    counts_steps = True  # the update depends on the number of the step
    eight_bits = False
    exclude: tuple[str, ...] = ()

    def __init__(self, params: Iterable, rule: _C.UpdateRule, defaults: dict[str, Any], master: str = "nearest"):
        if master not in MASTERS:
            raise ConfigError(f"[optim] got master={master!r}, expected one of {', '.join(map(repr, MASTERS))}; try 'split'")
        self._rule, self.master = rule, master
        self._places: dict[nn.Parameter, tuple[int, int]] = {}  # of those that are rounded stochastically
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k not in ("_rule", "_places")}

    @torch.no_grad()
    def step(self, closure: Callable | None = None, *, gradient_scale: float = 1.0) -> Any:
        """Updates all parameters that have gradients, multiplied with ``gradient_scale`` (clipping) on the way."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_step: dict[int, list[_C.Piece]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    step, piece = self._next(parameter)
                    by_step[step].append(piece)
            beta1, beta2 = group.get("betas", (0.0, 0.0))
            for step, pieces in by_step.items():
                self._rule.update(pieces, lr=float(group["lr"]), beta1=beta1, beta2=beta2, eps=group.get("eps", 0.0),
                                  weight_decay=group["weight_decay"], step=step, gradient_scale=gradient_scale, master=self.master)
        return loss

    def _next(self, parameter: nn.Parameter) -> tuple[int, _C.Piece]:
        """The number of this parameter's step, and its local tensors."""
        state = self.state[parameter]
        if not state:
            self._start(parameter, state)
        if self.counts_steps:
            state["step"] += 1
        states = [local(state[name]) for name in STATES if name in state]
        if "remainder" in state:
            states[-1] = states[-1].view(torch.int16)
        first, key = self._place_of(parameter) if self.master == "none" else (0, 0)
        return int(state.get("step", 1)), _C.Piece([local(parameter), local(parameter.grad), *states], first, key)

    def _start(self, parameter: nn.Parameter, state: dict[str, Any]) -> None:
        if parameter.dtype == torch.float16 and self.master in ("split", "none"):
            raise ConfigError(f"[optim] got master={self.master!r} with parameter '{self._name_of(parameter)}' of torch.float16, "
                              "expected 'fp32' or 'nearest' (others are for bfloat16); try 'fp32'")
        for name, dtype, by_block in self._rule.state(parameter.dtype, self._takes_eight_bits(parameter), self.master):
            state[name] = zeros_like(parameter, dtype, by_block)
            if name == "master":
                local(state[name]).copy_(local(parameter))
        if self.counts_steps:
            state["step"] = torch.tensor(0.0)

    def _name_of(self, parameter: nn.Parameter) -> str:
        """In the model, where it is sharded, or as it was given to this optimizer; else its number."""
        if (name := getattr(parameter, "_sherd_name", None)) is not None:
            return name
        number = 0
        for group in self.param_groups:
            for i, candidate in enumerate(group["params"]):
                if candidate is parameter:
                    return group["param_names"][i] if "param_names" in group else str(number)
                number += 1
        return ""

    def _place_of(self, parameter: nn.Parameter) -> tuple[int, int]:
        """Which element of the whole parameter is this rank's first, and a number of the parameter's own."""
        if parameter not in self._places:
            first = 0
            if isinstance(parameter, DTensor):
                first = own_rows(parameter.shape[0], parameter.device_mesh).start * row_elements(parameter)
            self._places[parameter] = first, _C.parameter_key(self._name_of(parameter))
        return self._places[parameter]

    def _takes_eight_bits(self, parameter: nn.Parameter) -> bool:
        if not self.eight_bits:
            return False
        name = self._name_of(parameter)
        if any(_C.glob_matches(glob, name) for glob in self.exclude):
            return False
        rows = parameter.shape[0] if parameter.dim() > 0 else 1
        ranks = parameter.device_mesh.size(-1) if isinstance(parameter, DTensor) else 1
        if _C.fits_eight_bits(rows, row_elements(parameter), ranks):
            return True
        if parameter.numel() >= LEAST_8_BIT:
            log.info("optimizer: fp32 moments for '%s': its shards would cut a block of %d", name, BLOCK)
        return False

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """torch's, which would give all states the parameters' type: they keep their own."""
        super().load_state_dict(state_dict)
        saved = itertools.chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        ours = itertools.chain.from_iterable(group["params"] for group in self.param_groups)
        for key, parameter in zip(saved, ours):
            for name, value in state_dict["state"].get(key, {}).items():
                if isinstance(value, torch.Tensor) and name != "step":
                    self.state[parameter][name] = value.detach().clone()


class AdamW(ShardedOptimizer):
    """``torch.optim.AdamW``: Loshchilov and Hutter, "Decoupled weight decay regularization", 2019."""

    def __init__(self, params: Iterable, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 1e-2, *, master: str = "nearest"):
        check_adam(lr, betas, eps, weight_decay)
        super().__init__(params, _C.UpdateRule("adamw"), dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay), master)


class Adam(ShardedOptimizer):
    """``torch.optim.Adam``: decay is added to the gradient."""

    def __init__(self, params: Iterable, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.0, *, master: str = "nearest"):
        check_adam(lr, betas, eps, weight_decay)
        super().__init__(params, _C.UpdateRule("adam"), dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay), master)


class AdamW8bit(AdamW):
    """AdamW with moments of 8 bits: Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2022.

    States are those of bitsandbytes' AdamW8bit: codes ``state1`` and ``state2`` (uint8, of the parameter's shape) of its dynamic
    maps, with a scale for each block of 256 elements (``absmax1``, ``absmax2``); 2.03 bytes a parameter. The same bits for any
    number of ranks. Parameters below 4096 elements, those whose rows on a rank are no whole number of blocks (said at level INFO)
    and those whose names match ``exclude`` (globs) keep fp32 moments, ``exp_avg`` and ``exp_avg_sq``.
    """

    eight_bits = True

    def __init__(self, params: Iterable, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 1e-2, *, master: str = "nearest", exclude: Iterable[str] = ()):
        self.exclude = tuple(exclude)
        super().__init__(params, lr, betas, eps, weight_decay, master=master)


class Adam8bit(Adam):
    """Adam with moments of 8 bits: see :class:`AdamW8bit`."""

    eight_bits = True

    def __init__(self, params: Iterable, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.0, *, master: str = "nearest", exclude: Iterable[str] = ()):
        self.exclude = tuple(exclude)
        super().__init__(params, lr, betas, eps, weight_decay, master=master)


class SGD(ShardedOptimizer):
    """``torch.optim.SGD`` with momentum and Nesterov's variant of it."""

    counts_steps = False

    def __init__(self, params: Iterable, lr: float = 1e-3, momentum: float = 0.0, weight_decay: float = 0.0,
                 nesterov: bool = False, *, master: str = "nearest"):
        check("lr", lr, lr >= 0, "0 or more")
        check("weight_decay", weight_decay, weight_decay >= 0, "0 or more")
        torchs = dict(dampening=0.0, maximize=False, foreach=None, differentiable=False, fused=None)  # in its checkpoints
        super().__init__(params, _C.UpdateRule("sgd", momentum, nesterov),
                         dict(lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, **torchs), master)


def clip_grad_norm_(model: nn.Module, max_norm: float) -> torch.Tensor:
    """Scales the gradients of a sharded model so that their global norm is at most ``max_norm``; returns the norm before.

    The norm has the same bits on every rank and for every number of ranks. Collective; one exchange. torch's
    ``clip_grad_norm_(model.parameters(), ...)`` works too, at the cost of DTensor operations per parameter.
    """
    norm = gradient_norm(model)
    scale_gradients(model, clip_scale(norm, max_norm))
    return torch.tensor(norm)


def scale_gradients(model: nn.Module, scale: float) -> None:
    """Multiplies all gradients, where that changes them."""
    if scale != 1.0:
        for parameter in model.parameters():
            if parameter.grad is not None:
                local(parameter.grad).mul_(scale)


def gradient_norm(model: nn.Module) -> float:
    """The 2-norm of all gradients of a sharded model, over all ranks. Collective."""
    if not isinstance(model, ShardedModule):
        raise ConfigError(f"[clip_grad_norm_] got a {type(model).__name__} that is not sharded, expected the module given to "
                          "fully_shard last")
    return getattr(model, HELD).whole_model().model.gradient_norm()


def clip_scale(norm: float, max_norm: float) -> float:
    """torch's rule: at most 1."""
    return min(1.0, max_norm / (norm + 1e-6))


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's rows."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def row_elements(parameter: torch.Tensor) -> int:
    return math.prod(parameter.shape[1:])


def zeros_like(parameter: torch.Tensor, dtype: torch.dtype, by_block: bool = False) -> torch.Tensor:
    """Zeros, sharded as the parameter: of its shape, or one for each block of its elements ([rows, blocks of a row] where rows
    are whole blocks, else [blocks])."""
    own = local(parameter)
    if dtype == torch.int16:  # as bytes: there are backends (Gloo) that know no int16
        zeros, whole = torch.zeros((*own.shape, 2), dtype=torch.uint8), torch.Size((*parameter.shape, 2))
    elif not by_block:
        zeros, whole = torch.zeros_like(own, dtype=dtype, memory_format=torch.contiguous_format), parameter.shape
    else:
        width = row_elements(parameter)
        by_row = (width // BLOCK,) if width % BLOCK == 0 else ()
        rows = own.shape[0] if by_row else -(-own.numel() // BLOCK)
        whole = torch.Size((parameter.shape[0] if by_row else -(-parameter.numel() // BLOCK), *by_row))
        zeros = torch.zeros((rows, *by_row), dtype=dtype)
    return over_rows(zeros, parameter, whole) if isinstance(parameter, DTensor) else zeros


def check(name: str, value: Any, fine: bool, expected: str) -> None:
    if not fine:
        raise ConfigError(f"[optim] got {name}={value!r}, expected {expected}")


def check_adam(lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
    check("lr", lr, lr >= 0, "0 or more")
    check("betas", betas, len(betas) == 2 and all(0 <= b < 1 for b in betas), "two numbers from 0 to below 1")
    check("eps", eps, eps >= 0, "0 or more")
    check("weight_decay", weight_decay, weight_decay >= 0, "0 or more")
