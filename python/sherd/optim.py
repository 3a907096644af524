"""sherd's own optimizers: the C++ updates, on this rank's rows, without a DTensor operation per parameter.

They are ``torch.optim`` optimizers in everything else: parameter groups, schedulers, hooks, ``state_dict`` under
torch's names (so torch's own AdamW reads it, and the reverse). Moments are DTensors, sharded as the parameters, of fp32
or 8 bits.
"""
from __future__ import annotations

import functools
import inspect
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
from ._C import ConfigError, clip_scale  # noqa: F401 names of this module too
from .clipping import clip_grad_norm_, gradient_norm  # noqa: F401
from .rows import is_whole, local, over_rows, own_rows
from .units import HELD

log = logging.getLogger("sherd")
UPDATED = (torch.float32, torch.bfloat16, torch.float16)
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Muon's polynomial, torch's
BLOCK = 256  # elements with one scale, of 8-bit moments
# The names of states, in the order in which a rule takes them.
STATES = ("exp_avg", "exp_avg_sq", "momentum_buffer", "state1", "state2", "absmax1", "absmax2", "master", "remainder")
ROUNDED_FROM = ("master", "remainder")  # states of 16-bit parameters


class ShardedOptimizer(Optimizer):
    """What the optimizers share. ``step`` costs about 2 microseconds a parameter beside the update itself.

    States are made at a parameter's first step, in memory that is booked with the model's (``Engine.memory``).

    master: what 16-bit parameters are rounded from after an update: "nearest" (nothing, as in torch), "fp32" (a state
        "master"), "split" (a state "remainder" with the 16 bits that bf16 lacks, as two bytes: an fp32 master without
        loss in half the memory), or "none" (nothing: rounded stochastically, bf16 only). fp32 parameters are their own.
    """

    eight_bits = False
    exclude: tuple[str, ...] = ()

    def __init__(self, params: Iterable, defaults: dict[str, Any], master: str = "nearest"):
        _C.check_master(master)
        self.master = master
        self._shards: dict[nn.Parameter, _C.OwnedShard] = {}
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "master": self.master, "exclude": self.exclude}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._shards = {}

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
            ready = [parameter for parameter in group["params"] if parameter.grad is not None]
            self._start([parameter for parameter in ready if not self.state[parameter]], group)
            by_step: dict[int, dict[nn.Parameter, _C.Piece]] = defaultdict(dict)
            for parameter in ready:
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
        if self._counts_steps(group):
            state.setdefault("step", torch.tensor(0.0)).add_(1)
        states = [local(state[name]) for name in STATES if name in state]
        if "remainder" in state:
            states[-1] = states[-1].view(torch.int16)
        tensors = [local(parameter), local(parameter.grad), *states]
        return int(state.get("step", 1)), _C.Piece(tensors, self._shard_of(parameter))

    def _start(self, parameters: list[nn.Parameter], group: dict[str, Any], loaded: dict | None = None) -> None:
        """Makes the states of parameters, of the kinds that they have in ``loaded`` if they are there."""
        by_model: dict[_C.Model | None, list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            by_model[model_of(parameter)].append(parameter)
        for model, own in by_model.items():
            eight_bits = [self._takes_eight_bits(p) if loaded is None else "state1" in loaded[p] for p in own]
            made = _C.make_states(model, [self._shard_of(p) for p in own], self._rule_of(group), eight_bits,
                                  self.master)
            for parameter, tensors in zip(own, made):
                self.state[parameter].update(
                    (name, like_parameter(parameter, tensor, by_block)) for name, tensor, by_block in tensors)

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

    def _shard_of(self, parameter: nn.Parameter) -> _C.OwnedShard:
        shard = self._shards.get(parameter)
        if shard is None:
            model = model_of(parameter)
            shard = None if model is None else model.shard_of(parameter)
            self._shards[parameter] = shard = shard or shard_elsewhere(parameter, self._name_of(parameter))
        return shard

    def _takes_eight_bits(self, parameter: nn.Parameter) -> bool:
        if not self.eight_bits:
            return False
        shard = self._shard_of(parameter)
        fit = shard.fit_of_moments(self.exclude)
        if fit == _C.MomentFit.cuts_blocks:
            log.info("optimizer: fp32 moments for '%s': its shards would cut a block of %d", shard.fqn, BLOCK)
        return fit == _C.MomentFit.eight_bits

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """torch's, which would give all states the parameters' type: they keep their own, and their memory."""
        super().load_state_dict(state_dict)
        saved = itertools.chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        ours = itertools.chain.from_iterable(group["params"] for group in self.param_groups)
        loaded = {parameter: state_dict["state"][key] for key, parameter in zip(saved, ours)
                  if key in state_dict["state"]}
        for group in self.param_groups:
            here = [parameter for parameter in group["params"] if parameter in loaded]
            others = {parameter: self.state.pop(parameter) for parameter in here}
            self._start(here, group, loaded)
            for parameter in here:
                self._take_over(parameter, loaded[parameter], others[parameter])

    def _take_over(self, parameter: nn.Parameter, loaded: dict[str, Any], others: dict[str, Any]) -> None:
        state = self.state[parameter]
        for name in ROUNDED_FROM:
            if name in loaded and name not in state:
                raise ConfigError(f"[optim] got a state '{name}' of parameter '{self._name_of(parameter)}' for an "
                                  f"optimizer with master={self.master!r}, expected one without; try the master that "
                                  "it was saved with")
        for name, value in loaded.items():
            if not isinstance(value, torch.Tensor) or name == "step":
                state[name] = others[name]
            elif name not in state:
                state[name] = value.detach().clone()
            elif state[name].shape != value.shape:
                raise ConfigError(f"[optim] got a state '{name}' of sizes {list(value.shape)} for parameter "
                                  f"'{self._name_of(parameter)}', expected {list(state[name].shape)}")
            else:
                with torch.no_grad():
                    local(state[name]).copy_(local(value))


class Elementwise(ShardedOptimizer):
    """An optimizer of the rule that its class is made for."""

    entry: _C.RuleEntry

    def __init__(self, params: Iterable, master: str, exclude: Iterable[str], values: dict[str, Any]):
        for option in self.entry.options:
            option.check(values[option.name])
        self.exclude = tuple(exclude)
        super().__init__(params, values, master)

    def _rule_of(self, group: dict[str, Any]) -> _C.UpdateRule:
        return elementwise_rule(self.entry.name, group.get("momentum", 0.0), group.get("nesterov", False))

    def _counts_steps(self, group: dict[str, Any]) -> bool:
        return self.entry.counts_steps or super()._counts_steps(group)


# What torch's optimizers have in their checkpoints besides.
TORCHS = {"sgd": dict(dampening=0.0, maximize=False, foreach=None, differentiable=False, fused=None)}
EIGHT_BITS = """ with moments of 8 bits: Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2022.

    States are those of bitsandbytes' optimizer of this name: codes (``state1``, of a second moment ``state2``; uint8,
    of the parameter's shape) of its dynamic maps, with a scale for each block of 256 elements (``absmax1``,
    ``absmax2``). The same bits for any number of ranks. Parameters below 4096 elements, those whose rows on a rank are
    no whole number of blocks (said at level INFO) and those whose names match ``exclude`` (globs) keep fp32
    moments."""


def optimizer_class(entry: _C.RuleEntry, base: type[Elementwise], eight_bits: bool) -> type[Elementwise]:
    """The class of a registered rule: its options are the arguments, with their defaults."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    ordinary = inspect.Parameter.POSITIONAL_OR_KEYWORD
    arguments = [inspect.Parameter("params", ordinary),
                 *(inspect.Parameter(option.name, ordinary, default=option.standard) for option in entry.options),
                 inspect.Parameter("master", keyword, default="nearest")]
    if eight_bits:
        arguments.append(inspect.Parameter("exclude", keyword, default=()))
    signature = inspect.Signature(arguments)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}: {error}") from None
        given.apply_defaults()
        values = dict(given.arguments)
        params, master, exclude = values.pop("params"), values.pop("master"), values.pop("exclude", ())
        Elementwise.__init__(self, params, master, exclude, {**values, **TORCHS.get(entry.name, {})})

    name = entry.class_name + ("8bit" if eight_bits else "")
    about = entry.class_name + EIGHT_BITS if eight_bits else entry.meaning
    options = "\n    ".join(f"{option.name}: {option.meaning}" for option in entry.options)
    return type(name, (base,), {"__init__": __init__, "__signature__": signature, "__module__": __name__,
                                "__doc__": f"{about}\n\n    {options}\n    ", "__qualname__": name, "entry": entry,
                                "eight_bits": eight_bits})


def define_optimizers() -> None:
    """AdamW, AdamW8bit and so on: one class of each registered rule, and one with 8-bit moments where it has such."""
    for entry in _C.update_rules():
        plain = optimizer_class(entry, Elementwise, False)
        kinds = [plain, optimizer_class(entry, plain, True)] if entry.eight_bits else [plain]
        for kind in kinds:
            globals()[kind.__name__] = kind
            BY_NAME[kind.__name__.lower()] = kind


BY_NAME: dict[str, type[ShardedOptimizer]] = {}  # as configurations call them
define_optimizers()


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
            self._rule_of(group).update_matrices(model, [pieces[p] for p in matrices], lr=float(group["lr"]),
                                                 weight_decay=group["weight_decay"], step=step,
                                                 gradient_scale=gradient_scale, master=self.master)


BY_NAME["muon"] = Muon
elementwise_rule = functools.cache(_C.UpdateRule)
matrix_rule = functools.cache(_C.MuonRule)


def model_of(parameter: nn.Parameter) -> _C.Model | None:
    """That a parameter's rows are spread in, made where it has not run yet; None for one that is not sharded."""
    unit = getattr(parameter, "_sherd_unit", None)
    if unit is not None and (module := unit()) is not None:
        return getattr(module, HELD).whole_model().model
    return None


def shard_elsewhere(parameter: nn.Parameter, name: str) -> _C.OwnedShard:
    """Of a parameter that is whole, or a DTensor that sherd has not sharded."""
    ranks, first = 1, 0
    if isinstance(parameter, DTensor) and not is_whole(parameter):
        ranks = parameter.device_mesh.size(-1)
        first = own_rows(parameter.shape[0], parameter.device_mesh).start
    return _C.OwnedShard(name, "", parameter.shape, first, ranks, local(parameter))


def row_elements(parameter: torch.Tensor) -> int:
    return math.prod(parameter.shape[1:])


def like_parameter(parameter: torch.Tensor, state: torch.Tensor, by_block: bool) -> torch.Tensor:
    """A state of this rank's rows, [n], in the form of the parameter and sharded as it: of its shape, or one value for
    each block of its elements ([rows, blocks of a row] where rows are whole blocks, else [blocks])."""
    shape, whole = local(parameter).shape, parameter.shape
    if state.dtype == torch.int16:  # as bytes: there are backends (Gloo) that know no int16
        state, shape, whole = state.view(torch.uint8), (*shape, 2), (*whole, 2)
    elif by_block:
        width = row_elements(parameter)
        by_row = (width // BLOCK,) if width % BLOCK == 0 else ()
        whole = (parameter.shape[0] if by_row else -(-parameter.numel() // BLOCK), *by_row)
        shape = (shape[0], *by_row) if by_row else state.shape
    state = state.view(shape)
    return over_rows(state, parameter, torch.Size(whole)) if isinstance(parameter, DTensor) else state


def check(name: str, value: Any, fine: bool, expected: str) -> None:
    if not fine:
        raise ConfigError(f"[optim] got {name}={value!r}, expected {expected}")


def check_adam(lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
    check("lr", lr, lr >= 0, "0 or more")
    check("betas", betas, len(betas) == 2 and all(0 <= b < 1 for b in betas), "two numbers from 0 to below 1")
    check("eps", eps, eps >= 0, "0 or more")
    check("weight_decay", weight_decay, weight_decay >= 0, "0 or more")
