"""What FSDP2's modules can be told, by its names and meanings. It counts from when the model runs first."""
from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from torch import nn
from torch.distributed.tensor import Shard

from . import _C
from ._C import ConfigError

HELD = "_sherd_unit"  # the attribute of a module that holds its UnitHandle


@dataclasses.dataclass
class Told:
    """What a program has said of a unit."""
    sync: bool = True  # of a root: gradients are reduced
    all_reduce: bool = True  # of a root: over replicas too
    # Of a root: handles of units whose gradients are not reduced.
    holding: dict[int, Any] = dataclasses.field(default_factory=dict)
    divisor: float | None = None
    in_backward: _C.InBackward = _C.InBackward.unshard
    after_backward: _C.AfterBackward = _C.AfterBackward.reshard
    reduced_hook: Callable[[torch.Tensor], Any] | None = None
    prefetch: dict[_C.Pass, list[nn.Module]] = dataclasses.field(default_factory=dict)


def units_in(module: nn.Module, recurse: bool = True) -> Iterator[Any]:
    """The handles of the units in a module, itself among them."""
    for each in module.modules() if recurse else (module,):
        if HELD in each.__dict__:
            yield each.__dict__[HELD]


def tell(handle: Any) -> None:
    """Passes on what a unit was told, once there is a model."""
    if handle.root is None:
        return
    told, unit, root = handle.told, handle.unit, handle.root_module.__dict__[HELD]
    divisor = told.divisor or root.told.divisor or handle.world.size
    unit.set_divisor(float(divisor))
    unit.set_gradients(_C.Gradients.hold if id(handle) in root.told.holding else _C.Gradients.reduce)
    unit.set_in_backward(told.in_backward)
    unit.set_after_backward(told.after_backward)
    unit.set_reduced_hook(told.reduced_hook)
    for which, modules in told.prefetch.items():
        unit.set_prefetch(which, [module.__dict__[HELD].unit for module in modules])
    if handle is root:
        tell_gradients(handle)


def tell_gradients(root: Any) -> None:
    """What the following backwards of a whole model do with their gradients."""
    if root.root is not None:
        reduce = _C.Gradients.reduce if root.told.all_reduce else _C.Gradients.reduce_shard_axis
        root.root.model.set_gradients(reduce if root.told.sync else _C.Gradients.hold)


