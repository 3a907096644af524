"""The package ``deepspeed`` that programs import under sherd.as_deepspeed: which names it has, and what stands behind
them.

A name that DeepSpeed has and sherd has not is an error that says so. What programs import without use is there, and an
error when it is used (:func:`absent`).
"""
from __future__ import annotations

import argparse
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import logging
import opcode
import os
import pathlib
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.utils.checkpoint
from torch import nn

from . import checkpoint, distributed
from . import deepspeed_parameters as parameters
from ._C import ConfigError
from .deepspeed_engine import DeepSpeedEngine
from .deepspeed_schedules import SCHEDULES

log = logging.getLogger("sherd")
VERSION = "0.19.8"  # of DeepSpeed, whose interface this is
STAND_IN = f"sherd's stand-in for DeepSpeed {VERSION}"


def missing(name: str) -> str:
    return f"'{name}' is not in {STAND_IN}"


def absent(name: str) -> type:
    """A class of DeepSpeed's that programs import, and may ask isinstance of, but cannot make."""
    def refuse(self, *_: Any, **__: Any) -> None:
        raise ConfigError(f"[as_deepspeed] got {name}, which is not in {STAND_IN}, expected data-parallel training by "
                          "deepspeed.initialize")
    return type(name.rpartition(".")[2], (), {"__init__": refuse, "__doc__": f"{name}: {missing(name)}."})


def absent_function(name: str) -> Callable:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConfigError(f"[as_deepspeed] got a call of {name}, which is not in {STAND_IN}")
    refuse.__name__ = name.rpartition(".")[2]
    return refuse


class Accelerator:
    """deepspeed.accelerator's, of a CPU."""
    _name = "cpu"

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(missing(f"get_accelerator().{name}"))

    def device_name(self, device_index: int | None = None) -> str:
        return "cpu"

    def current_device_name(self) -> str:
        return "cpu"

    def device(self, device_index: int | None = None) -> Any:
        return torch.device("cpu")

    def current_device(self) -> int:
        return int(os.environ.get("LOCAL_RANK", 0))

    def set_device(self, device_index: int) -> None:
        pass

    def device_count(self) -> int:
        return int(os.environ.get("LOCAL_WORLD_SIZE", 1))

    def is_available(self) -> bool:
        return True

    def is_synchronized_device(self) -> bool:
        return True

    def synchronize(self, device_index: int | None = None) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def communication_backend_name(self) -> str:
        return "gloo"

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def is_bf16_supported(self) -> bool:
        return True

    def is_fp16_supported(self) -> bool:
        return True

    def on_accelerator(self, tensor: torch.Tensor) -> bool:
        return tensor.device.type == "cpu"

    def pin_memory(self, tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return tensor


ACCELERATOR = Accelerator()


class FusedAdam(torch.optim.Adam):
    """torch's Adam, called as DeepSpeed's."""

    def __init__(self, params: Any, lr: float = 1e-3, bias_correction: bool = True, betas: tuple = (0.9, 0.999),
                 eps: float = 1e-8, adam_w_mode: bool = True, weight_decay: float = 0.0, amsgrad: bool = False,
                 set_grad_none: bool = True):
        if not bias_correction:
            raise ConfigError("[FusedAdam] got bias_correction=False, expected True")
        if amsgrad:
            raise ConfigError("[FusedAdam] got amsgrad=True, expected False, as in DeepSpeed")
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay,
                         decoupled_weight_decay=adam_w_mode)


class DeepSpeedCPUAdam(FusedAdam):
    """The same with its names for them."""

    def __init__(self, model_params: Any, lr: float = 1e-3, bias_correction: bool = True, betas: tuple = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 0, amsgrad: bool = False, adamw_mode: bool = True,
                 fp32_optimizer_states: bool = True):
        super().__init__(model_params, lr, bias_correction, betas, eps, adamw_mode, weight_decay, amsgrad)


