"""What has to happen around an optimizer's step: torch's own hooks tell of every optimizer's."""
from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ._C import ConfigError
from .optim import ShardedOptimizer
from .parameters import ShardedParameter
from .rows import rows_like
from .units import HELD


def roots_of(optimizer: Optimizer) -> list[nn.Module]:
    """The sharded models whose parameters an optimizer updates."""
    modules: dict[int, nn.Module] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            root = isinstance(parameter, ShardedParameter) and parameter._sherd_root
            if root and (module := root()) is not None:
                modules[id(module)] = module
    return list(modules.values())


def check_plain(parameter: nn.Parameter, optimizer: str, modules: Iterable[nn.Module]) -> None:
    """A parameter that is not sharded may be ignored, or of another model; not one that sharding has missed."""
    sharded = getattr(parameter, "_sherd_sharded", None)
    if sharded is not None:
        raise ConfigError(f"[step] got {optimizer} with parameter '{sharded._sherd_name}' as it was before the model "
                          "was sharded, expected the sharded one; try to make the optimizer after fully_shard")
    for module in modules:
        handle = getattr(module, HELD)
        if id(parameter) in handle.ignored or id(parameter) in handle.root.elsewhere:
            continue
        name = next((name for name, p in module.named_parameters() if p is parameter), None)
        if name is not None:
            raise ConfigError(f"[step] got parameter '{name}', which was added after the model was sharded, expected a "
                              "model that is whole by then: nobody sums its gradient over the ranks; try to add it "
                              "before fully_shard, or ignored_params")
        handle.root.elsewhere.add(id(parameter))


def before_step(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
    roots = roots_of(optimizer)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not isinstance(parameter, ShardedParameter):
                check_plain(parameter, type(optimizer).__name__, roots)
    if roots:
        transport = getattr(roots[0], HELD).world.transport
        transport.say("the step of an optimizer")
    for root in roots:
        getattr(root, HELD).root.model.before_update()
        getattr(root, HELD).root.shorten()


def after_step(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
    for root in roots_of(optimizer):
        handle = getattr(root, HELD)
        handle.root.model.note_update()
        handle.world.transport.say("")


# torch's, transformers': what they do to an element depends on others, or on its place.
NEED_WHOLE = {"Adafactor", "Muon", "Rprop"}


def needs_whole(optimizer: Optimizer) -> bool:
    """Whether an optimizer that is not ours works on whole parameters only."""
    return (not isinstance(optimizer, ShardedOptimizer)
            and any(cls.__name__ in NEED_WHOLE for cls in type(optimizer).__mro__))


def step_on_whole(optimizer: Optimizer) -> None:
    """A step with one parameter after the other, whole on every rank, which then keeps its rows. What the optimizer
    remembers of them stays whole on every rank. Collective."""
    before_step(optimizer, (), {})
    groups = [(group, group["params"]) for group in optimizer.param_groups]
    try:
        for group, _ in groups:
            group["params"] = []
        for group, parameters in groups:
            for parameter in parameters:
                if isinstance(parameter, ShardedParameter) and parameter.grad is not None:
                    step_one(optimizer, group, parameter)
            group["params"] = []
    finally:
        for group, parameters in groups:
            group["params"] = parameters
    after_step(optimizer, (), {})


def step_one(optimizer: Optimizer, group: dict, parameter: ShardedParameter) -> None:
    whole = nn.Parameter(parameter.detach().full_tensor().clone())
    whole.grad = parameter.grad.detach().full_tensor()
    group["params"] = [whole]
    state = optimizer.state.pop(parameter, None)
    if state is not None:
        optimizer.state[whole] = state
    optimizer.step()
    optimizer.state[parameter] = optimizer.state.pop(whole, {})
    with torch.no_grad():
        parameter._local_tensor.copy_(rows_like(whole, parameter))


register_optimizer_step_pre_hook(before_step)
register_optimizer_step_post_hook(after_step)
