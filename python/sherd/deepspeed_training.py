"""An engine that trains as DeepSpeed 0.19.8's does: what is skipped, counted, clipped and said,
by a DeepSpeed configuration."""
from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from . import _C, engine
from ._C import ConfigError
from .clipping import gradient_norm
from .deepspeed_settings import TYPES, Settings
from .faces import sharded_of

log = logging.getLogger("sherd")
LARGE = 4096  # elements


class TrainingEngine(engine.Engine):
    """What deepspeed.initialize makes, but for names that only some programs look for. The optimizer has DeepSpeed's
    ``overflow``, ``cur_scale`` and ``loss_scale`` besides."""

    def follow(self, document: Settings) -> None:
        """By a configuration, from here on."""
        self.deepspeed = document
        self.global_samples = 0
        self._step_applied = self._in_step = self._scaled = False
        self.basic_optimizer = self.optimizer
        scale = self.loss_scale_options
        # DeepSpeed's scale doubles a step later than ours; without ZeRO it skips steps at the smallest one for ever.
        self.judge = _C.StepJudge(
            clip=self.settings["clip"],
            loss_scale=scale.after_window() if isinstance(self.settings["loss_scale"], dict) else scale,
            non_finite="skip" if document.skips_non_finite else "stop",
            stop_at_smallest=document.stage > 0 and self.dynamic_loss_scale())
        if document.document.get("gradient_allreduce_op", "mean") == "sum":
            self.module.set_gradient_divide_factor(1.0)
        self._tell_optimizer(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        result = super().forward(*args, **kwargs)
        divides = self.gradient_accumulation_steps() > 1 or self.judge.scales
        if self.optimizer is None or not divides or not torch.is_grad_enabled():
            return result
        self._scaled = False
        self._choose_reduction()
        return tree_map_only(torch.Tensor, self._watched, result)

    def _watched(self, output: torch.Tensor) -> torch.Tensor:
        """The output, as what a backward that is not the engine's enters the model by: its gradients are divided as the
        engine's losses. Another tensor: the model's own losses may go through its other outputs."""
        if not output.requires_grad:
            return output
        # Of a copy, a change in place (loss += ...) keeps the hook; outputs too large to copy are rarely changed.
        output = output.clone() if output.numel() <= LARGE else output.view_as(output)
        output.register_hook(self._divided)
        return output

    def _divided(self, gradient: torch.Tensor) -> torch.Tensor | None:
        if TrainingEngine._backwards > 0:
            return None
        if self.judge.scales and not self._scaled:
            raise ConfigError("[backward] got a loss that is not scaled, expected one that is, for fp16; try "
                              "engine.backward(loss), or engine.scale(loss).backward()")
        return gradient / self.gradient_accumulation_steps()

    _backwards = 0  # of all engines, under way: a loss may go through the models of several

    def backward(self, loss: torch.Tensor, retain_graph: bool = False, scale_wrt_gas: bool = True) -> torch.Tensor:
        TrainingEngine._backwards += 1
        try:
            return super().backward(loss, retain_graph, scale_wrt_gas)
        finally:
            TrainingEngine._backwards -= 1

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """For loss.backward() in the place of engine.backward(loss): multiplied with the loss scale."""
        self._check_optimizer("scale")
        self._scaled = True
        return loss * self.loss_scale

    def step(self, lr_kwargs: dict | None = None) -> None:
        """See :meth:`sherd.engine.Engine.step`. Gradients that are not finite skip the update, as in DeepSpeed."""
        if self._inside_no_sync:
            raise ConfigError("[step] got a call inside no_sync(), expected it after: gradients are of this rank alone "
                              "there")
        self._step_applied, self._in_step = False, True
        self._schedule_arguments = lr_kwargs or {}
        steps, skipped = self.global_steps, self.skipped_steps
        boundary = self.is_gradient_accumulation_boundary()
        try:
            super().step()
        finally:
            self._in_step = False
        if not boundary:
            return
        self._step_applied = self.skipped_steps == skipped
        self._tell_optimizer(not self._step_applied)
        self.global_samples += self.train_batch_size()
        every = self.deepspeed.steps_per_print
        if every and self.global_steps != steps and self.global_steps % every == 0 and self.world.rank == 0:
            log.info("step=%d, skipped=%d, lr=%s, mom=%s", self.global_steps, self.skipped_steps, self.get_lr(),
                     self.get_mom())

    def _skip(self) -> None:
        if not self.judge.scales:
            origin = self._origin_of_non_finite()
            if self.world.rank == 0:
                log.warning("[step] gradients are not finite, the first were %s: this step is skipped, as DeepSpeed "
                            "does", origin)
        self._norm = math.inf
        super()._skip()

    def _tell_optimizer(self, overflow: bool) -> None:
        if self.optimizer is not None:
            self.optimizer.overflow = overflow
            self.optimizer.cur_scale = self.optimizer.loss_scale = self.loss_scale

    def _clips_all(self) -> bool:
        """DeepSpeed without ZeRO and in fp32 clips and clears all of the model's gradients, else the optimizer's."""
        return self.deepspeed.stage == 0 and self.deepspeed.kind == "fp32"

    def _gradient_norm(self) -> float:
        return gradient_norm(self.module) if self._clips_all() else super()._gradient_norm()

    def _drop_gradients(self) -> None:
        if self._clips_all():
            self.zero_grad()
        else:
            super()._drop_gradients()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Of all parameters."""
        for parameter in map(sharded_of, self.module.parameters()):
            parameter.grad = None

    def is_gradient_accumulation_boundary(self) -> bool:
        return super().is_gradient_accumulation_boundary() if self.deepspeed.managed else self._in_step

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        if not self.deepspeed.managed:
            raise ConfigError("[set_gradient_accumulation_boundary] got a call with managed_gradient_accumulation "
                              "false, expected none: each step() is a boundary")
        super().set_gradient_accumulation_boundary(is_boundary)

    def was_step_applied(self) -> bool:
        """Whether the last step() updated the parameters."""
        return self._step_applied

    def get_global_grad_norm(self) -> torch.Tensor | None:
        """Of the last step, before clipping; None before the first, inf where it was skipped."""
        return None if self._norm is None else torch.tensor(self._norm)

    @contextlib.contextmanager
    def coalesce_grad_reduction(self) -> Iterator[None]:
        """Tunes DeepSpeed's reductions; gradients are the same."""
        yield

    # Sizes of batches.

    def train_batch_size(self) -> int:
        return self.train_micro_batch_size_per_gpu() * self.gradient_accumulation_steps() * self.world.size

    def train_micro_batch_size_per_gpu(self) -> int:
        return self.settings["batch"]["micro"]

    def set_train_batch_size(self, train_batch_size: int) -> None:
        """By other numbers of micro-batches."""
        rows = self.train_micro_batch_size_per_gpu() * self.world.size
        if train_batch_size % rows != 0 or train_batch_size <= 0:
            raise ConfigError(f"[set_train_batch_size] got {train_batch_size}, "
                              f"expected a multiple of {rows}, the rows of a micro-batch on all ranks")
        self.settings["batch"]["accumulate"] = train_batch_size // rows

    def set_train_micro_batch_size(self, micro_batch_size: int) -> None:
        self.settings["batch"]["micro"] = micro_batch_size

    def get_batch_info(self) -> tuple[int, int, int]:
        return self.train_batch_size(), self.train_micro_batch_size_per_gpu(), self.gradient_accumulation_steps()

    def loader(self, data: Dataset, collate_fn: Callable | None = None) -> DataLoader:
        """This rank's micro-batches, shuffled alike on all ranks; the last may be smaller."""
        sampler = DistributedSampler(data, num_replicas=self.world.size, rank=self.world.rank)
        return DataLoader(data, batch_size=self.train_micro_batch_size_per_gpu(), sampler=sampler,
                          collate_fn=collate_fn,
                          drop_last=bool(self.deepspeed.document.get("dataloader_drop_last", False)))

    def load_checkpoint(self, load_dir: Any, tag: str | None = None) -> tuple[str | None, dict]:
        result = super().load_checkpoint(load_dir, tag)
        self.global_samples = self.global_steps * self.train_batch_size()
        self._tell_optimizer(False)
        return result

    # What the configuration says.

    def gradient_clipping(self) -> float:
        return self.deepspeed.clip

    def managed_gradient_accumulation(self) -> bool:
        return self.deepspeed.managed

    def steps_per_print(self) -> float | None:
        return self.deepspeed.steps_per_print

    def zero_optimization(self) -> bool:
        return self.deepspeed.stage > 0

    def zero_optimization_stage(self) -> int:
        return self.deepspeed.stage

    def zero_optimization_partition_gradients(self) -> bool:
        return self.deepspeed.stage >= 2

    def zero_optimization_partition_weights(self) -> bool:
        return self.deepspeed.stage >= 3

    def fp16_enabled(self) -> bool:
        return self.deepspeed.kind == "fp16"

    def bfloat16_enabled(self) -> bool:
        return self.deepspeed.kind == "bf16"

    def fp16_auto_cast(self) -> bool:
        return self.deepspeed.section("fp16").get("auto_cast") is True

    def dynamic_loss_scale(self) -> bool:
        return not self.deepspeed.section("fp16").get("loss_scale")

    def get_data_types(self) -> tuple[torch.dtype, torch.dtype]:
        """What is computed with, and what gradients add up in."""
        return TYPES[self.deepspeed.kind], torch.float32

    @property
    def communication_data_type(self) -> torch.dtype:
        return TYPES[self.settings["precision"].get("reduce") or self.deepspeed.kind]

    def optimizer_name(self) -> str | None:
        name = self.deepspeed.section("optimizer").get("type")
        return name.lower() if name and name.lower() in ("adam", "adamw", "adagrad") else name

    def optimizer_params(self) -> dict | None:
        return self.deepspeed.section("optimizer").get("params")

    def scheduler_name(self) -> str | None:
        return self.deepspeed.section("scheduler").get("type")

    def scheduler_params(self) -> dict | None:
        return self.deepspeed.section("scheduler").get("params")

    def get_mom(self) -> list:
        key = "momentum" if self.optimizer_name() in ("SGD", "RMSprop") else "betas"
        return [] if self.optimizer is None else [group.get(key, 0.0) for group in self.optimizer.param_groups]

    def get_type(self) -> list:
        return [] if self.optimizer is None else [group.get("type", 0.0) for group in self.optimizer.param_groups]
