"""An engine around a model, its optimizer and its schedule, called as DeepSpeed's.

    engine, optimizer, _, _ = sherd.initialize(model=model, config={"strategy": "zero3", "optimizer": {"lr": 3e-4}})
    for batch in data:
        loss = engine(batch)
        engine.backward(loss)
        engine.step()
"""
from __future__ import annotations

import contextlib
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from . import _C, clipping, distributed, optim, progress, updates
from ._C import ConfigError
from .checkpoint import load_training, save_training
from .configuration import Config, check_own_master, mesh_of, optimizer_of, parameter_groups, read_config
from .faces import sharded_of
from .parameters import ShardedParameter
from .precision import Precision
from .rows import over_rows, rows_like
from .schedule import schedule_of
from .sharding import shard
from .units import HELD, ShardedModule

log = logging.getLogger("sherd")


def initialize(*, model: nn.Module, config: Config | None = None,
               optimizer: Optimizer | Callable[[list], Optimizer | None] | None = None,
               lr_scheduler: Any = None, training_data: Dataset | None = None, collate_fn: Callable | None = None,
               ) -> tuple[Engine, Optimizer | None, DataLoader | None, Any]:
    """Shards a model and gives it an engine. Collective.

    model: a plain module, or one that fully_shard has had already.
    config: a dict, or a JSON file: the settings of docs/config.md without those that are the command's alone; `units`
        names the classes of the blocks to shard on their own.
    optimizer: one that was made with the plain model's parameters, or a function of parameter groups; default: sherd's
        own from the configuration. A function that returns None: an engine that only computes.
    lr_scheduler: an object with step(), or a function of the optimizer; default: the configuration's schedule (with an
        optimizer of yours, only if the configuration has one).

    Returns the engine, the optimizer, a DataLoader of `training_data` with this rank's rows, and the schedule. Raises
    ConfigError before anything is changed.
    """
    settings, given = read_config(config)
    own = optimizer is None
    if not isinstance(model, nn.Module):
        raise ConfigError(f"[initialize] got a {type(model).__name__} as model, expected a torch.nn.Module")
    if distributed._world is None:
        distributed.init(transport=settings["transport"], timeout=settings["timeout_s"], _timeout_argument="timeout_s")
    plain = dict(model.named_parameters())
    precision = Precision(settings["precision"], settings["loss_scale"])
    has_16_bits = any(p.requires_grad and p.dtype in (torch.bfloat16, torch.float16) for p in plain.values())
    if optimizer is not None and (has_16_bits or precision.storage != torch.float32):
        check_own_master(settings["precision"]["master"])
    if not isinstance(model, ShardedModule):
        reshard = settings["reshard_after_forward"]
        shard(model, settings["units"], mesh=mesh_of(settings), strategy=settings["strategy"],
              reshard_after_forward=None if reshard == "auto" else reshard,
              persistent_below=settings["persistent_below"], **precision.prepare(model))
    elif "precision" in given:
        raise ConfigError("[initialize] got precision with a model that is sharded already, expected a plain one; "
                          "try mp_policy in fully_shard")
    if optimizer is None:
        optimizer = optimizer_of(settings["optimizer"], model, precision.master)
    elif isinstance(optimizer, Optimizer):
        move_parameters(optimizer, plain, dict(model.named_parameters()))
    else:
        optimizer = optimizer(parameter_groups(settings["optimizer"], model))
    if optimizer is None:
        lr_scheduler = None
    elif lr_scheduler is None:
        if own or "schedule" in given:
            lr_scheduler = schedule_of(optimizer, settings["schedule"], settings["steps"])
    elif not hasattr(lr_scheduler, "step"):
        lr_scheduler = lr_scheduler(optimizer)
    engine = Engine(model, optimizer, lr_scheduler, settings, precision.loss_scale)
    loader = None if training_data is None else engine.loader(training_data, collate_fn)
    return engine, optimizer, loader, lr_scheduler


