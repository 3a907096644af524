"""What has to happen around an optimizer's step: torch's own hooks tell of every optimizer's."""
from __future__ import annotations


from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ._C import ConfigError
from .parameters import ShardedParameter
from .units import HELD


def models_of(optimizer: Optimizer) -> list:
    """The sharded models whose parameters an optimizer updates."""
    roots: dict[int, object] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if isinstance(parameter, ShardedParameter):
                root = parameter._sherd_root and parameter._sherd_root()
                if root is not None:
                    roots[id(root)] = getattr(root, HELD).root
            elif getattr(parameter, "_sherd_sharded", lambda: None)() is not None:
                raise ConfigError(
                    f"[step] got {type(optimizer).__name__} with parameter '{parameter._sherd_sharded()._sherd_name}' as it was "
                    "before the model was sharded, expected the sharded one; try to make the optimizer after fully_shard")
    return [root for root in roots.values() if root is not None]


def before_step(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
    for root in models_of(optimizer):
        root.model.before_update()


def after_step(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
    for root in models_of(optimizer):
        root.model.note_update()


register_optimizer_step_pre_hook(before_step)
register_optimizer_step_post_hook(after_step)
