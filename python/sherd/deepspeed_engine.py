"""sherd's engine with the names that DeepSpeed's has besides."""
from __future__ import annotations

import pathlib
from typing import Any

import torch

from . import checkpoint
from ._C import ConfigError
from .deepspeed_training import TrainingEngine
from .units import HELD

# What DeepSpeed's engine has of its own: these names are never looked for in the model.
NOT_THE_MODELS = frozenset("""
    autotuning_enabled checkpoint_engine client_lr_scheduler client_optimizer collate_fn config
    curriculum_learning_enabled data_efficiency_enabled eigenvalue_enabled expert_parallel_group flops_profiler get_mom
    get_type has_moe_layers losses memory_breakdown monitor mp_world_size mpu offload_states optimizer_name
    optimizer_params pipeline_parallelism reload_states scheduler_name scheduler_params seq_parallel_group
    sequence_parallel_size sparse_gradients_enabled steps_per_print summary_events timers training_data
    training_dataloader tput_timer wall_clock_breakdown""".split())


class DeepSpeedEngine(TrainingEngine):
    """What ``deepspeed.initialize`` returns. Other names are the model's, as in DeepSpeed."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in NOT_THE_MODELS:
                raise AttributeError(f"[as_deepspeed] got DeepSpeedEngine.{name}, which is not in sherd's stand-in for "
                                     "DeepSpeed 0.19.8") from None
            return getattr(super().__getattr__("module"), name)

    def zero_gather_16bit_weights_on_model_save(self) -> bool:
        return True

    # Who and where.
    @property
    def global_rank(self) -> int:
        return self.world.rank

    @property
    def local_rank(self) -> int:
        return self.world.local_rank

    @property
    def world_size(self) -> int:
        return self.world.size

    dp_world_size = world_size

    def step(self, lr_kwargs: dict | None = None) -> None:
        super().step(lr_kwargs)
        if self.was_step_applied():
            getattr(self.module, HELD).whole_model().model.settle()

    def compile(self, backend: Any = "inductor", compile_kwargs: dict | None = None, schedule: Any = None,
                passes: Any = None) -> None:
        """Compiles the model's forward in place (``torch.nn.Module.compile``)."""
        if schedule or passes:
            raise ConfigError("[compile] got a schedule or passes of DeepCompile, expected none; "
                              "try backend and compile_kwargs alone")
        self.module.compile(backend=backend, **(compile_kwargs or {}))
        self._compiled = True

    _compiled = False

    @property
    def is_compiled(self) -> bool:
        return self._compiled

    # Weights and checkpoints.
    def module_state_dict(self, *_: Any, exclude_frozen_parameters: bool = False, **__: Any) -> dict[str, torch.Tensor]:
        return self._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters)

    def _zero3_consolidated_16bit_state_dict(self, exclude_frozen_parameters: bool = False) -> dict[str, torch.Tensor]:
        """Whole weights on rank 0; {} elsewhere. Collective."""
        frozen = {name for name, p in self.module.named_parameters(remove_duplicate=False) if not p.requires_grad}
        return checkpoint.full_state_dict(self.module, without=frozen if exclude_frozen_parameters else ())

    _consolidated_16bit_state_dict = _zero3_consolidated_16bit_state_dict

    def save_16bit_model(self, save_dir: str, save_filename: str = "pytorch_model.bin",
                         exclude_frozen_parameters: bool = False) -> bool:
        """Whole weights, by rank 0. Collective."""
        state = self._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters)
        if self.world.rank == 0:
            pathlib.Path(save_dir).mkdir(parents=True, exist_ok=True)
            torch.save(state, pathlib.Path(save_dir) / save_filename)
        return True

    save_fp16_model = save_16bit_model

    def save_checkpoint(self, save_dir: str, tag: str | None = None, client_state: dict | None = None,
                        save_latest: bool = True, exclude_frozen_parameters: bool = False) -> bool:
        super().save_checkpoint(save_dir, tag, client_state)
        return True

    def load_checkpoint(self, load_dir: str, tag: str | None = None, load_module_strict: bool = True,
                        load_optimizer_states: bool = True, load_lr_scheduler_states: bool = True,
                        load_module_only: bool = False, **_: Any) -> tuple[str | None, dict]:
        if load_module_only or not load_optimizer_states:
            raise ConfigError("[load_checkpoint] got a part of a checkpoint to load, expected all of it; try without")
        return super().load_checkpoint(load_dir, tag)