class Engine(nn.Module):
    """A sharded model and what trains it. Made by :func:`initialize`.
    All ranks make the same calls in the same order."""

    def __init__(self, module: nn.Module, optimizer: Optimizer | None, lr_scheduler: Any, settings: dict,
                 loss_scale: _C.LossScaleOptions | None = None):
        super().__init__()
        self.module = module
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.settings = settings
        self.world = distributed.world()
        self.device = torch.device("cpu")
        self.global_steps = 0
        self.micro_steps = 0
        self.skipped_steps = 0  # for overflow under the loss scale
        self.loss_scale_options = loss_scale
        self.judge = _C.StepJudge(clip=settings.get("clip"), loss_scale=loss_scale)
        self._boundary: bool | None = None  # as told by set_gradient_accumulation_boundary
        self._norm: float | None = None
        self._loss: torch.Tensor | None = None
        self._inside_no_sync = False
        self._schedule_arguments: dict[str, Any] = {}  # of lr_scheduler.step()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def backward(self, loss: torch.Tensor, retain_graph: bool = False, scale_wrt_gas: bool = True) -> torch.Tensor:
        """loss.backward() of the loss divided by the accumulation steps, and the reduction of its gradients: of every
        backward, or of the last alone where the configuration says batch.reduce = "last". Returns the divided loss."""
        self._check_optimizer("backward")
        self._loss = loss.detach()
        if scale_wrt_gas and self.gradient_accumulation_steps() > 1:
            loss = loss / self.gradient_accumulation_steps()
        self._choose_reduction()
        (loss * self.loss_scale if self.judge.scales else loss).backward(retain_graph=retain_graph)
        return loss

    def step(self) -> None:
        """At the end of an accumulation: clips, updates, moves the schedule on and clears the gradients. Else only
        counts.

        An overflow under a loss scale skips the update on all ranks. Raises FaultError, before anything is updated, for
        gradients that are not finite: without a loss scale, or at the smallest one; it names where they came from.
        """
        self._check_optimizer("step")
        boundary = self.is_gradient_accumulation_boundary()
        self.micro_steps += 1
        if not boundary:
            return
        verdict = self.judge.judge(self._gradient_norm(), self._origin_of_non_finite)
        self._norm = verdict.grad_norm
        if not verdict.made:
            self._skip()
            return
        if isinstance(self.optimizer, optim.ShardedOptimizer):
            self.optimizer.step(gradient_scale=verdict.gradient_scale)
        else:
            clipping.scale_gradients(self._trained(), verdict.gradient_scale)
            if updates.needs_whole(self.optimizer):
                updates.step_on_whole(self.optimizer)
            else:
                self.optimizer.step()
        if self.lr_scheduler is not None:
            self.lr_scheduler.step(**self._schedule_arguments)
        self._drop_gradients()
        self.global_steps += 1

    def _choose_reduction(self) -> None:
        """Whether the next backward reduces."""
        late = self.settings["batch"]["reduce"] == "last" or self._inside_no_sync
        self.module.set_requires_gradient_sync(not late or self.is_gradient_accumulation_boundary())

    def _check_optimizer(self, call: str) -> None:
        if self.optimizer is None:
            raise ConfigError(f"[{call}] got an engine without an optimizer, expected one that trains; "
                              "try an optimizer in initialize")

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _gradient_norm(self) -> float:
        """Of what the optimizer updates. Others of the model may have gradients too,
        of all backwards since somebody cleared them."""
        trained = {id(parameter) for parameter in self._trained()}
        others = [(p, p.grad) for p in map(sharded_of, self.module.parameters()) if id(p) not in trained
                  and p.grad is not None]
        for parameter, _ in others:
            parameter.grad = None
        try:
            return clipping.gradient_norm(self.module)
        finally:
            for parameter, gradient in others:
                parameter.grad = gradient

    def _drop_gradients(self) -> None:
        """At the end of a step."""
        self.optimizer.zero_grad()

    @property
    def loss_scale(self) -> float:
        """What the loss of the step under way is multiplied with; 1 without loss scaling."""
        return self.judge.loss_scale

    def _skip(self) -> None:
        """Gradients overflowed: the update and the schedule stay out."""
        self.skipped_steps += 1
        self.global_steps += 1
        self._drop_gradients()

    def _origin_of_non_finite(self) -> str:
        return getattr(self.module, HELD).whole_model().model.origin_of_non_finite()

    def gradient_accumulation_steps(self) -> int:
        return self.settings["batch"]["accumulate"]

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        """From here on the caller says which backward is the last before a step."""
        self._boundary = is_boundary

    def is_gradient_accumulation_boundary(self) -> bool:
        """Whether the current (or next) backward is the last before a step."""
        if self._boundary is not None:
            return self._boundary
        return (self.micro_steps + 1) % self.gradient_accumulation_steps() == 0

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backwards inside keep their gradients on this rank, for one that reduces the sum."""
        before, self._inside_no_sync = self._inside_no_sync, True
        try:
            yield
        finally:
            self._inside_no_sync = before

    def get_global_grad_norm(self) -> float | None:
        """Of the last step, before clipping; None before the first."""
        return self._norm

    def last_loss(self) -> float:
        """Of this rank's last micro-batch, as it was given to backward(); NaN before the first."""
        return float("nan") if self._loss is None else self._loss.item()

    def memory(self) -> dict[str, int]:
        """Bytes that sherd holds on this rank, by what they are for, the states of its own optimizers among them.
        Shared memory is its owner's."""
        return getattr(self.module, HELD).whole_model().model.memory()

    def progress(self, batches: Iterable, every: int = 10) -> Iterator:
        """Yields `batches`, and after every so many steps says on rank 0 what became of them (this rank's loss, the
        norm, the learning rate, memory by kind): in a bar on a terminal, else at level INFO of the logger ``sherd``."""
        return progress.of_training(self, batches, every)

    def get_lr(self) -> list[float]:
        return [] if self.optimizer is None else [group["lr"] for group in self.optimizer.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none)

    def train_micro_batch_size_per_gpu(self) -> int:
        batch = self.settings["batch"]
        return batch["rows"] // self.world.size if batch["micro"] == "auto" else batch["micro"]

    def loader(self, data: Dataset, collate_fn: Callable | None = None) -> DataLoader:
        """This rank's micro-batches of a dataset, shuffled alike on all ranks."""
        sampler = DistributedSampler(data, num_replicas=self.world.size, rank=self.world.rank, shuffle=True)
        return DataLoader(data, batch_size=self.train_micro_batch_size_per_gpu(), sampler=sampler,
                          collate_fn=collate_fn, drop_last=True)

    def save_checkpoint(self, save_dir: str | os.PathLike, tag: str | None = None,
                        client_state: dict | None = None) -> str:
        """Writes parameters, optimizer, schedule and counters into save_dir/tag;
        tag: the number of steps. Collective."""
        tag = tag or f"global_step{self.global_steps}"
        save_training(self, pathlib.Path(save_dir), tag, client_state or {})
        return tag

    def load_checkpoint(self, load_dir: str | os.PathLike, tag: str | None = None) -> tuple[str | None, dict]:
        """Reads what save_checkpoint wrote, by any number of ranks; tag: the latest. Returns the folder (None where
        there is none yet) and the client_state. Collective."""
        return load_training(self, pathlib.Path(load_dir), tag)

    def destroy(self) -> None:
        """Lets go of the optimizer's state and the gradients."""
        if self.optimizer is not None:
            self.optimizer.zero_grad()
            self.optimizer.state.clear()


def sharded_state(state: dict, parameter: ShardedParameter) -> dict:
    """What an optimizer remembers of a parameter by element, as this rank's rows."""
    result = {}
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            if value.shape != parameter.shape:
                raise ConfigError(f"[initialize] got an optimizer with a state '{name}' of sizes {list(value.shape)} "
                                  f"for parameter '{parameter._sherd_name}' of {list(parameter.shape)}, expected one "
                                  "that has made no steps; try to load its state after initialize")
            value = over_rows(rows_like(value, parameter).clone(), parameter)
        result[name] = value
    return result


def move_parameters(optimizer: Optimizer, plain: dict[str, nn.Parameter], sharded: dict[str, nn.Parameter]) -> None:
    """Puts the sharded parameters in the place of those that the optimizer was made with."""
    new = {id(parameter): sharded[name] for name, parameter in plain.items()}
    for parameter in list(optimizer.state):  # torch's Adagrad makes its own at once
        if id(parameter) in new:
            optimizer.state[new[id(parameter)]] = sharded_state(optimizer.state.pop(parameter), new[id(parameter)])
    for group in optimizer.param_groups:
        group["params"] = [new.get(id(parameter), parameter) for parameter in group["params"]]
