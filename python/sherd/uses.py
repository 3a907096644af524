"""Which units and modules of a model use which of its parameters, looked up at the first use."""
from __future__ import annotations

from torch import nn
from torch.distributed.tensor import DTensor

from ._C import ConfigError
from .faces import check_type
from .max_norm import ShorteningEmbedding, check_alone
from .parameters import ShardedParameter, WholeParameter
from .surface import HELD, Surface


def joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


class Uses:
    """All parameters of a model with the units and places that use them."""

    def __init__(self, root: nn.Module):
        self.modules: list[nn.Module] = []  # the units, parents first
        self.names: list[str] = []
        self.parents: list[int] = []
        self.places: dict[int, list[tuple[nn.Module, str]]] = {}  # by id of the parameter
        self.parameters: dict[int, DTensor] = {}
        self.fqns: dict[int, str] = {}
        self.unit_of: dict[int, int] = {}
        self._visited: dict[int, int] = {}  # modules with their units
        self._seen: set[tuple[int, str]] = set()
        self._visit(root, "", 0)

    def _visit(self, module: nn.Module, name: str, unit: int) -> None:
        if isinstance(module, Surface):
            if id(module) in self._visited:
                unit = self._visited[id(module)]
            else:
                self.modules.append(module)
                self.names.append(name)
                self.parents.append(unit)
                unit = self._visited[id(module)] = len(self.modules) - 1
        ignored = getattr(self.modules[unit], HELD).ignored
        for key, parameter in module._parameters.items():
            if parameter is None or id(parameter) in ignored:
                continue
            self._use(module, key, joined(name, key), parameter, unit)
        for key, child in module._modules.items():
            if child is not None:
                self._visit(child, joined(name, key), unit)

    def _use(self, module: nn.Module, key: str, fqn: str, parameter: nn.Parameter, unit: int) -> None:
        if not isinstance(parameter, nn.Parameter):  # torch.func.functional_call has put it there for this forward
            parameter = getattr(self.modules[unit], HELD).converted.get((id(module), key), parameter)
        if not isinstance(parameter, DTensor):
            raise ConfigError(f"[fully_shard] got parameter '{fqn}', which was not there when its unit was sharded, "
                              "expected a model that is whole by then; try fully_shard after all modules are added, or "
                              "ignored_params; and a forward of the model's own before torch.func.functional_call with "
                              "nn.Parameters")
        if id(parameter) not in self.parameters:
            self.parameters[id(parameter)] = parameter
            self.fqns[id(parameter)] = fqn
            self.unit_of[id(parameter)] = unit
            self.places[id(parameter)] = []
        self.unit_of[id(parameter)] = self._lowest_common(self.unit_of[id(parameter)], unit)
        if (id(module), key) not in self._seen:
            self._seen.add((id(module), key))
            self.places[id(parameter)].append((module, key))

    def _lowest_common(self, a: int, b: int) -> int:
        while a != b:  # parents come first
            a, b = (self.parents[a], b) if a > b else (a, self.parents[b])
        return a


def check(uses: Uses) -> None:
    whole = next((uses.fqns[key] for key, p in uses.parameters.items() if type(p) is WholeParameter), None)
    if whole is not None:
        raise ConfigError(f"[fully_shard] got a first forward inside of GatheredParameters of '{whole}', expected one "
                          "before it; try model.unshard() and model.reshard() first")
    on_meta = [uses.fqns[key] for key, p in uses.parameters.items() if p.device.type == "meta"]
    if on_meta:
        raise ConfigError("[fully_shard] got parameters on the meta device at the first forward: "
                          f"{', '.join(on_meta[:8])}{' and more' if len(on_meta) > 8 else ''}, expected values; try "
                          "model.to_empty(device='cpu') and an init function, or load_state_dict")
    for key, parameter in uses.parameters.items():
        check_type(parameter, uses.fqns[key])


def shortening_in(uses: Uses) -> list[tuple[ShorteningEmbedding, ShardedParameter]]:
    """The embeddings with max_norm and their parameters."""
    found = []
    for module in uses.modules:
        for embedding in getattr(module, HELD).shortening:
            key = id(embedding.module._parameters["weight"])
            if key in uses.parameters:
                check_alone(uses.fqns[key], len(uses.places[key]))
                found.append((embedding, uses.parameters[key]))
    return found
