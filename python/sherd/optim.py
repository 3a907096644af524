"""sherd's own optimizers: the C++ updates, on this rank's rows, without a DTensor operation per parameter.

They are ``torch.optim`` optimizers in everything else: parameter groups, schedulers, hooks, ``state_dict`` under
torch's names (so torch's own AdamW reads it, and the reverse). Moments are DTensors, sharded as the parameters, of fp32
or 8 bits.
"""
from __future__ import annotations

import functools
import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from . import _C
from ._C import ConfigError
from .clipping import clip_grad_norm_, clip_scale, gradient_norm  # noqa: F401 names of this module too
from .rows import is_whole, local, over_rows, own_rows
from .units import HELD

log = logging.getLogger("sherd")
UPDATED = (torch.float32, torch.bfloat16, torch.float16)
MASTERS = ("nearest", "fp32", "split", "none")
# The names of states, in the order in which a rule takes them.
STATES = ("exp_avg", "exp_avg_sq", "momentum_buffer", "state1", "state2", "absmax1", "absmax2", "master", "remainder")
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Muon's polynomial, torch's
BLOCK, LEAST_8_BIT = 256, 4096  # of 8-bit moments: elements with one scale, and of the smallest parameter that has them


class ShardedOptimizer(Optimizer):
    """What the optimizers share. ``step`` costs about 2 microseconds a parameter beside the update itself.

    master: what 16-bit parameters are rounded from after an update: "nearest" (nothing, as in torch), "fp32" (a state
        "master"), "split" (a state "remainder" with the 16 bits that bf16 lacks, as two bytes: an fp32 master without
        loss in half the memory), or "none" (nothing: rounded stochastically, bf16 only). fp32 parameters are their own.
    """

    eight_bits = False
    exclude: tuple[str, ...] = ()

    def __init__(self, params: Iterable, defaults: dict[str, Any], master: str = "nearest"):
        if master not in MASTERS:
            raise ConfigError(f"[optim] got master={master!r}, expected one of {', '.join(map(repr, MASTERS))}; "
                              "try 'split'")
        self.master = master
        self._places: dict[nn.Parameter, tuple[int, int]] = {}  # of those that are rounded stochastically
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "master": self.master, "exclude": self.exclude}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._places = {}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for parameter in group["params"]:
            if parameter.dtype not in UPDATED:
                raise ConfigError(f"[optim] got parameter '{self._name_of(parameter)}' of {parameter.dtype}, expected "
                                  f"{', '.join(map(str, UPDATED))}; "
                                  f"try torch.optim for it: {type(self).__name__} has a namesake there")
        self._rule_of(group)  # it checks what it is made of

    def _rule_of(self, group: dict[str, Any]) -> _C.UpdateRule:
        raise NotImplementedError

    def _counts_steps(self, group: dict[str, Any]) -> bool:
        """Whether the update depends on the number of the step: random rounding does."""
        return self.master == "none"

    @torch.no_grad()
    def step(self, closure: Callable | None = None, *, gradient_scale: float = 1.0) -> Any:
        """Updates all parameters that have gradients, multiplied with ``gradient_scale`` (clipping) on the way."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_step: dict[int, dict[nn.Parameter, _C.Piece]] = defaultdict(dict)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    step, piece = self._next(parameter, group)
                    by_step[step][parameter] = piece
            for step, pieces in by_step.items():
                self._update(group, pieces, step, gradient_scale)
        return loss

    def _update(self, group: dict[str, Any], pieces: dict[nn.Parameter, _C.Piece], step: int,
                gradient_scale: float) -> None:
        """Updates pieces of parameters of a group, all of them in their step of this number."""
        beta1, beta2 = group.get("betas", (0.0, 0.0))
        self._rule_of(group).update(list(pieces.values()), lr=float(group["lr"]), beta1=beta1, beta2=beta2,
                                    eps=group.get("eps", 0.0), weight_decay=group["weight_decay"], step=step,
                                    gradient_scale=gradient_scale, master=self.master)

    def _next(self, parameter: nn.Parameter, group: dict[str, Any]) -> tuple[int, _C.Piece]:
        """The number of this parameter's step, and its local tensors."""
        state = self.state[parameter]
        if not state:
            self._start(parameter, state, group)
        if self._counts_steps(group):
            state.setdefault("step", torch.tensor(0.0)).add_(1)
        states = [local(state[name]) for name in STATES if name in state]
        if "remainder" in state:
            states[-1] = states[-1].view(torch.int16)
        first, key = self._place_of(parameter) if self.master == "none" else (0, 0)
        return int(state.get("step", 1)), _C.Piece([local(parameter), local(parameter.grad), *states], first, key)

    def _start(self, parameter: nn.Parameter, state: dict[str, Any], group: dict[str, Any]) -> None:
        model_of(parameter)  # made by now, so that parameters have their whole names
        if parameter.dtype == torch.float16 and self.master in ("split", "none"):
            raise ConfigError(f"[optim] got master={self.master!r} with parameter '{self._name_of(parameter)}' of "
                              "torch.float16, expected 'fp32' or 'nearest' (others are for bfloat16); try 'fp32'")
        kept = self._rule_of(group).state(parameter.dtype, self._takes_eight_bits(parameter), self.master)
        for name, dtype, by_block in kept:
            state[name] = zeros_like(parameter, dtype, by_block)
            if name == "master":
                local(state[name]).copy_(local(parameter))

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
            if isinstance(parameter, DTensor) and not is_whole(parameter):
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