class DeepSpeedCPUAdagrad(torch.optim.Adagrad):
    """torch's Adagrad, called as DeepSpeed's."""

    def __init__(self, model_params: Any, lr: float = 1e-2, eps: float = 1e-10, weight_decay: float = 0,
                 amsgrad: bool = False, fp32_optimizer_states: bool = True):
        if amsgrad:
            raise ConfigError("[DeepSpeedCPUAdagrad] got amsgrad=True, expected False")
        super().__init__(model_params, lr=lr, eps=eps, weight_decay=weight_decay)


def init_distributed(*_: Any, **__: Any) -> None:
    distributed.world()


def add_config_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments --deepspeed and --deepspeed_config."""
    group = parser.add_argument_group("DeepSpeed", "DeepSpeed configurations")
    group.add_argument("--deepspeed", default=False, action="store_true")
    group.add_argument("--deepspeed_config", default=None, type=str)
    return parser


def log_dist(message: str, ranks: list[int] | None = None, level: int = logging.INFO) -> None:
    """Logs on these ranks; None or [-1]: on all."""
    if not ranks or -1 in ranks or distributed.world().rank in ranks:
        log.log(level, "%s", message)


def set_log_level_from_string(level: str, custom_logger: logging.Logger | None = None) -> None:
    (custom_logger or log).setLevel(level.upper())


def checkpointed(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """deepspeed.checkpointing.checkpoint: torch's."""
    return torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=True, **kwargs)


def configure_checkpointing(mpu: Any = None, deepspeed_config: Any = None, partition_activations: Any = None,
                            contiguous_checkpointing: Any = None, num_checkpoints: Any = None,
                            checkpoint_in_cpu: Any = None, synchronize: Any = None, profile: Any = None,
                            **_: Any) -> None:
    if partition_activations or checkpoint_in_cpu:
        raise ConfigError("[as_deepspeed] got partition_activations or checkpoint_in_cpu, expected neither; "
                          "try without")


def fp32_state_dict(checkpoint_dir: str, tag: str | None = None, *_: Any, **__: Any) -> dict[str, torch.Tensor]:
    """get_fp32_state_dict_from_zero_checkpoint: whole fp32 weights of a folder that
    save_checkpoint wrote, on one process."""
    return {name: value.float() if value.is_floating_point() else value
            for name, value in checkpoint.saved_weights(pathlib.Path(checkpoint_dir), tag).items()}


def convert_checkpoint(checkpoint_dir: str, output: str, *_: Any, tag: str | None = None, **__: Any) -> None:
    """convert_zero_checkpoint_to_fp32_state_dict: the same into a file, or into pytorch_model.bin in a folder."""
    file = pathlib.Path(output)
    if file.suffix not in (".bin", ".pt", ".pth", ".ckpt"):
        file.mkdir(parents=True, exist_ok=True)
        file /= "pytorch_model.bin"
    torch.save(fp32_state_dict(checkpoint_dir, tag), file)


def load_fp32(model: nn.Module, checkpoint_dir: str, tag: str | None = None) -> nn.Module:
    model.load_state_dict(fp32_state_dict(checkpoint_dir, tag), strict=False)
    return model


def world_group() -> Any:
    return dist.group.WORLD


LOGGING = {"logger": log, "log_dist": log_dist, "set_log_level_from_string": set_log_level_from_string,
           "print_rank_0": lambda message, *_, **__: log_dist(message, [0])}
ZERO = {name: getattr(parameters, name) for name in ("Init", "GatheredParameters", "ZeroParamStatus", "ZeroParamType")}
# A parameter that another module uses too: such uses are found without being told.
ZERO |= {"register_external_parameter": lambda module, parameter: None,
         "unregister_external_parameter": lambda module, parameter: None}
# zero.Init of DeepSpeed wraps torch's constructors, transformers 5 the wrapper; sherd's leaves them alone.
WRAPPERS = {"zero_wrapper_for_fp_tensor_constructor": lambda function, *_, **__: function,
            "_orig_torch_arange": torch.arange}
SAFE = {name: getattr(parameters, name) for name in dir(parameters) if name.startswith("safe_")}
CHECKPOINTING = {"checkpoint": checkpointed, "configure": configure_checkpointing, "is_configured": lambda: True,
                 "reset": lambda: None}
