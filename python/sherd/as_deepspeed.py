"""sherd where a program expects DeepSpeed: Accelerate and transformers' Trainer run under it with no line changed.

    torchrun --nproc-per-node 2 -m sherd.as_deepspeed train.py ARGS     # in the place of: torchrun ... train.py ARGS

The module ``deepspeed`` that the program then imports is this file: ``initialize``, ``DeepSpeedEngine``, ``zero.Init``,
``zero.GatheredParameters``, ``comm`` and the few names that Accelerate 1.15 and transformers 4.57 look for. Accelerate is told
to take its DeepSpeed branch (``ACCELERATE_USE_DEEPSPEED``, ZeRO stage 3 unless ``ACCELERATE_DEEPSPEED_ZERO_STAGE`` says
another). A DeepSpeed configuration means what it means in DeepSpeed 0.19.8 (docs/numerics.md says where not): what is not followed is
warned of on rank 0, and what sherd cannot do is a ConfigError.
"""
from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.machinery
import importlib.metadata
import logging
import os
import pathlib
import runpy
import sys
import types
from typing import Any, Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from . import checkpoint, deepspeed_training, deepspeed_schedules, distributed, engine, gather, zero
from ._C import ConfigError
from .deepspeed_settings import Settings, cast_buffers, groups_of, keep_masters, native, native_of, read, settings_of  # noqa: F401 native

log = logging.getLogger("sherd")
VERSION = "0.19.8"  # of DeepSpeed, whose interface this is


class DeepSpeedEngine(deepspeed_training.TrainingEngine):
    """sherd's engine with the names that DeepSpeed's has besides."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def zero_gather_16bit_weights_on_model_save(self) -> bool:
        return True

    def _zero3_consolidated_16bit_state_dict(self, exclude_frozen_parameters: bool = False) -> dict[str, torch.Tensor]:
        state = checkpoint.full_state_dict(self.module)
        if exclude_frozen_parameters:
            frozen = {name for name, p in self.module.named_parameters() if not p.requires_grad}
            state = {name: value for name, value in state.items() if name not in frozen}
        return state

    _consolidated_16bit_state_dict = _zero3_consolidated_16bit_state_dict

    def save_16bit_model(self, save_dir: str, save_filename: str = "pytorch_model.bin",
                         exclude_frozen_parameters: bool = False) -> bool:
        """Whole weights, by rank 0. Collective."""
        state = self._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters)
        if self.world.rank == 0:
            pathlib.Path(save_dir).mkdir(parents=True, exist_ok=True)
            torch.save(state, pathlib.Path(save_dir) / save_filename)
        return True

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


def initialize(args: Any = None, model: nn.Module | None = None, optimizer: Any = None, model_parameters: Any = None,
               training_data: Any = None, lr_scheduler: Any = None, distributed_port: int | None = None, mpu: Any = None,
               dist_init_required: bool | None = None, collate_fn: Any = None, config: Any = None,
               config_params: Any = None, **_: Any) -> tuple:
    """deepspeed.initialize: see :func:`sherd.initialize`. A model without trainable parameters, and one for which neither the program
    nor the configuration has an optimizer, gets an engine that only computes."""
    document = config if config is not None else config_params
    named = getattr(args, "deepspeed_config", None)
    if document is not None and named is not None:
        raise ConfigError("[initialize] got config and args.deepspeed_config, expected one of them")
    if mpu is not None:
        raise ConfigError("[initialize] got mpu, expected none: sherd shards data-parallel training only")
    if not isinstance(model, nn.Module):
        raise ConfigError(f"[initialize] got a {type(model).__name__} as model, expected a torch.nn.Module")
    settings = settings_of(read(named if document is None else document))
    make = optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer_on(model, model_parameters, optimizer, settings)
    if lr_scheduler is None and settings.section("scheduler"):
        lr_scheduler = functools.partial(deepspeed_schedules.schedule_of, settings.section("scheduler"))
    if settings.kind != "fp32":
        keep_masters(model)
    cast_buffers(model, settings)
    made, *_ = engine.initialize(model=model, config=native_of(settings), optimizer=make, lr_scheduler=lr_scheduler)
    made.__class__ = DeepSpeedEngine
    made.follow(settings)
    loader = None if training_data is None else made.loader(training_data, collate_fn)
    return made, made.optimizer, loader, made.lr_scheduler


def optimizer_on(model: nn.Module, model_parameters: Any, make: Any, settings: Settings) -> Callable[[list], torch.optim.Optimizer | None]:
    """What makes the optimizer, of the program's function (`make`) or of the configuration, once the parameters are sharded."""
    groups = groups_of(model_parameters, model, settings.stage)
    trains = any(parameter.requires_grad for parameter in model.parameters())
    if trains and not groups:
        raise ConfigError("[initialize] got model_parameters without one that is trainable, expected some; try model.parameters()")

    def optimizer_of(_: list) -> torch.optim.Optimizer | None:
        own = make or settings.optimizer
        if own is None or not trains:
            return None
        sharded = dict(model.named_parameters())
        there = [{**group, "params": [sharded[name] for name in group["params"]]} for group in groups]
        plain = make is not None and len(there) == 1 and there[0].keys() == {"params"}
        return own(there[0]["params"] if plain else there)

    return optimizer_of


