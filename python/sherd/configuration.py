"""What a native configuration means for a PyTorch model: read with its defaults; its mesh; its optimizer and groups."""
from __future__ import annotations

import json
import logging
import os
import pathlib

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer

from . import _C, distributed, optim
from ._C import ConfigError

log = logging.getLogger("sherd")
Config = dict | str | os.PathLike


def read_config(config: Config | None) -> tuple[dict, set[str]]:
    """The configuration with its defaults (docs/config.md), and the keys that were given."""
    if config is None or isinstance(config, dict):
        name = "config"
        try:
            text = json.dumps(config or {})
        except TypeError as error:
            raise ConfigError(f"[initialize] got a config that is not JSON ({error}), "
                              "expected numbers, text, lists and dicts") from error
    else:
        name = str(pathlib.Path(config))
        try:
            text = pathlib.Path(config).read_text()
        except (OSError, ValueError) as error:
            raise ConfigError(f"[initialize] got {name!r} as config, which cannot be read ({error}), "
                              "expected a JSON file or a dict") from error
    settings = json.loads(_C.read_program_config(text, name))
    return settings, set(json.loads(text))


def check_own_master(master: str | None) -> None:
    """Of 16-bit parameters, with an optimizer that is not ours to tell."""
    if master is not None:
        raise ConfigError(f"[initialize] got precision.master {master!r} with an optimizer of yours, expected none: it "
                          "rounds as it does; try sherd.optim.AdamW(..., master=), or no optimizer")
    log.warning("[initialize] 16-bit parameters are updated by an optimizer of yours: without a master small updates "
                "are lost; try sherd.optim.AdamW(..., master='split')")


def mesh_of(settings: dict) -> DeviceMesh | None:
    """Of two axes for hsdp, else None: the world."""
    if settings["strategy"] != "hsdp":
        return None
    axes = settings["mesh"]
    return distributed.hybrid_mesh(axes["replicate"], None if axes["shard"] == "auto" else axes["shard"])


def parameter_groups(settings: dict, model: nn.Module) -> list[dict]:
    """All trainable parameters: in the first of the configuration's groups that matches, else with those that decay, or
    with those whose names match `no_decay`."""
    choices = [(group["match"],
                {key: tuple(value) if key == "betas" else value for key, value in group.items() if key != "match"})
               for group in settings["groups"]]
    choices += [(settings["no_decay"], {"weight_decay": 0.0}), (["*"], {})]
    members: list[list] = [[] for _ in choices]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            first = next(i for i, (globs, _) in enumerate(choices)
                         if any(_C.glob_matches(glob, name) for glob in globs))
            members[first].append(parameter)
    groups = [{"params": parameters, "weight_decay": settings["weight_decay"], **own}
              for parameters, (_, own) in zip(members, choices)]
    return [group for group in [groups[-1], *groups[:-1]] if group["params"]]


def optimizer_of(settings: dict, model: nn.Module, master: str) -> Optimizer:
    """sherd's own, from the configuration."""
    groups = parameter_groups(settings, model)
    if not groups:
        raise ConfigError("[initialize] got a model without trainable parameters, expected one or more")
    if settings["type"] == "muon":
        scale = {"match_adamw": "match_rms_adamw"}.get(settings["scale"], settings["scale"])
        return optim.Muon(matrices_apart(groups, settings["adamw"], model), lr=settings["lr"],
                          momentum=settings["momentum"], nesterov=settings["nesterov"], adjust_lr_fn=scale,
                          products=settings["products"], betas=tuple(settings["betas"]), eps=settings["eps"],
                          master=master)
    kind = optim.BY_NAME[settings["type"]]
    options = {option.name: settings[option.name] for option in kind.entry.options}
    if "betas" in options:
        options["betas"] = tuple(options["betas"])  # as torch's groups have them
    if kind.eight_bits:
        options["exclude"] = settings["exclude"]
    return kind(groups, **options, master=master)


def matrices_apart(groups: list[dict], adamw: list[str], model: nn.Module) -> list[dict]:
    """Each group as one of matrices, for Muon, and one of the rest, where it has such."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    def is_muons(parameter: nn.Parameter) -> bool:
        return parameter.dim() == 2 and not any(_C.glob_matches(glob, names[parameter]) for glob in adamw)
    parts = [{**group, "params": [p for p in group["params"] if is_muons(p) == use_muon], "use_muon": use_muon}
             for group in groups for use_muon in (True, False)]
    return [part for part in parts if part["params"]]