COMM = {name: getattr(dist, name) for name in (
    "is_initialized", "is_available", "get_rank", "get_world_size", "barrier", "all_reduce", "all_gather",
    "all_gather_object", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast", "broadcast_object_list",
    "gather", "reduce", "scatter", "send", "recv", "new_group", "destroy_process_group", "ReduceOp", "get_global_rank",
    "monitored_barrier", "all_to_all_single")}
COMM |= {"init_distributed": init_distributed, "get_world_group": world_group,
         "get_local_rank": lambda: int(os.environ.get("LOCAL_RANK", 0))}
GROUPS = {"_get_data_parallel_group": world_group, "get_data_parallel_group": world_group,
          "_get_data_parallel_world_size": dist.get_world_size, "get_data_parallel_world_size": dist.get_world_size,
          "_get_data_parallel_rank": dist.get_rank, "get_data_parallel_rank": dist.get_rank,
          "get_model_parallel_world_size": lambda: 1, "_get_sequence_parallel_world_size": lambda: 1,
          "_get_sequence_parallel_rank": lambda: 0}
LEAVES = {name: lambda *_, **__: [] for name in ("set_z3_leaf_modules", "unset_z3_leaf_modules", "get_z3_leaf_modules")}
FP32 = {"get_fp32_state_dict_from_zero_checkpoint": fp32_state_dict,
        "convert_zero_checkpoint_to_fp32_state_dict": convert_checkpoint,
        "load_state_dict_from_zero_checkpoint": load_fp32}
ADAM = {"FusedAdam": FusedAdam, "DeepSpeedCPUAdam": DeepSpeedCPUAdam}
PACKAGE: dict[str, Any] = {"__path__": []}

# What stands in each module that programs import; submodules are attributes of their parents besides.
MODULES: dict[str, dict[str, Any]] = {
    "deepspeed": {**PACKAGE, "__version__": VERSION, "version": VERSION, "DeepSpeedEngine": DeepSpeedEngine,
                  "init_distributed": init_distributed, "add_config_arguments": add_config_arguments,
                  "log_dist": log_dist, "logger": log, "get_accelerator": lambda: ACCELERATOR,
                  "OnDevice": absent("deepspeed.OnDevice"),
                  "init_inference": absent_function("deepspeed.init_inference"),
                  "tp_model_init": absent_function("deepspeed.tp_model_init"),
                  "PipelineModule": absent("deepspeed.PipelineModule"),
                  "InferenceEngine": absent("deepspeed.InferenceEngine"),
                  "DeepSpeedConfig": absent("deepspeed.DeepSpeedConfig")},
    "deepspeed.accelerator": {"get_accelerator": lambda: ACCELERATOR},
    "deepspeed.checkpoint": {**PACKAGE},
    "deepspeed.checkpoint.utils": {"clone_tensors_for_torch_save": parameters.whole_tensors},
    "deepspeed.checkpointing": CHECKPOINTING,
    "deepspeed.comm": {**PACKAGE, **COMM},
    "deepspeed.comm.comm": COMM,
    "deepspeed.launcher": {**PACKAGE},
    "deepspeed.launcher.runner": {"DEEPSPEED_ENVIRONMENT_NAME": ".deepspeed_env"},
    "deepspeed.moe": {**PACKAGE},
    "deepspeed.moe.layer": {"MoE": absent("deepspeed.moe.layer.MoE")},
    "deepspeed.ops": {**PACKAGE},
    "deepspeed.ops.adagrad": {"DeepSpeedCPUAdagrad": DeepSpeedCPUAdagrad},
    "deepspeed.ops.adam": {**PACKAGE, **ADAM},
    "deepspeed.ops.lamb": {"FusedLamb": absent("deepspeed.ops.lamb.FusedLamb")},
    "deepspeed.ops.lion": {name: absent(f"deepspeed.ops.lion.{name}") for name in ("FusedLion", "DeepSpeedCPULion")},
    "deepspeed.pipe": {name: absent(f"deepspeed.pipe.{name}")
                       for name in ("PipelineModule", "LayerSpec", "TiedLayerSpec")},
    "deepspeed.runtime": {**PACKAGE},
    "deepspeed.runtime.activation_checkpointing": {**PACKAGE},
    "deepspeed.runtime.activation_checkpointing.checkpointing": CHECKPOINTING,
    "deepspeed.runtime.base_optimizer": {"DeepSpeedOptimizer": torch.optim.Optimizer,
                                         "ZeROOptimizer": torch.optim.Optimizer},
    "deepspeed.runtime.config": {"DeepSpeedConfig": absent("deepspeed.runtime.config.DeepSpeedConfig")},
    "deepspeed.runtime.engine": {"DeepSpeedEngine": DeepSpeedEngine},
    "deepspeed.runtime.lr_schedules": {"VALID_LR_SCHEDULES": list(SCHEDULES), **SCHEDULES},
    "deepspeed.runtime.utils": {"see_memory_usage": lambda *_, **__: None},
    "deepspeed.runtime.zero": {**PACKAGE, **ZERO},
    "deepspeed.runtime.zero.partition_parameters": {**ZERO, **WRAPPERS},
    "deepspeed.runtime.zero.stage3": {"DeepSpeedZeroOptimizer_Stage3": absent("DeepSpeedZeroOptimizer_Stage3")},
    "deepspeed.runtime.zero.stage_1_and_2": {"DeepSpeedZeroOptimizer": absent("DeepSpeedZeroOptimizer")},
    "deepspeed.utils": {**PACKAGE, **LOGGING, **SAFE, **LEAVES, "is_initialized": dist.is_initialized,
                        "OnDevice": absent("deepspeed.utils.OnDevice")},
    "deepspeed.utils.groups": GROUPS,
    "deepspeed.utils.logging": LOGGING,
    "deepspeed.utils.zero_to_fp32": FP32,
    "deepspeed.zero": ZERO,
}


