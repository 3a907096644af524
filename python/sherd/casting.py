"""What goes into a call and comes out of it in another type: tensors are cast, the objects that hold them stay whose
they are.

Looked into are tuples, lists, deques, dicts, dataclasses, classes that torch knows as pytrees, and what derives from
these. Objects of other classes pass as they are, with what they hold.
"""
from __future__ import annotations

import collections
import copy
import functools
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import SUPPORTED_NODES

PLAIN = (type(None), bool, int, float, str)
Items = Iterable[tuple[Any, Any]]
MUTABLE = (dict, list, collections.deque)


class Given:
    """What a caller hands to a call.

    From cast() to take_back() its floating-point tensors are of ``dtype``, in the caller's own objects: these hold the
    cast tensors meanwhile. Afterwards they hold the caller's again, and what the call has written is in them: into
    objects, and in place into tensors. None: nothing is cast.
    """

    def __init__(self, dtype: torch.dtype | None):
        self._dtype = dtype
        # By the caller's tensor: it, ours, and its version.
        self._casts: dict[int, tuple[torch.Tensor, torch.Tensor, int]] = {}
        self._stand_ins: dict[int, tuple[Any, Any]] = {}  # by what stands in: it, and the caller's
        self._holders: dict[int, Any] = {}

    def cast(self, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return tuple([self._cast(value) for value in args]), {name: self._cast(value) for name, value in kwargs.items()}

    def _cast(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._cast_tensor(value)
        if isinstance(value, PLAIN):
            return value
        if isinstance(value, tuple):
            return self._stand_in(value, with_items(value, [self._cast(item) for item in value]))
        if holds(value) and id(value) not in self._holders:
            self._holders[id(value)] = value
            for items, put in parts(value):
                for key, item in items:
                    if (new := self._cast(item)) is not item:
                        put(key, new)
        return value

    def _cast_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        if (self._dtype is None or tensor.dtype == self._dtype or not tensor.is_floating_point()
            or id(tensor) in self._stand_ins):
            return tensor
        if id(tensor) not in self._casts:
            ours = versioned(tensor, self._dtype)
            self._casts[id(tensor)] = tensor, ours, ours._version
            self._stand_in(tensor, ours)
        return self._casts[id(tensor)][1]

    def _stand_in(self, theirs: Any, ours: Any) -> Any:
        if ours is not theirs:
            self._stand_ins[id(ours)] = ours, theirs
        return ours

    def take_back(self) -> None:
        """After the call, however it has ended."""
        if not self._casts:
            return
        for holder in self._holders.values():
            for items, put in parts(holder):
                for key, item in items:
                    if id(item) in self._stand_ins:
                        put(key, self._stand_ins[id(item)][1])
        for theirs, ours, version in self._casts.values():
            if ours._version != version:
                theirs.copy_(ours)

    def cast_result(self, result: Any, dtype: torch.dtype) -> Any:
        """All floating-point tensors in what the call has returned as ``dtype``: objects of the caller's take them in,
        others are copied where they hold any."""
        return cast(result, dtype, self._holders)


def cast(value: Any, dtype: torch.dtype, kept: Container[int] = ()) -> Any:
    """All floating-point tensors in a structure as ``dtype``. Objects are copied where something in them is cast; those
    that are ``kept`` (by their identities) are not, and take it in."""
    done: dict[int, tuple[Any, Any]] = {}  # both, so that they keep their identities

    def visit(value: Any) -> Any:
        if isinstance(value, PLAIN):
            return value
        if id(value) not in done:
            done[id(value)] = value, value  # for what holds itself
            done[id(value)] = value, converted(value)
        return done[id(value)][1]

    def converted(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(dtype) if value.is_floating_point() else value
        if isinstance(value, tuple):
            return with_items(value, [visit(item) for item in value])
        if not holds(value):
            return value
        changes = [[(key, new) for key, item in items if (new := visit(item)) is not item] for items, _ in parts(value)]
        if not any(changes):
            return value
        target = value if id(value) in kept else copy.copy(value)
        for (_, put), changed in zip(parts(target), changes):
            for key, new in changed:
                put(key, new)
        return target

    return visit(value)


def holds(value: Any) -> bool:
    """Whether a value that is no tuple is looked into."""
    if isinstance(value, MUTABLE):
        return True
    kind = type(value)
    return (hasattr(kind, "__dataclass_fields__") or kind in SUPPORTED_NODES) and not isinstance(value, nn.Module)


def parts(holder: Any) -> Iterator[tuple[Items, Callable[[Any, Any], None]]]:
    """What an object holds, by keys, and what puts something else there, past any method of its class."""
    for kind in MUTABLE:
        if isinstance(holder, kind):
            items = dict.items(holder) if kind is dict else enumerate(holder)
            yield list(items), functools.partial(kind.__setitem__, holder)
    fields = getattr(type(holder), "__dataclass_fields__", ())
    if fields or type(holder) in SUPPORTED_NODES:
        attributes = {name: getattr(holder, name) for name in fields
                      if hasattr(holder, name)} | getattr(holder, "__dict__", {})
        yield list(attributes.items()), functools.partial(object.__setattr__, holder)


def with_items(value: tuple, items: list) -> tuple:
    """A tuple of the same class with other items; the tuple itself, where they are the same."""
    if all(new is old for new, old in zip(items, value)):
        return value
    return type(value)._make(items) if hasattr(value, "_make") else type(value)(items)


def versioned(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A cast tensor whose version counts writes: those that inference mode makes have none."""
    if not torch.is_inference_mode_enabled():
        return tensor.to(dtype)
    with torch.inference_mode(False), torch.no_grad():
        return tensor.to(dtype)
