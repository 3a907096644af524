"""How sharded parameters get values: what writes to them, which models are told of it, what may be given to them."""
from __future__ import annotations

import torch
from torch.distributed.tensor import DTensor

from ._C import ConfigError
from .rows import rows_like

NOT_VALUES = {"requires_grad_", "retain_grad_"}
OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")
IN_PLACE = {"__setitem__", *(f"__i{name}__" for name in OPERATORS)}


def writes(name: str, kwargs: dict | None) -> bool:
    """Whether a function of this name changes tensors that it is given."""
    if name.startswith("__"):
        return name in IN_PLACE
    return name.endswith("_") and name not in NOT_VALUES or bool(kwargs) and kwargs.get("out") is not None


def root_handle_of(parameter: torch.Tensor):
    """The UnitHandle of the sharded model that a parameter belongs to; None before the model's first use."""
    root = parameter.__dict__.get("_sherd_root")
    module = None if root is None else root()
    return None if module is None else module.__dict__["_sherd_unit"]


def tell(args: tuple, *methods: str) -> None:
    """Calls these methods of the models that the parameters among the arguments (or in lists of them) belong to."""
    models = set()
    for argument in args:
        for one in argument if isinstance(argument, (list, tuple)) else (argument,):
            if isinstance(one, DTensor) and (handle := root_handle_of(one)) is not None:
                models.add(handle.root.model)
    for model in models:
        for method in methods:
            getattr(model, method)()


def fitting(values: torch.Tensor, target: DTensor, rows: torch.Tensor, where: str, instead: str) -> torch.Tensor:
    """This rank's rows in what is given to a sharded tensor: rows like its own, or a DTensor that is sharded as it is.

    Raises ConfigError for others, which says where they were given, and what to try instead.
    """
    given = values._local_tensor if isinstance(values, DTensor) else values
    alike = given is values or (values.shape == target.shape and values.placements == target.placements)
    if not alike or given.shape != rows.shape or given.dtype != rows.dtype:
        raise ConfigError(f"[shard] got {values.dtype} of sizes {list(values.shape)} {where}, expected {rows.dtype}: "
                          f"this rank's rows, {list(rows.shape)}, or a DTensor sharded as it is; try {instead}")
    return given


def set_data(parameter: DTensor, values: torch.Tensor) -> None:
    """``parameter.data = values``: a DTensor that is sharded as the parameter, or this rank's rows. They are copied."""
    rows = parameter._local_tensor
    given = fitting(values, parameter, rows, f"for the data of parameter '{parameter._sherd_name}'",
                    "parameter.copy_(), or module.to() before the first forward")
    tell((parameter,), "before_write")
    with torch.no_grad():
        rows.copy_(given)
    tell((parameter,), "note_update")


def fill_as_whole(function, args: tuple, kwargs: dict) -> torch.Tensor:
    """Fills a parameter with the values that it would have if it were not sharded (and ranks had one seed): each rank
    fills a whole one, for as long as this takes, and keeps its rows."""
    tensor = args[0] if args else kwargs.pop("tensor")
    tell((tensor,), "before_write")
    whole = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    function(whole, *args[1:], **kwargs)
    with torch.no_grad():
        tensor._local_tensor.copy_(rows_like(whole, tensor))
    tell((tensor,), "note_update")
    return tensor
