"""What torch.autograd is asked of sharded models, beside backward() of what a forward has returned.

A graph of a sharded model has its whole parameters as leaves, and what a program knows are their shards. Every backward
and ``torch.autograd.grad`` of torch goes by one function, which this file stands around.
"""
from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle

from . import _C
from ._C import ConfigError
from .causes import cause_of
from .parameters import ShardedParameter
from .values import root_handle_of

Gradients = list[torch.Tensor | None]
MODELS: weakref.WeakSet[_C.Model] = weakref.WeakSet()  # that have run


def run_engine(plain, outputs: Sequence, *args: Any, **kwargs: Any) -> Any:
    """torch's own, on graphs that may have sharded models in them. Other ranks hear of an exception that ends it."""
    models, roots = list(MODELS), [t for t in outputs if isinstance(t, torch.Tensor)]
    for model in models:
        model.expect_backward(roots)
    try:
        return run_expected(models, plain, outputs, *args, **kwargs)
    except BaseException as error:
        cause = cause_of(error)
        for model in models:
            model.failed_in_backward(cause, functools.partial(leads_to, model, roots))
        raise
    finally:
        for model in models:
            model.end_expected()


def leads_to(model: _C.Model, roots: Sequence[torch.Tensor]) -> bool:
    """Whether parameters of the model are in this graph."""
    seen, left = set(), [root.grad_fn for root in roots if root.grad_fn is not None]
    while left:
        node = left.pop()
        shard = getattr(getattr(node, "variable", None), "_sherd_sharded", None)
        if shard is not None and model_of(shard) is model:
            return True
        new = [following for following, _ in node.next_functions if following is not None and following not in seen]
        seen.update(new)
        left.extend(new)
    return False


def run_expected(models: Sequence[_C.Model], plain, outputs: Sequence, grad_outputs: Sequence, keep_graph: bool,
                 create_graph: bool, inputs: Sequence = (), *args: Any, **kwargs: Any) -> Any:
    accumulates = kwargs.get("accumulate_grad", False)
    if not any(is_sharded(t) for t in inputs):
        with contextlib.nullcontext() if accumulates and not inputs else held(models):
            return plain(outputs, grad_outputs, keep_graph, create_graph, inputs, *args, **kwargs)
    if accumulates:
        leaves = [leaf for t in inputs for leaf in leaves_of(t)]
        return plain(outputs, grad_outputs, keep_graph, create_graph, tuple(leaves), *args, **kwargs)
    if torch._C._are_functorch_transforms_active():
        raise ConfigError("[grad] got parameters of a sharded model inside of a torch.func transform or with "
                          "is_grads_batched, expected them outside; try one torch.autograd.grad after the other")
    allow_unused = args[0] if args else kwargs.pop("allow_unused", False)
    leaves = [leaves_of(t) for t in inputs]
    flat = [leaf for some in leaves for leaf in some]
    with held(models):
        found = iter(plain(outputs, grad_outputs, keep_graph, create_graph, tuple(flat), True, *args[1:], **kwargs))
    per_input = [[next(found) for _ in some] for some in leaves]
    reduce = differentiably_reduced if create_graph else reduced
    whole = reduce([t for t in inputs if is_sharded(t)], [g[0] for t, g in zip(inputs, per_input) if is_sharded(t)])
    of_shards = iter(whole)
    result = tuple(added(next(of_shards), g[1]) if is_sharded(t) else g[0] for t, g in zip(inputs, per_input))
    unused = [i for i, gradient in enumerate(result) if gradient is None]
    if unused and not allow_unused:
        name = getattr(inputs[unused[0]], "_sherd_name", f"number {unused[0]}")
        raise RuntimeError("One of the differentiated Tensors appears to not have been used in the graph (parameter "
                           f"'{name}'). Set allow_unused=True if this is the desired behavior.")
    return result


def is_sharded(tensor: Any) -> bool:
    return isinstance(tensor, DTensor) and model_of(tensor) is not None


def model_of(parameter: DTensor) -> _C.Model | None:
    """That a sharded parameter belongs to, once it has run."""
    handle = root_handle_of(parameter)
    return None if handle is None or parameter._sherd_whole is None else handle.root.model