class Surface:
    """The methods of FSDP2's modules that a :class:`sherd.ShardedModule` has. Others, which come last in its class, are
    refused by their names."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """A module of the plain class: a slice of a sharded nn.Sequential is one."""
        plain = next(c for c in cls.__mro__ if not issubclass(c, Surface) and issubclass(c, nn.Module))
        module = plain.__new__(plain, *args, **kwargs)
        module.__init__(*args, **kwargs)
        return module

    def _get_fsdp_state(self) -> NoReturn:
        """What FSDP2's own methods and functions look at first."""
        name = sys._getframe(1).f_code.co_name
        raise ConfigError(f"[{name}] got a {type(self).__name__} that sherd has sharded, expected one of FSDP2's own: "
                          "it has no such streams, buffers and collectives; "
                          "try without it (or sherd.register_forward_method)")

    def reset_iter_state(self) -> None:
        """Nothing to do: after an exception the next forward starts anew by itself."""

    def set_is_last_backward(self, is_last_backward: bool) -> None:
        """Changes nothing: every backward waits for its own reductions."""

    def set_reduce_scatter_unused_params(self, reduce_scatter_unused_params: bool, *, recurse: bool = True) -> None:
        """Changes nothing: a parameter that another rank has used counts as zero here."""

    def set_force_sum_reduction_for_comms(self, enable: bool) -> None:
        """Changes nothing: gradients are summed, and then divided."""

    def set_requires_gradient_sync(self, requires_gradient_sync: bool, *, recurse: bool = True) -> None:
        """False: following backwards keep the gradients of this unit, and of those in it, on this rank (``no_sync``),
        for a later one that reduces the sum."""
        handle = self.__dict__[HELD]
        root = handle.root_module.__dict__[HELD]
        whole_model = handle is root and recurse
        others = list(units_in(root.module())) if not whole_model and not root.told.sync else []
        changed = list(root.told.holding.values()) + others
        if whole_model:
            root.told.sync = requires_gradient_sync
            root.told.holding = {}
        else:
            root.told.sync = True
            root.told.holding |= {id(other): other for other in others}
            for unit in units_in(self, recurse):
                changed.append(unit)
                root.told.holding.pop(id(unit), None)
                if not requires_gradient_sync:
                    root.told.holding[id(unit)] = unit
        for each in changed:
            tell(each)
        tell_gradients(root)

    def set_requires_all_reduce(self, requires_all_reduce: bool, *, recurse: bool = True) -> None:
        """False, on a mesh of two axes: following backwards reduce along the shard axis alone, and keep these sums
        (fp32, this rank's rows) for a later one that adds up the replicas too. Else it changes nothing. To be set on
        the root."""
        self._root_handle("set_requires_all_reduce").told.all_reduce = requires_all_reduce
        tell_gradients(self.__dict__[HELD])

    def _root_handle(self, caller: str) -> Any:
        handle = self.__dict__[HELD]
        if handle.root_module is not self:
            raise ConfigError(f"[{caller}] got a unit inside of another, expected the outermost: units of one model "
                              "reduce together; try it on the root")
        return handle

    def set_modules_to_forward_prefetch(self, modules: list[nn.Module]) -> None:
        """The units whose parameters are fetched while this one's forward runs, the same on every rank. Unset, and with
        []: the one that ran next the last time. Costs the memory of those units' parameters."""
        self._set_prefetch(_C.Pass.forward, modules)

    def set_modules_to_backward_prefetch(self, modules: list[nn.Module]) -> None:
        """The same for this unit's backward. Unset, and with []: the one that ran before it in forward."""
        self._set_prefetch(_C.Pass.backward, modules)

    def _set_prefetch(self, which: _C.Pass, modules: list[nn.Module]) -> None:
        handle = self.__dict__[HELD]
        for module in modules:
            if HELD not in module.__dict__ or module.__dict__[HELD].root_module is not handle.root_module:
                raise ConfigError(f"[prefetch] got a {type(module).__name__} that is no unit of this model, "
                                  "expected modules given to fully_shard")
        handle.told.prefetch[which] = list(modules)
        tell(handle)

    def set_reshard_after_forward(self, reshard_after_forward: bool, recurse: bool = True) -> None:
        """Whether whole parameters are given up between forward and backward; of all units inside too."""
        check_bool("set_reshard_after_forward", reshard_after_forward)
        for handle in units_in(self, recurse):
            handle.options.reshard_after_forward = reshard_after_forward
            if handle.root is not None:
                handle.unit.set_after_forward(after_forward(reshard_after_forward))

    def set_reshard_after_backward(self, reshard_after_backward: bool, *, recurse: bool = True) -> None:
        """False: whole parameters are kept from a backward to the next forward, or to an update: micro-batches after
        the first fetch nothing. Costs their memory where ranks exchange messages. The module shows its shards
        meanwhile."""
        check_bool("set_reshard_after_backward", reshard_after_backward)
        for handle in units_in(self, recurse):
            handle.told.after_backward = _C.AfterBackward.reshard if reshard_after_backward else _C.AfterBackward.keep
            tell(handle)

    def set_unshard_in_backward(self, unshard_in_backward: bool) -> None:
        """False: this unit's backward does without its parameters, as an embedding's does; where it does not, it is an
        error that names the parameter."""
        check_bool("set_unshard_in_backward", unshard_in_backward)
        self.__dict__[HELD].told.in_backward = _C.InBackward.unshard if unshard_in_backward else _C.InBackward.leave
        tell(self.__dict__[HELD])

    def set_gradient_divide_factor(self, factor: float) -> None:
        """What the sum of all ranks' gradients of this unit is divided by; the number of ranks at first. That of the
        root counts for all units that were not given one."""
        if not factor > 0:
            raise ConfigError(f"[set_gradient_divide_factor] got {factor!r}, expected a number above 0; try 1.0")
        handle = self.__dict__[HELD]
        handle.told.divisor = float(factor)
        for each in units_in(self, recurse=handle.root_module is self):
            tell(each)

    def set_reduce_scatter_divide_factor(self, factor: float) -> None:
        """The same, by its older name."""
        self.set_gradient_divide_factor(factor)

    def set_all_reduce_hook(self, hook: Callable[[torch.Tensor], Any], *, stream: Any = None) -> None:
        """``hook`` is given the reduced gradients of this unit, once a backward and a type of parameters: this rank's
        rows, in one tensor that it may change, before they are added to what there is. All ranks call it, in one order,
        at the end of the backward. None: none."""
        if stream is not None:
            raise ConfigError("[set_all_reduce_hook] got a stream, expected none: there are none on a CPU")
        self.__dict__[HELD].told.reduced_hook = hook
        tell(self.__dict__[HELD])


def after_forward(reshard: bool) -> _C.AfterForward:
    return _C.AfterForward.reshard if reshard else _C.AfterForward.show


def check_bool(caller: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"[{caller}] got {value!r}, expected True or False")


def resharded(value: Any, ranks: int) -> bool | None:
    """What fully_shard's reshard_after_forward means for so many ranks that rows are spread over."""
    if value is None or isinstance(value, bool):
        return value
    if not isinstance(value, int) or value < 1 or ranks % value != 0:
        raise ConfigError(f"[fully_shard] got reshard_after_forward={value!r}, expected True, False, None or a number "
                          f"that divides the {ranks} ranks that rows are spread over; try True")
    return value > 1 or ranks == 1


def check_placements(placement: Callable | None, parameters: Iterator[tuple[str, nn.Parameter]]) -> None:
    """shard_placement_fn may say what is so anyway."""
    for name, parameter in parameters if placement is not None else ():
        wanted = placement(parameter)
        if wanted is None or wanted == Shard(0) or (isinstance(wanted, Shard) and wanted.dim == -parameter.dim()):
            continue
        raise ConfigError(f"[fully_shard] got {wanted!r} from shard_placement_fn for parameter '{name}', expected "
                          "Shard(0) or None: sherd spreads rows over the mesh's last axis; "
                          "try without shard_placement_fn")