# Lightning's strategies for DeepSpeed, which refuse other accelerators than CUDA's, and devices without a number.
FOR_CUDA = {"lightning.pytorch.strategies.deepspeed", "lightning.fabric.strategies.deepspeed",
            "pytorch_lightning.strategies.deepspeed", "lightning_fabric.strategies.deepspeed"}


def on_any_accelerator(name: str, path: Any) -> importlib.machinery.ModuleSpec | None:
    spec = importlib.machinery.PathFinder.find_spec(name, path)
    if spec is not None:
        load = spec.loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            load(module)
            module.CUDAAccelerator, module._validate_device_index_selection = object, lambda devices: None

        spec.loader.exec_module = exec_module
    return spec


def named(module: str) -> Callable[[str], Any]:
    """What Python asks for a name that the module does not have."""
    def __getattr__(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module '{module}' has no attribute '{name}'")
        caller = sys._getframe(1)
        if caller.f_lasti >= 0 and opcode.opname[caller.f_code.co_code[caller.f_lasti]] == "IMPORT_FROM":
            raise ImportError(missing(f"{module}.{name}"), name=name)  # Python replaces an AttributeError by less
        raise AttributeError(missing(f"{module}.{name}"))
    return __getattr__


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules, and the package's metadata, where an installed DeepSpeed would be found."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name in MODULES:
            return importlib.machinery.ModuleSpec(name, self, origin=STAND_IN, is_package="__path__" in MODULES[name])
        if name.startswith("deepspeed."):
            raise ImportError(missing(name), name=name)
        return on_any_accelerator(name, path) if name in FOR_CUDA else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return types.ModuleType(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__dict__.update(MODULES[module.__name__], __getattr__=named(module.__name__))
        if module.__name__ == "deepspeed":
            for name in MODULES:
                if name != "deepspeed":
                    importlib.import_module(name)

    def find_distributions(self, context: Any = None) -> list:
        return [Facts()] if context is None or context.name in (None, "deepspeed") else []


def install() -> None:
    """From here on, ``import deepspeed`` finds the stand-in."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())


class Facts(importlib.metadata.Distribution):
    """DeepSpeed's metadata."""

    def read_text(self, filename: str) -> str | None:
        return f"Metadata-Version: 2.1\nName: deepspeed\nVersion: {VERSION}\n" if filename == "METADATA" else None

    def locate_file(self, path: Any) -> pathlib.Path:
        return pathlib.Path(path)
