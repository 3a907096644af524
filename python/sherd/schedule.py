"""The native learning-rate schedules for torch's optimizers."""
from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from . import _C


def schedule_of(optimizer: Optimizer, settings: dict, steps: int) -> LambdaLR:
    """Warm-up, then constant, linear or cosine down to ``final_ratio`` at step steps - 1, as the command has them."""
    def scale(step: int) -> float:
        return _C.learning_rate_scale(settings["type"], settings["warmup"], steps, settings["final_ratio"], step)

    return LambdaLR(optimizer, scale)
