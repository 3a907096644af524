"""fully_shard and shard: from a plain model to a sharded one."""
from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from . import _C, distributed
from ._C import ConfigError
from .faces import seen, shard_parameter
from .max_norm import shortening
from .parameters import ShardedParameter
from .precision import policy_of
from .root import KEEPS_TYPE, Options
from .surface import HELD, check_placements, resharded
from .units import ShardedModule, UnitHandle, unit_class
from .uses import joined


def fully_shard(module: nn.Module | list[nn.Module], *, mesh: DeviceMesh | None = None, strategy: str = "zero3",
                reshard_after_forward: bool | int | None = None, ignored_params: set[nn.Parameter] | None = None,
                persistent_below: int = 0, mp_policy: Any = None, uncast_params: Iterable[nn.Parameter] = (),
                shard_placement_fn: Callable | None = None, offload_policy: Any = None,
                dp_mesh_dims: Any = None) -> nn.Module | list[nn.Module]:
    """Makes ``module`` a unit: its parameters that no unit inside of it has are sharded over the ranks.

    To be called on blocks first and on the whole model last, as FSDP2's. From then on ``module.parameters()`` are
    DTensors (``Shard(0)``) outside forward and backward, for any optimizer; gradients are the mean over ranks. The same
    object is returned, of a subclass of its class (see :class:`ShardedModule`).

    Parameters may be frozen and unfrozen between steps, by all ranks alike. Frozen ones may be of any type. Those
    without dimensions are whole on every rank (``Replicate``).

    module: or a list of modules: each of them is a unit then (in FSDP2 they are one); what is inside of another is not.
    mesh: a device mesh of all ranks in order; default: the world. One of two axes, replicate x shard, is hybrid
        sharding (hsdp): rows are spread along the second, and each index of the first has them all. On one host, where
        ranks share one copy of everything, rows are spread over all ranks all the same.
    strategy: of the outermost module: zero3 (fsdp, hsdp), zero2, zero1 or ddp. What differs is how long whole
        parameters and gradients stay; the results are the same bits. Optimizer state is sharded in all.
    reshard_after_forward: whether whole parameters are given up between forward and backward; None: but for the root. A
        number of ranks is True, and 1 is False: nothing is kept on so many ranks, as FSDP2 does to spare messages; the
        results are the same.
    ignored_params: stay as they are, on every rank.
    persistent_below: bytes; of the outermost module: smaller groups of parameters of a unit stay whole on every rank.
    mp_policy: sherd's or FSDP2's MixedPrecisionPolicy: what this unit computes with, and what its gradients travel as.
    uncast_params: parameters of this unit that the policy leaves alone: norms in a model of 16 bits.
    shard_placement_fn, offload_policy: FSDP2's, for what is so anyway: Shard(0), and rows in the memory of the host.

    Raises ConfigError. Costs a copy of this rank's rows; the rest of the parameters' memory is freed.
    """
    if isinstance(module, (list, tuple)):
        options = {name: value for name, value in locals().items() if name != "module"}
        return fully_shard_all(module, options)
    if not isinstance(module, nn.Module):
        raise ConfigError(f"[fully_shard] got a {type(module).__name__}, expected a torch.nn.Module or a list of them")
    if isinstance(module, ShardedModule):
        raise ConfigError(f"[fully_shard] got a {type(module).__name__} that is sharded already, "
                          "expected each module once")
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)) and type(module).forward is nn.Module.forward:
        raise ConfigError(f"[fully_shard] got a {type(module).__name__}, which is never called, expected a module with "
                          "a forward; try fully_shard on each of its modules")
    _C.validate_strategy(strategy)
    if dp_mesh_dims is not None:
        raise ConfigError("[fully_shard] got dp_mesh_dims, expected None: a mesh of sherd's has no other axes than "
                          "those of data-parallel ranks; try mesh alone")
    world = distributed.world()
    check_mesh(mesh, strategy, world)
    reshard_after_forward = resharded(reshard_after_forward, world.size if mesh is None else mesh.size(-1))
    ignored = {id(p) for p in ignored_params or ()}
    check_placements(shard_placement_fn, ((name, p) for name, p in module.named_parameters()
                                          if id(p) not in ignored and not isinstance(p, DTensor)))
    options = Options(strategy, reshard_after_forward, persistent_below, spread_over(mesh, world), policy_of(mp_policy))
    for parameter in uncast_params:
        setattr(parameter, KEEPS_TYPE, True)
    handle = UnitHandle(module, options, world)
    handle.ignored = ignored
    convert(module, module, "", handle, set())
    module.__class__ = unit_class(type(module))
    module.__dict__[HELD] = handle
    module.register_state_dict_pre_hook(before_state)
    module.register_load_state_dict_pre_hook(before_load)
    module.register_load_state_dict_post_hook(after_load)
    return module


