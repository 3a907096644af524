"""sherd's own optimizers: the C++ updates, on this rank's rows, without a DTensor operation per parameter.

They are ``torch.optim`` optimizers in everything else: parameter groups, schedulers, hooks, ``state_dict`` under torch's
names (so torch's own AdamW reads it, and the reverse). Moments are DTensors, sharded as the parameters, fp32 always.
"""
from __future__ import annotations

from collections import defaultdict
from typing import Any, Callable, Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from . import _C
from ._C import ConfigError
from .parameters import over_rows
from .units import HELD, ShardedModule


class ShardedOptimizer(Optimizer):
    """What the optimizers share. ``step`` costs about 2 microseconds a parameter beside the update itself."""

    counts_steps = True  # the update depends on the number of the step

    def __init__(self, params: Iterable, rule: _C.UpdateRule, defaults: dict[str, Any]):
        self._rule = rule
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k != "_rule"}

    @torch.no_grad()
    def step(self, closure: Callable | None = None, *, gradient_scale: float = 1.0) -> Any:
        """Updates all parameters that have gradients, multiplied with ``gradient_scale`` (clipping) on the way."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_step: dict[int, list[list[torch.Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    step, states = self._next(parameter)
                    by_step[step].append([local(parameter), local(parameter.grad), *states])
            beta1, beta2 = group.get("betas", (0.0, 0.0))
            for step, pieces in by_step.items():
                self._rule.update(pieces, lr=float(group["lr"]), beta1=beta1, beta2=beta2, eps=group.get("eps", 0.0),
                                  weight_decay=group["weight_decay"], step=step, gradient_scale=gradient_scale)
        return loss

    def _next(self, parameter: nn.Parameter) -> tuple[int, list[torch.Tensor]]:
        """The number of this parameter's step, and the local tensors of its state."""
        state, names = self.state[parameter], self._rule.state_names
        if not state:
            state.update({name: zeros_like(parameter) for name in names})
            if self.counts_steps:
                state["step"] = torch.tensor(0.0)
        if self.counts_steps:
            state["step"] += 1
        return int(state.get("step", 1)), [local(state[name]) for name in names]


class AdamW(ShardedOptimizer):
    """``torch.optim.AdamW``: Loshchilov and Hutter, "Decoupled weight decay regularization", 2019."""

    def __init__(self, params: Iterable, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 1e-2):
        check_adam(lr, betas, eps, weight_decay)
        super().__init__(params, _C.UpdateRule("adamw"), dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))


class Adam(ShardedOptimizer):
    """``torch.optim.Adam``: decay is added to the gradient."""

    def __init__(self, params: Iterable, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.0):
        check_adam(lr, betas, eps, weight_decay)
        super().__init__(params, _C.UpdateRule("adam"), dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))


class SGD(ShardedOptimizer):
    """``torch.optim.SGD`` with momentum and Nesterov's variant of it."""

    counts_steps = False

    def __init__(self, params: Iterable, lr: float = 1e-3, momentum: float = 0.0, weight_decay: float = 0.0,
                 nesterov: bool = False):
        check("lr", lr, lr >= 0, "0 or more")
        check("weight_decay", weight_decay, weight_decay >= 0, "0 or more")
        torchs = dict(dampening=0.0, maximize=False, foreach=None, differentiable=False, fused=None)  # in its checkpoints
        super().__init__(params, _C.UpdateRule("sgd", momentum, nesterov),
                         dict(lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, **torchs))


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


def zeros_like(parameter: torch.Tensor) -> torch.Tensor:
    """fp32 zeros, sharded as the parameter."""
    zeros = torch.zeros_like(local(parameter), dtype=torch.float32)
    return over_rows(zeros, parameter) if isinstance(parameter, DTensor) else zeros


def check(name: str, value: Any, fine: bool, expected: str) -> None:
    if not fine:
        raise ConfigError(f"[optim] got {name}={value!r}, expected {expected}")


def check_adam(lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
    check("lr", lr, lr >= 0, "0 or more")
    check("betas", betas, len(betas) == 2 and all(0 <= b < 1 for b in betas), "two numbers from 0 to below 1")
    check("eps", eps, eps >= 0, "0 or more")
    check("weight_decay", weight_decay, weight_decay >= 0, "0 or more")
