"""DeepSpeed's learning-rate schedules, by its names and parameters: WarmupLR, WarmupDecayLR, WarmupCosineLR, OneCycle,
LRRangeTest.

Each sets the learning rates of an optimizer's groups when it is made, for the first step, and again after every step.
"""
from __future__ import annotations

import inspect
import logging
import math
from typing import Any

from torch.optim import Optimizer, lr_scheduler

from ._C import ConfigError

log = logging.getLogger("sherd")


class Schedule:
    """What the schedules share. ``last_batch_iteration`` is the number of steps made less one: all of the state.

    A subclass's start() are the rates of the first step, its rates() those after a step.
    """

    def __init__(self, optimizer: Optimizer, last_batch_iteration: int):
        self.optimizer = optimizer if isinstance(optimizer, Optimizer) else optimizer.optimizer
        self.last_batch_iteration = last_batch_iteration
        self._last_lr: list[float] | None = None

    def begin(self) -> None:
        """The rates of the first step, unless this goes on from another one."""
        if self.last_batch_iteration == -1:
            self._set(self.start())

    def start(self) -> list[float]:
        raise NotImplementedError

    def rates(self) -> list[float]:
        raise NotImplementedError

    def get_lr(self) -> list[float]:
        return self.start() if self.last_batch_iteration < 0 else self.rates()

    def get_last_lr(self) -> list[float] | None:
        return self._last_lr

    def step(self, last_batch_iteration: int | None = None) -> None:
        self.last_batch_iteration = (self.last_batch_iteration + 1
                                     if last_batch_iteration is None else last_batch_iteration)
        self._set(self.get_lr())

    def state_dict(self) -> dict[str, int]:
        return {"last_batch_iteration": self.last_batch_iteration}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.last_batch_iteration = state_dict["last_batch_iteration"]

    def _set(self, rates: list[float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates):
            group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _each(self, value: Any, name: str) -> list:
        """One value a group, of one or of as many."""
        groups = len(self.optimizer.param_groups)
        if not isinstance(value, (list, tuple)):
            return [value] * groups
        check(name, value, len(value) == groups, f"one number, or {groups}, as there are groups")
        return list(value)


def check(name: str, value: Any, fine: bool, expected: str) -> None:
    if not fine:
        raise ConfigError(f"[scheduler] got {name} {value!r}, expected {expected}")


class Warmup:
    """The rise from 0 to 1 in a number of steps, by their logarithm or in a line."""

    def __init__(self, steps: int, kind: str):
        check("warmup_num_steps", steps, isinstance(steps, int) and steps > 0, "a whole number above 0")
        if kind not in ("log", "linear"):
            log.warning("[scheduler] got warmup_type %r: taken for 'log', as DeepSpeed does", kind)
        self.steps, self.linear = max(2, steps), kind == "linear"

    def __call__(self, step: int) -> float:
        return step / self.steps if self.linear else 1.0 / math.log(self.steps) * math.log(step + 1)


class WarmupLR(Schedule):
    """From warmup_min_lr up to warmup_max_lr (None: the optimizer's), where it stays."""

    def __init__(self, optimizer: Optimizer, warmup_min_lr: float | list[float] = 0.0,
                 warmup_max_lr: float | list[float] | None = None, warmup_num_steps: int = 1000,
                 warmup_type: str = "log", last_batch_iteration: int = -1):
        super().__init__(optimizer, last_batch_iteration)
        self.warmup = Warmup(warmup_num_steps, warmup_type)
        if warmup_max_lr is None:
            warmup_max_lr = [group["lr"] for group in self.optimizer.param_groups]
        self.least, self.most = self._each(warmup_min_lr, "warmup_min_lr"), self._each(warmup_max_lr, "warmup_max_lr")
        self.begin()

    def start(self) -> list[float]:
        return self.least

    def after(self, step: int) -> float:
        return 1.0

    def rates(self) -> list[float]:
        step = self.last_batch_iteration
        share = self.warmup(step) if step < self.warmup.steps else self.after(step)
        return [least + (most - least) * share for least, most in zip(self.least, self.most)]


class WarmupDecayLR(WarmupLR):
    """As WarmupLR, then in a line down to warmup_min_lr at total_num_steps."""

    def __init__(self, optimizer: Optimizer, total_num_steps: int, warmup_min_lr: float | list[float] = 0.0,
                 warmup_max_lr: float | list[float] = 0.001, warmup_num_steps: int = 1000, warmup_type: str = "log",
                 last_batch_iteration: int = -1):
        self.total = total_num_steps
        super().__init__(optimizer, warmup_min_lr, warmup_max_lr, warmup_num_steps, warmup_type, last_batch_iteration)
        warn_of_no_decay(self.total, self.warmup.steps)

    def after(self, step: int) -> float:
        return max(0.0, float(self.total - step) / float(max(1.0, self.total - self.warmup.steps)))


class WarmupCosineLR(Schedule):
    """The optimizer's own rates times a ratio: up from warmup_min_ratio to 1,
    then by a cosine down to cos_min_ratio."""

    def __init__(self, optimizer: Optimizer, total_num_steps: int, warmup_min_ratio: float = 0.0,
                 warmup_num_steps: int = 1000, cos_min_ratio: float = 0.0001, warmup_type: str = "log",
                 last_batch_iteration: int = -1):
        super().__init__(optimizer, last_batch_iteration)
        self.warmup = Warmup(warmup_num_steps, warmup_type)
        self.total, self.least, self.last = total_num_steps, warmup_min_ratio, cos_min_ratio
        self.own = [group["lr"] for group in self.optimizer.param_groups]
        warn_of_no_decay(self.total, self.warmup.steps)
        self.begin()

    def start(self) -> list[float]:
        return [0.0 for _ in self.own]

    def ratio(self) -> float:
        step = self.last_batch_iteration
        if step < self.warmup.steps:
            return self.least + self.warmup(step) * (1.0 - self.least)
        way = min(1.0, (step - self.warmup.steps + 1) / max(1, self.total - self.warmup.steps))
        return max(0.0, self.last + (1.0 - self.last) * ((1 + math.cos(math.pi * way)) / 2))

    def rates(self) -> list[float]:
        ratio = self.ratio()
        return [own * ratio for own in self.own]


def warn_of_no_decay(total: int, warmup: int) -> None:
    if total < warmup:
        log.warning("[scheduler] total_num_steps %d is less than warmup_num_steps %d", total, warmup)


class OneCycle(Schedule):
    """From cycle_min_lr to cycle_max_lr and back, the momentum the other way round; then a decay.

    The momentum is the first of the betas; the second is then 0.99. A stair count cuts that half of the cycle into so
    many steps.
    """

    def __init__(self, optimizer: Optimizer, cycle_min_lr: float | list[float], cycle_max_lr: float | list[float],
                 decay_lr_rate: float = 0.0, cycle_first_step_size: int = 2000,
                 cycle_second_step_size: int | None = None, cycle_first_stair_count: int = 0,
                 cycle_second_stair_count: int | None = None, decay_step_size: int = 0, cycle_momentum: bool = True,
                 cycle_min_mom: float | list[float] = 0.8, cycle_max_mom: float | list[float] = 0.9,
                 decay_mom_rate: float = 0.0, last_batch_iteration: int = -1):
        super().__init__(optimizer, last_batch_iteration)
        self.up = float(cycle_first_step_size)
        self.down = self.up if cycle_second_step_size is None else float(cycle_second_step_size)
        check("cycle_first_step_size", cycle_first_step_size, self.up > 0, "a number above 0")
        check("cycle_second_step_size", cycle_second_step_size, self.down >= 0, "0 or more")
        self.stairs = (cycle_first_stair_count,
                       cycle_first_stair_count if cycle_second_stair_count is None else cycle_second_stair_count)
        self.decay_steps, self.decay_rate, self.decay_momentum = decay_step_size, decay_lr_rate, decay_mom_rate
        self.least, self.most = self._each(cycle_min_lr, "cycle_min_lr"), self._each(cycle_max_lr, "cycle_max_lr")
        self.cycles_momentum = cycle_momentum and "betas" in self.optimizer.defaults
        if cycle_momentum and not self.cycles_momentum:
            log.warning("[scheduler] cycle_momentum is off: %s has no betas", type(self.optimizer).__name__)
        self.momenta = list(zip(self._each(cycle_min_mom, "cycle_min_mom"), self._each(cycle_max_mom, "cycle_max_mom")))
        self.begin()
        if last_batch_iteration == -1 and self.cycles_momentum:
            self._set_momenta([least for least, _ in self.momenta])

    def start(self) -> list[float]:
        return self.least

    def get_lr(self) -> list[float]:
        return self.rates()

    def step(self, batch_iteration: int | None = None) -> None:
        super().step(batch_iteration)
        if self.cycles_momentum:
            self._set_momenta(self._momenta())

    def _set_momenta(self, momenta: list[float]) -> None:
        for group, momentum in zip(self.optimizer.param_groups, momenta):
            group["betas"] = (momentum, 0.99)

    def _height(self) -> float:
        """0 at the least, 1 at the most."""
        step, total, first = self.last_batch_iteration + 1, self.up + self.down, self.up / (self.up + self.down)
        x = 1.0 + step / total - math.floor(1 + step / total)
        height, stairs = (x / first, self.stairs[0]) if x <= first else ((x - 1) / (first - 1), self.stairs[1])
        if stairs <= 0:
            return height
        step = step % total  # whole numbers: no rounding loses a stair
        stair = step * stairs / self.up if step <= self.up else (total - step) * stairs / self.down
        return math.floor(stair) / stairs

    def _decays(self) -> float:
        return (self.last_batch_iteration - (self.up + self.down) + 1) / self.decay_steps

    def _in_cycle(self) -> bool:
        return self.last_batch_iteration < self.up + self.down

    def rates(self) -> list[float]:
        if self._in_cycle():
            height = self._height()
            return [least + (most - least) * height for least, most in zip(self.least, self.most)]
        if math.isclose(self.decay_steps, 0) or math.isclose(self.decay_rate, 0):
            return self.least
        return [least / (1 + self.decay_rate * self._decays()) for least in self.least]

    def _momenta(self) -> list[float]:
        if self._in_cycle():
            height = self._height()
            return [most - (most - least) * height for least, most in self.momenta]
        if math.isclose(self.decay_steps, 0) or math.isclose(self.decay_momentum, 0):
            return [most for _, most in self.momenta]
        return [most * (1 + self.decay_momentum * self._decays()) for _, most in self.momenta]


class LRRangeTest(Schedule):
    """From lr_range_test_min_lr upwards, by lr_range_test_step_rate times that every lr_range_test_step_size steps, in
    a line or a staircase."""

    def __init__(self, optimizer: Optimizer, lr_range_test_min_lr: float | list[float] = 1e-3,
                 lr_range_test_step_size: int = 2000, lr_range_test_step_rate: float = 1.0,
                 lr_range_test_staircase: bool = False, last_batch_iteration: int = -1):
        super().__init__(optimizer, last_batch_iteration)
        check("lr_range_test_step_size", lr_range_test_step_size,
              isinstance(lr_range_test_step_size, int) and lr_range_test_step_size > 0, "a whole number above 0")
        self.least = self._each(lr_range_test_min_lr, "lr_range_test_min_lr")
        self.size, self.rate, self.staircase = lr_range_test_step_size, lr_range_test_step_rate, lr_range_test_staircase
        self.begin()

    def start(self) -> list[float]:
        return self.least

    def step(self, batch_iteration: int | None = None) -> None:
        super().step(batch_iteration)

    def rates(self) -> list[float]:
        intervals = float(self.last_batch_iteration + 1) / self.size
        rise = 1 + self.rate * (math.floor(intervals) if self.staircase else intervals)
        return [least * rise for least in self.least]


SCHEDULES = {kind.__name__: kind for kind in (LRRangeTest, OneCycle, WarmupLR, WarmupDecayLR, WarmupCosineLR)}


def schedule_of(section: dict, optimizer: Optimizer) -> Any:
    """Of a section "scheduler": DeepSpeed's by name, else torch's. Raises ConfigError."""
    kind, params = section["type"], section.get("params") or {}
    made = SCHEDULES.get(kind) or getattr(lr_scheduler, str(kind), None)
    if made is None:
        raise ConfigError(f"[as_deepspeed] got scheduler.type {kind!r}, "
                          f"expected {', '.join(SCHEDULES)} or one of torch.optim.lr_scheduler")
    if unset := [key for key, value in params.items() if value == "auto"]:
        raise ConfigError(f"[as_deepspeed] got scheduler.params.{unset[0]} 'auto', expected a value: only Trainer and "
                          "Accelerate fill it in; try a number")
    try:
        inspect.signature(made).bind(optimizer, **params)
    except TypeError as error:
        raise ConfigError(f"[as_deepspeed] got scheduler.params of {kind} that it does not take: {error}; expected "
                          f"{', '.join(list(inspect.signature(made).parameters)[1:])}") from error
    return made(optimizer, **params)