@contextlib.contextmanager
def zero_init(module: nn.Module | None = None, *_: Any, enabled: bool = True, **__: Any):
    """deepspeed.zero.Init: see :class:`sherd.zero.Init`."""
    if enabled:
        initialize_gathered()
    with zero.Init(module, enabled=enabled):
        yield


def initialize_gathered() -> None:
    """transformers' own initialization of a module looks at whole parameters, as far as they are sharded already."""
    try:
        from transformers import PreTrainedModel
    except ImportError:
        return
    plain = PreTrainedModel._initialize_weights
    if plain.__module__ == __name__:
        return

    def _initialize_weights(self: nn.Module, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        with gather.GatheredParameters(module.parameters(recurse=False), modifier_rank=0):
            plain(self, module, *args, **kwargs)

    PreTrainedModel._initialize_weights = _initialize_weights


def whole_tensors(state: dict, *_: Any) -> dict:
    """clone_tensors_for_torch_save: whole values on every rank. Collective."""
    return {name: value.full_tensor().clone() if isinstance(value, DTensor) else value for name, value in state.items()}


def init_distributed(*_: Any, **__: Any) -> None:
    distributed.world()


# What stands in each module that programs import.
MODULES: dict[str, dict[str, Any]] = {
    "deepspeed": {"__version__": VERSION, "__path__": [], "initialize": initialize, "DeepSpeedEngine": DeepSpeedEngine,
                  "init_distributed": init_distributed},
    "deepspeed.comm": {"is_initialized": dist.is_initialized, "init_distributed": init_distributed,
                       "get_rank": dist.get_rank, "get_world_size": dist.get_world_size, "barrier": dist.barrier},
    "deepspeed.zero": {"Init": zero_init, "GatheredParameters": gather.GatheredParameters},
    "deepspeed.utils": {"set_z3_leaf_modules": lambda *_: [], "logger": log},
    "deepspeed.runtime": {"__path__": []},
    "deepspeed.runtime.lr_schedules": {"VALID_LR_SCHEDULES": list(deepspeed_schedules.SCHEDULES), **deepspeed_schedules.SCHEDULES},
    "deepspeed.checkpoint": {"__path__": []},
    "deepspeed.checkpoint.utils": {"clone_tensors_for_torch_save": whole_tensors},
}


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules, and the package's metadata, where an installed DeepSpeed would be found."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in MODULES:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package="__path__" in MODULES[name])

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return types.ModuleType(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__dict__.update(MODULES[module.__name__])
        if module.__name__ == "deepspeed":
            for name in MODULES:
                if name != "deepspeed":
                    importlib.import_module(name)

    def find_distributions(self, context: Any = importlib.metadata.DistributionFinder.Context()) -> list:
        return [Facts()] if context.name in (None, "deepspeed") else []


class Facts(importlib.metadata.Distribution):
    """DeepSpeed's metadata."""

    def read_text(self, filename: str) -> str | None:
        return f"Metadata-Version: 2.1\nName: deepspeed\nVersion: {VERSION}\n" if filename == "METADATA" else None

    def locate_file(self, path: Any) -> pathlib.Path:
        return pathlib.Path(path)


def activate() -> None:
    """From here on, ``import deepspeed`` gets this file, and Accelerate takes its DeepSpeed branch."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())
    use_gloo_without_accelerators()
    os.environ.setdefault("ACCELERATE_USE_DEEPSPEED", "true")
    os.environ.setdefault("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    os.environ.setdefault("LOCAL_RANK", "0")
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")):
        os.environ.setdefault(name, value)


def use_gloo_without_accelerators() -> None:
    """Accelerate's DeepSpeed branch takes a machine without accelerators for one process; this makes it ask Gloo."""
    try:
        from accelerate.state import PartialState
    except ImportError:
        return
    ask = PartialState._prepare_backend

    def _prepare_backend(self, cpu: bool = False, *args: Any, **kwargs: Any) -> tuple:
        backend, kind = ask(self, cpu, *args, **kwargs)
        return (backend or ("gloo" if not cpu else None), kind)

    PartialState._prepare_backend = _prepare_backend


def main() -> None:
    if len(sys.argv) < 2:
        print("usage: python -m sherd.as_deepspeed PROGRAM.py [ARGUMENTS]", file=sys.stderr)
        sys.exit(2)
    activate()
    sys.argv = sys.argv[1:]
    sys.path[0] = str(pathlib.Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    # The program imports this file by its own name.
    from sherd import as_deepspeed
    as_deepspeed.main()