def leaves_of(tensor: Any) -> tuple:
    """Where gradients of an input arrive in the graph: of a parameter as units use it, and as a DTensor by itself."""
    return (tensor._sherd_whole, tensor) if is_sharded(tensor) else (tensor,)


def added(a: torch.Tensor | None, b: torch.Tensor | None) -> torch.Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b


@contextlib.contextmanager
def held(models: Sequence[_C.Model]) -> Iterator[None]:
    """Backwards inside reduce nothing: they give their gradients to the caller."""
    if torch._C._current_graph_task_id() != -1:  # inside of another, which goes on afterwards
        yield
        return
    before = [model.gradients for model in models]
    for model in models:
        model.set_gradients(_C.Gradients.hold)
    try:
        yield
    finally:
        for model, gradients in zip(models, before):
            model.set_gradients(gradients)


def reduced(shards: Sequence[DTensor], gradients: Gradients) -> list[DTensor | None]:
    """Of this rank's gradients of whole parameters the mean over ranks: DTensors of this rank's rows. Collective."""
    result: list[DTensor | None] = [None] * len(shards)
    of_model: dict[_C.Model, list[int]] = {}
    for i, shard in enumerate(shards):
        of_model.setdefault(model_of(shard), []).append(i)
    for model, indices in of_model.items():
        means = model.reduce([shards[i] for i in indices],
                             [None if gradients[i] is None else gradients[i].detach() for i in indices])
        for i, mean in zip(indices, means):
            result[i] = mean
    return result


class Reduce(torch.autograd.Function):
    """``reduced``, to be differentiated again: losses are means over ranks,
    so what comes back of the mean is each rank's."""

    @staticmethod
    def forward(ctx, shards, *gradients):
        ctx.set_materialize_grads(False)
        return tuple(reduced(shards, list(gradients)))

    @staticmethod
    def backward(ctx, *second):
        return None, *(None if gradient is None else gradient.full_tensor() for gradient in second)


def differentiably_reduced(shards: Sequence[DTensor], gradients: Gradients) -> list[DTensor | None]:
    return list(Reduce.apply(shards, *gradients))


class Handles:
    """Of one hook on many tensors."""

    def __init__(self, handles: list[RemovableHandle]):
        self.handles = handles

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def hook_on_all(tensors: Sequence[torch.Tensor], call: Callable[[list[torch.Tensor | None]], None]) -> Handles:
    """Calls ``call`` at the end of each backward that has given any of these a gradient, with the gradients of all,
    None for those that have got none. Costs copies: sharded ones are added to what was there before that end."""
    found: dict[int, list[torch.Tensor | None]] = {}  # by backward

    def hook_of(place: int) -> Callable[[torch.Tensor], None]:
        def hook(gradient: torch.Tensor) -> None:
            backward = torch._C._current_graph_task_id()
            if backward not in found:
                found[backward] = [None] * len(tensors)
                torch.autograd.Variable._execution_engine.queue_callback(lambda: call(found.pop(backward)))
            found[backward][place] = gradient.clone()

        return hook

    return Handles([tensor.register_hook(hook_of(i)) for i, tensor in enumerate(tensors)])


def install() -> None:
    plain, plain_hook = torch.autograd._engine_run_backward, torch.autograd.graph.register_multi_grad_hook

    @functools.wraps(plain_hook)
    def register_multi_grad_hook(tensors: Sequence[torch.Tensor], fn: Callable, *, mode: str = "all") -> Any:
        tensors = tuple(tensors)
        if mode != "all" or not any(isinstance(t, ShardedParameter) for t in tensors):
            return plain_hook(tensors, fn, mode=mode)
        return hook_on_all(tensors, fn)

    @functools.wraps(plain)
    def run(*args: Any, **kwargs: Any) -> Any:
        return run_engine(plain, *args, **kwargs) if MODELS else plain(*args, **kwargs)

    torch.autograd._engine_run_backward = run
    torch.autograd.graph.register_multi_grad_hook = register_multi_grad_hook


install()
