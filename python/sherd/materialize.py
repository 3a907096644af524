"""Values for a model that was built and sharded on the meta device: no rank ever holds more than one module whole.

    with torch.device("meta"):
        model = Model()
    sherd.shard(model)
    sherd.materialize(model, safetensors="path/to/model")
"""
from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from . import distributed
from ._C import ConfigError
from .faces import sharded_over
from .parameters import ShardedParameter
from .progress import bar
from .rows import is_whole, own_rows, rows_like

INDEX = "model.safetensors.index.json"


def materialize(model: nn.Module, init: Callable[[nn.Module], None] | None = None, *,
                safetensors: str | os.PathLike | None = None) -> nn.Module:
    """Gives every parameter and buffer of ``model`` that is on the meta device its memory and its value.

    safetensors: a file, or a Hugging Face folder: each rank reads the rows that it owns. Names are those of
        state_dict().
    init: called with each module that has parameters or buffers of its own, whole ones meanwhile, in the order of
        ``model.modules()``; default: their reset_parameters(). Ranks must draw the same random numbers (one seed), and
        get the values of a model that was never sharded. With safetensors it serves what the files do not have.

    Before the first forward. Raises ConfigError for what neither gives.
    """
    files = Files(pathlib.Path(safetensors)) if safetensors is not None else None
    names = aliases(model)
    done: set[int] = set()
    for prefix, module in bar(list(model.named_modules()), "materializing modules"):
        keys = [k for k, p in module._parameters.items() if p is not None and p.device.type == "meta"
                and id(p) not in done]
        buffers = [k for k, b in module._buffers.items() if b is not None and b.device.type == "meta"]
        left = [key for key in keys
                if not from_files(module._parameters[key], names[id(module._parameters[key])], files)]
        done |= {id(module._parameters[key]) for key in keys}
        left_buffers = [key for key in buffers
                        if not buffer_from_files(module, key, f"{prefix}.{key}".lstrip("."), files)]
        if left or left_buffers:
            initialize_module(module, prefix, left, left_buffers, init)
    return model


def from_files(parameter: torch.Tensor, names: list[str], files: Files | None) -> bool:
    """Reads this rank's rows of a parameter, under any of its names. False where no file has it."""
    name = next((name for name in names if files is not None and name in files), None)
    if name is None:
        return False
    stored = files.holding(name).get_slice(name)
    if list(stored.get_shape()) != list(parameter.shape):
        raise ConfigError(f"[materialize] got '{name}' of shape {stored.get_shape()} in {files.where[name]}, expected "
                          f"{list(parameter.shape)}")
    if isinstance(parameter, ShardedParameter):
        give_rows(parameter,
                  stored[... if is_whole(parameter) else own_rows(parameter.shape[0], parameter.device_mesh)])
    else:
        give_value(parameter, stored[...])
    return True


def buffer_from_files(module: nn.Module, key: str, name: str, files: Files | None) -> bool:
    if files is None or name not in files:
        return False
    module._buffers[key] = files.holding(name).get_tensor(name).to(module._buffers[key].dtype)
    return True


def initialize_module(module: nn.Module, name: str, keys: list[str], buffers: list[str],
                      init: Callable[[nn.Module], None] | None) -> None:
    """Calls `init` while these parameters of the module are whole."""
    init = init or getattr(type(module), "reset_parameters", None)
    if init is None:
        what = ", ".join(f"'{name}.{key}'".replace("'.", "'") for key in (*keys, *buffers))
        raise ConfigError(f"[materialize] got {what} of a {type(module).__name__} without a value, expected it in the "
                          "files, or an init function; try materialize(model, init)")
    shards = {key: module._parameters[key] for key in keys}
    for key in keys:
        module._parameters[key] = nn.Parameter(torch.empty(shards[key].shape, dtype=shards[key].dtype, device="cpu"),
                                               shards[key].requires_grad)
    for key in buffers:
        module._buffers[key] = torch.empty_like(module._buffers[key], device="cpu")
    try:
        with torch.no_grad():
            init(module)
        for key in keys:
            whole = module._parameters[key].detach()
            if isinstance(shards[key], ShardedParameter):
                give_rows(shards[key], rows_like(whole, shards[key]))
                distributed.world().freed.note(whole.nbytes)
            else:
                give_value(shards[key], whole)
    finally:
        module._parameters.update(shards)


def give_rows(shard: ShardedParameter, rows: torch.Tensor) -> None:
    """The same parameter object, with this rank's rows in memory."""
    local = rows.to(shard.dtype).contiguous().clone()
    filled = sharded_over(local, shard, shard.device_mesh, shard._sherd_name)
    filled._sherd_unit = shard._sherd_unit
    torch.utils.swap_tensors(shard, filled)


def give_value(parameter: nn.Parameter, value: torch.Tensor) -> None:
    torch.utils.swap_tensors(parameter, nn.Parameter(value.to(parameter.dtype).clone(), parameter.requires_grad))


def aliases(model: nn.Module) -> dict[int, list[str]]:
    """All names of each parameter; a tied one has several, of which a file need not have more than one."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


class Files:
    """The safetensors files of a model, each opened once."""

    def __init__(self, path: pathlib.Path):
        self.where: dict[str, pathlib.Path] = {}
        self._opened: dict[pathlib.Path, Any] = {}
        if path.is_dir() and (path / INDEX).is_file():
            self.where = {name: path / file
                          for name, file in json.loads((path / INDEX).read_text())["weight_map"].items()}
            return
        file = path / "model.safetensors" if path.is_dir() else path
        self.where = {name: file for name in self._open(file).keys()}

    def __contains__(self, name: str) -> bool:
        return name in self.where

    def holding(self, name: str) -> Any:
        """The open file that has a tensor."""
        return self._open(self.where[name])

    def _open(self, file: pathlib.Path) -> Any:
        from safetensors import SafetensorError, safe_open
        try:
            if file not in self._opened:
                self._opened[file] = safe_open(file, framework="pt")
            return self._opened[file]
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"[materialize] got {str(file)!r}, which cannot be read ({error}), expected a "
                              "safetensors file or a folder with one") from error