class Adam(ShardedOptimizer):
    """``torch.optim.Adam``: decay is added to the gradient."""

    kind = "adam"

    def __init__(self, params: Iterable, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.0, *, master: str = "nearest"):
        check_adam(lr, betas, eps, weight_decay)
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay), master)

    def _rule_of(self, group: dict[str, Any]) -> _C.UpdateRule:
        return elementwise_rule(self.kind)

    def _counts_steps(self, group: dict[str, Any]) -> bool:
        return True


class AdamW(Adam):
    """``torch.optim.AdamW``: Loshchilov and Hutter, "Decoupled weight decay regularization", 2019."""

    kind = "adamw"

    def __init__(self, params: Iterable, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 1e-2, *, master: str = "nearest"):
        super().__init__(params, lr, betas, eps, weight_decay, master=master)


class AdamW8bit(AdamW):
    """AdamW with moments of 8 bits: Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2022.

    States are those of bitsandbytes' AdamW8bit: codes ``state1`` and ``state2`` (uint8, of the parameter's shape) of
    its dynamic maps, with a scale for each block of 256 elements (``absmax1``, ``absmax2``); 2.03 bytes a parameter.
    The same bits for any number of ranks. Parameters below 4096 elements, those whose rows on a rank are no whole
    number of blocks (said at level INFO) and those whose names match ``exclude`` (globs) keep fp32 moments, ``exp_avg``
    and ``exp_avg_sq``.
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

    def __init__(self, params: Iterable, lr: float = 1e-3, momentum: float = 0.0, weight_decay: float = 0.0,
                 nesterov: bool = False, *, master: str = "nearest"):
        check("lr", lr, lr >= 0, "0 or more")
        check("weight_decay", weight_decay, weight_decay >= 0, "0 or more")
        # What torch's SGD has in its checkpoints besides.
        torchs = dict(dampening=0.0, maximize=False, foreach=None, differentiable=False, fused=None)
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, **torchs),
                         master)

    def _rule_of(self, group: dict[str, Any]) -> _C.UpdateRule:
        return elementwise_rule("sgd", group["momentum"], group["nesterov"])


class Muon(ShardedOptimizer):
    """``torch.optim.Muon`` for the matrices of a sharded model, and AdamW for what is none: Jordan et al., "Muon: an
    optimizer for hidden layers in neural networks", 2024.

    A matrix moves by its momentum, which ``ns_steps`` Newton-Schulz iterations make orthogonal. The state
    ``momentum_buffer`` is sharded as the parameter; in a step each matrix is whole on one rank, its executor.
    Collective. The same bits for any number of ranks.

    Groups with ``use_muon=False`` are updated by AdamW, with ``betas`` and ``eps``: embeddings, the head, norms and
    biases belong there, and everything that is no matrix must.

    products: the type of the iterations' products: "auto", bf16 (as torch's) where the device multiplies it by itself,
        else fp32; "fp32" or "bf16".
    adjust_lr_fn: what a matrix's learning rate is multiplied with: "original" (None), sqrt(max(1, rows / columns)); or
        "match_rms_adamw", 0.2 sqrt(max(rows, columns)), by which moves are of AdamW's size and its learning rate fits.
    """

    def __init__(self, params: Iterable, lr: float = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95,
                 nesterov: bool = True, ns_steps: int = 5, adjust_lr_fn: str | None = None, *,
                 betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8, products: str = "auto",
                 master: str = "nearest"):
        check_adam(lr, betas, eps, weight_decay)
        check("adjust_lr_fn", adjust_lr_fn, adjust_lr_fn in (None, "original", "match_rms_adamw"),
              "'original' or 'match_rms_adamw'")
        check("products", products, products in ("auto", "fp32", "bf16"), "'auto', 'fp32' or 'bf16'")
        defaults = dict(lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov, ns_steps=ns_steps,
                        ns_coefficients=COEFFICIENTS, adjust_lr_fn=adjust_lr_fn, products=products, betas=betas,
                        eps=eps, use_muon=True)
        super().__init__(params, defaults, master)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Groups of torch.optim.Muon lack what is AdamW's."""
        super().__setstate__(state)
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for parameter in group["params"]:
            if group["use_muon"] and parameter.dim() != 2:
                raise ConfigError(f"[optim] got parameter '{self._name_of(parameter)}' of sizes "
                                  f"{list(parameter.shape)}, expected matrices in groups of Muon's; "
                                  "try use_muon=False for its group")

    def _rule_of(self, group: dict[str, Any]) -> _C.UpdateRule:
        if not group["use_muon"]:
            return elementwise_rule("adamw")
        check("ns_steps", group["ns_steps"], 1 <= group["ns_steps"] <= 20, "1 to 20")
        check("ns_coefficients", group["ns_coefficients"], tuple(group["ns_coefficients"]) == COEFFICIENTS,
              str(COEFFICIENTS))
        return matrix_rule(group["momentum"], group["nesterov"], group["adjust_lr_fn"] == "match_rms_adamw",
                           group["ns_steps"], group["products"])

    def _counts_steps(self, group: dict[str, Any]) -> bool:
        return not group["use_muon"] or super()._counts_steps(group)

    def _update(self, group: dict[str, Any], pieces: dict[nn.Parameter, _C.Piece], step: int,
                gradient_scale: float) -> None:
        if not group["use_muon"]:
            return super()._update(group, pieces, step, gradient_scale)
        by_model: dict[_C.Model | None, list[nn.Parameter]] = defaultdict(list)
        for parameter in pieces:
            model = model_of(parameter)
            if model is None and isinstance(parameter, DTensor):
                raise ConfigError(f"[optim] got a DTensor of sizes {list(parameter.shape)} that sherd has not sharded, "
                                  "expected parameters of a model given to fully_shard")
            by_model[model].append(parameter)
        for model, matrices in by_model.items():
            self._rule_of(group).update_matrices(model, [pieces[p] for p in matrices],
                                                 [tuple(p.shape) for p in matrices], lr=float(group["lr"]),
                                                 weight_decay=group["weight_decay"], step=step,
                                                 gradient_scale=gradient_scale, master=self.master)


elementwise_rule = functools.cache(_C.UpdateRule)
matrix_rule = functools.cache(_C.MuonRule)


def model_of(parameter: nn.Parameter) -> _C.Model | None:
    """That a parameter's rows are spread in, made where it has not run yet; None for one that is not sharded."""
    unit = getattr(parameter, "_sherd_unit", None)
    if unit is not None and (module := unit()) is not None:
        return getattr(module, HELD).whole_model().model
    return None


def row_elements(parameter: torch.Tensor) -> int:
    return math.prod(parameter.shape[1:])


def zeros_like(parameter: torch.Tensor, dtype: torch.dtype, by_block: bool = False) -> torch.Tensor:
    """Zeros, sharded as the parameter: of its shape, or one for each block of its elements ([rows, blocks of a row]
    where rows are whole blocks, else [blocks])."""
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
