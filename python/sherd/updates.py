"""What has to happen around an optimizer's step: torch's own hooks tell of every optimizer's."""
from __future__ import annotations

from typing import Iterable

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ._C import ConfigError
from .parameters import ShardedParameter
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
        raise ConfigError(f"[step] got {optimizer} with parameter '{sharded._sherd_name}' as it was before the model was sharded, "
                          "expected the sharded one; try to make the optimizer after fully_shard")
    for module in modules:
        handle = getattr(module, HELD)
        if id(parameter) in handle.ignored or id(parameter) in handle.root.elsewhere:
            continue
        name = next((name for name, p in module.named_parameters() if p is parameter), None)
        if name is not None:
            raise ConfigError(f"[step] got parameter '{name}', which was added after the model was sharded, expected a model that "
                              "is whole by then: nobody sums its gradient over the ranks; try to add it before fully_shard, or "
                              "ignored_params")
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


def after_step(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
    for root in roots_of(optimizer):
        handle = getattr(root, HELD)
        handle.root.model.note_update()
        handle.world.transport.say("")


register_optimizer_step_pre_hook(before_step)
register_optimizer_step_post_hook(after_step)