def before_state(module: nn.Module, *_) -> None:
    """A state dict is of the shards, also where whole parameters are shown until the next backward."""
    unit = getattr(module, HELD).unit
    if unit is not None:
        unit.show_shards()


def fully_shard_all(modules: list[nn.Module], options: dict[str, Any]) -> list[nn.Module]:
    """Each module of a list that is not inside of another."""
    if not modules:
        raise ConfigError("[fully_shard] got an empty list, expected modules")
    for module in modules:
        if not isinstance(module, nn.Module):
            raise ConfigError(f"[fully_shard] got a {type(module).__name__} in a list, expected torch.nn.Modules")
    inside = {id(part) for module in modules for part in list(module.modules())[1:]}
    for module in modules:
        if id(module) not in inside:
            fully_shard(module, **options)
    return modules


def before_load(module: nn.Module, state: dict[str, Any] | None = None, prefix: str = "", *_) -> None:
    """Other ranks may still read the parameters that are about to be overwritten,
    by tensors that are sharded as they are."""
    before_state(module)
    handle: UnitHandle = getattr(module, HELD)
    for name, parameter in module.named_parameters() if state else ():
        given = state.get(prefix + name)
        if type(parameter) is ShardedParameter and isinstance(given, torch.Tensor) and not isinstance(given, DTensor):
            raise ConfigError(f"[load_state_dict] got a plain tensor for the sharded parameter '{prefix}{name}', "
                              "expected a DTensor as in model.state_dict(); try sherd.load_full_state_dict(model, "
                              "state) for the state of a whole model")
    if handle.root is not None and handle.root_module is module:
        handle.root.model.before_update()


def after_load(module: nn.Module, _) -> None:
    """load_state_dict(assign=True) has put tensors of its own in the place of the parameters: their values count."""
    handle: UnitHandle = getattr(module, HELD)
    if handle.root is None or handle.root_module is not module:
        return
    for owner, name, shard in handle.root.places:
        mine = seen(shard)
        if owner._parameters[name] is not mine and owner._parameters[name] is not shard:
            with torch.no_grad():
                mine.copy_(owner._parameters[name])
            owner._parameters[name] = mine


def check_mesh(mesh: DeviceMesh | None, strategy: str, world: distributed.World) -> None:
    if mesh is not None and not isinstance(mesh, DeviceMesh):
        raise ConfigError(f"[fully_shard] got a {type(mesh).__name__} as mesh, expected a DeviceMesh; "
                          "try init_device_mesh")
    if strategy == "hsdp" and (mesh is None or mesh.ndim != 2):
        raise ConfigError("[fully_shard] got strategy='hsdp' with "
                          f"{'no mesh' if mesh is None else f'a mesh of {mesh.ndim} axis'}, expected one of two axes, "
                          "replicate x shard; try init_device_mesh('cpu', (hosts, ranks_per_host))")
    if mesh is None:
        return
    if mesh.ndim > 2 or mesh.mesh.flatten().tolist() != list(range(world.size)):
        raise ConfigError(f"[fully_shard] got a mesh of shape {tuple(mesh.shape)} over ranks "
                          f"{mesh.mesh.flatten().tolist()}, expected all {world.size} ranks in order, on one axis or "
                          f"two; try init_device_mesh('cpu', ({world.size},))")
    if mesh.ndim == 2 and strategy not in ("zero3", "fsdp", "hsdp"):
        raise ConfigError(f"[fully_shard] got a mesh of two axes with strategy={strategy!r}, expected one axis; "
                          "try 'hsdp'")


def spread_over(mesh: DeviceMesh | None, world: distributed.World) -> DeviceMesh:
    """The mesh along whose last axis rows lie."""
    if mesh is None or (mesh.ndim == 2 and world.transport.shares_memory):
        return world.mesh
    return mesh


def convert(unit: nn.Module, module: nn.Module, name: str, handle: UnitHandle, seen: set[int]) -> None:
    """Shards what is still plain in ``module``, down to the units inside of it, which learn who is around them."""
    if id(module) in seen:
        return
    seen.add(id(module))
    if module is not unit and isinstance(module, ShardedModule):
        inner: UnitHandle = getattr(module, HELD)
        if inner.outer is None:
            inner.outer = weakref.ref(unit)
            handle.ignored |= inner.ignored
        return
    if (embedding := shortening(module)) is not None:
        handle.shortening.append(embedding)
    if isinstance(module, nn.TransformerEncoder):
        module.register_forward_pre_hook(first_layer_whole)
    for key, parameter in module._parameters.items():
        if parameter is None or id(parameter) in handle.ignored:
            continue
        if isinstance(parameter, ShardedParameter):
            if parameter.device_mesh != handle.options.mesh:
                raise ConfigError(f"[fully_shard] got parameter '{joined(name, key)}' that is sharded over "
                                  f"{parameter.device_mesh} already, expected {handle.options.mesh}; try "
                                  "zero.Init(mesh=) with the same mesh")
        else:
            parameter = module._parameters[key] = sharded_once(parameter, joined(name, key), handle.options.mesh)
        parameter._sherd_unit = weakref.ref(unit)
        handle.converted[id(module), key] = parameter
    for key, child in module._modules.items():
        if child is not None:
            convert(unit, child, joined(name, key), handle, seen)


def first_layer_whole(encoder: nn.TransformerEncoder, _: tuple) -> None:
    """torch looks at the first layer's parameters to choose its way of evaluation,
    which also decides on values at padding."""
    if not encoder.training and isinstance(encoder.layers[0], ShardedModule):
        encoder.layers[0].unshard()


def sharded_once(parameter: nn.Parameter, name: str, mesh: DeviceMesh) -> ShardedParameter:
    if isinstance(parameter, DTensor):
        raise ConfigError(f"[fully_shard] got parameter '{name}' that is a DTensor already, expected a plain one")
    before = getattr(parameter, "_sherd_sharded", None)  # tied to one that came first
    if before is not None:
        return before
    sharded = shard_parameter(parameter, name, mesh)
    distributed.world().freed.note(parameter.nbytes)
    return sharded


def keep_rows(module: nn.Module, mesh: DeviceMesh) -> None:
    """Shards the plain parameters of a module that is not given to fully_shard yet."""
    for name, part in module.named_modules():
        for key, parameter in part._parameters.items():
            if parameter is not None and not isinstance(parameter, ShardedParameter):
                part._parameters[key] = sharded_once(parameter, joined(name or type(module).__name__, key), mesh)


Policy = Callable[[str, nn.Module], bool] | Iterable[type | str] | int | None


def shard(model: nn.Module, policy: Policy = None, **options) -> nn.Module:
    """Shards a whole model in one call: each module that ``policy`` chooses, from the inside out, and the model itself.

    policy: classes of blocks, or their names; or a number of parameters, then modules are units from that size on (the
        smallest such modules); or a function of a module's name and the module. None: the blocks that a Hugging Face
        model names itself (``_no_split_modules``), else those of the ModuleList that holds most of the model.
    options: those of :func:`fully_shard`.
    """
    for module in chosen(model, policy):
        fully_shard(module, **options)
    return fully_shard(model, **options)


def chosen(model: nn.Module, policy: Policy) -> list[nn.Module]:
    """The modules below ``model`` that the policy chooses, inner ones first."""
    if policy is None:
        return blocks_of(model)
    if isinstance(policy, int) and not isinstance(policy, bool):
        modules: list[nn.Module] = []
        by_size(model, policy, modules)
        return [m for m in modules if m is not model]
    if callable(policy) and not isinstance(policy, type):
        choose = policy
    else:
        wanted = {policy} if isinstance(policy, (type, str)) else set(policy)

        def choose(_: str, module: nn.Module) -> bool:
            return any(cls in wanted or cls.__name__ in wanted for cls in type(module).__mro__)
    found = [m for name, m in model.named_modules() if m is not model and choose(name, m)]
    if not found:
        raise ConfigError(f"[shard] got a policy that chooses no module of {type(model).__name__}, expected one or "
                          "more; try the class of its blocks")
    return found[::-1]


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a model, inner ones first; none where it has none."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    named = [m for m in model.modules() if m is not model and type(m).__name__ in names]
    if named:
        return named[::-1]
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    sizes = [sum(p.numel() for p in m.parameters()) for m in lists]
    return list(lists[sizes.index(max(sizes))]) if lists else []


def by_size(module: nn.Module, least: int, found: list[nn.Module]) -> int:
    """Appends the smallest modules with at least so many parameters that no unit inside has;
    returns what is left over."""
    left = sum(p.numel() for p in module._parameters.values() if p is not None)
    left += sum(by_size(child, least, found) for child in module._modules.values() if child is not None)
    callable_module = not isinstance(module, (nn.ModuleList, nn.ModuleDict))
    if left >= least and callable_module:
        found.append(module)
        return 0
    return left
