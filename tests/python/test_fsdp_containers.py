"""What callers hand through units of another type: tensors are cast, objects stay theirs,
and what blocks write is in them."""
import collections
import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from fsdp_models import Block, close, shard_layers, vectors
from ranks import run

BF16, FP32 = torch.bfloat16, torch.float32


class Named(collections.namedtuple("Named", "x notes")):
    pass


@dataclasses.dataclass
class Notes:
    total: torch.Tensor
    seen: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    total: torch.Tensor
    seen: list


class Cache:
    """Of a class that nobody knows."""

    def __init__(self):
        self.total, self.seen = torch.zeros(()), []


class Noting(Block):
    """Writes into whatever it is given, and remembers the types it saw."""

    def forward(self, x, notes):
        self.types = types_in(notes)
        write(notes, x)
        return super().forward(x)


def types_in(notes):
    return {value.dtype for value in attributes(notes).values() if isinstance(value, torch.Tensor)}


def attributes(notes):
    if isinstance(notes, dict):
        return notes
    if isinstance(notes, (tuple, list, collections.deque)):
        return dict(enumerate(notes))
    return {name: getattr(notes, name) for name in ("total", "seen")}


def write(notes, x):
    value = x.detach().mean()
    if isinstance(notes, tuple):
        return [write(part, x) for part in notes if not isinstance(part, torch.Tensor)]
    if isinstance(notes, (list, collections.deque)):
        notes[0].add_(1)
        notes.append(value)
        notes.append(notes[0])
    elif isinstance(notes, dict):
        notes["total"] += 1
        notes["again"] = notes["total"]
        notes["seen"] = notes.get("seen", 0) + 1
        notes.pop("gone", None)
        notes["list"].append(value)
    else:
        notes.total.add_(1)
        notes.seen.append(value)


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Noting() for _ in range(2))

    def forward(self, x, notes):
        for layer in self.layers:
            x = layer(x, notes)
        return x


def make_notes():
    plain = {"total": torch.zeros(()), "list": [], "gone": torch.ones(3), "whole": torch.arange(3),
             "kept": torch.full((2,), 1 + 2**-12)}
    ordered = collections.OrderedDict(plain, list=[])
    default = collections.defaultdict(list, plain, list=[])
    frozen = Frozen(torch.zeros(()), [])
    return {"dict": plain, "ordered": ordered, "default": default, "list": [torch.zeros(())],
            "deque": collections.deque([torch.zeros(())]), "dataclass": Notes(torch.zeros(())), "frozen": frozen,
            "class": Cache(), "named": Named(torch.zeros(()), Notes(torch.zeros(()))),
            "tuple": ([torch.zeros(())], frozen)}


def shape_of(notes, ids):
    """The objects in it, by identity, and the values."""
    if isinstance(notes, torch.Tensor):
        return ("tensor", notes.dtype if notes.numel() == 2 else None, [round(v, 1) for v in notes.flatten().tolist()])
    if isinstance(notes, (int, str)):
        return notes
    parts = {str(key): shape_of(value, ids) for key, value in attributes(notes).items()}
    if isinstance(notes, dict) and "again" in notes:
        parts["alias"] = notes["again"] is notes["total"]
    return type(notes).__name__, parts


def all_containers(strategy, transport):
    import sherd
    world = sherd.init(transport=transport)
    torch.manual_seed(0)
    plain = Chain()
    policy = sherd.MixedPrecisionPolicy(param_dtype=BF16, output_dtype=FP32)
    ours = Chain()
    ours.load_state_dict(plain.state_dict())
    shard_layers(ours, mp_policy=policy, strategy=strategy)
    for (name, theirs), wanted in zip(make_notes().items(), make_notes().values(), strict=True):
        before = dict(attributes(theirs))
        x = vectors(0, world.rank)
        expected, got = plain(x, wanted), ours(x, theirs)
        assert got.dtype == FP32 and x.dtype == FP32
        close(got, expected, rtol=0.1, atol=0.1)
        assert shape_of(theirs, {}) == shape_of(wanted, {}), name
        for key, value in before.items():
            assert key == "gone" or key == "seen" or attributes(theirs)[key] is value, (name, key)
        seen = {FP32} if name == "class" else {BF16}
        assert ours.layers[0].types - {torch.int64} <= seen and ours.layers[1].types - {torch.int64} <= seen, name
        if name == "dict":
            assert theirs["kept"].tolist() == [1 + 2**-12] * 2  # what nobody wrote is not rounded


@pytest.mark.parametrize("transport", ("host", "gloo"))
@pytest.mark.parametrize("strategy", ("zero3", "ddp"))
def test_what_blocks_write_is_in_the_callers_objects(transport, strategy):
    run(2, all_containers, strategy, transport)


class Failing(Noting):
    def forward(self, x, notes):
        super().forward(x, notes)
        raise ValueError("no")


class InPlace(nn.Module):
    """Writes into what it is given: a tensor, a view of another, one of a graph."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(7, 7)

    def forward(self, x, buffer, at):
        h = self.up(x)
        buffer[at] = h
        return h


class Returning(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.up, self.make = nn.Linear(7, 7), make

    def forward(self, x, given=None):
        return self.make(self, self.up(x), given)


def more_of_it():
    import transformers
    from transformers.modeling_outputs import CausalLMOutputWithPast

    import sherd
    policy = sherd.MixedPrecisionPolicy(param_dtype=BF16, output_dtype=FP32)
    x = vectors(0, 0)

    # After an exception the caller's tensors are back, with what was written until then.
    model, notes = sherd.fully_shard(Failing(), mp_policy=policy), Notes(torch.zeros(()))
    total = notes.total
    with pytest.raises(ValueError, match="no"):
        model(x, notes)
    assert notes.total is total and total.item() == 1 and len(notes.seen) == 1

    # A buffer given by itself, also under inference_mode; gradients flow through what was written.
    model = sherd.fully_shard(InPlace(), mp_policy=policy)
    buffer = torch.zeros(2, 3, 7)
    for mode in (torch.no_grad, torch.inference_mode):
        buffer.zero_()
        with mode():
            h = model(x, buffer, 1)
        assert torch.equal(buffer[1], h) and not buffer[0].any()
    base = torch.zeros(2, 2, 3, 7)
    h = model(x, base[1], 0)
    assert torch.equal(base[1, 0], h)
    base.sum().backward()
    close(model.up.bias.grad.full_tensor(), torch.full((7,), 3.0))

    # What is returned: the caller's objects are themselves, others are copied where something in them is cast.
    class Held(nn.Module):
        pass
    kept = {}
    cases = {
        "cache": (lambda m, h, given: (h, given), {"h": x}),
        "output": (lambda m, h, given: CausalLMOutputWithPast(logits=h, past_key_values=given),
                   transformers.DynamicCache()),
        "kept": (lambda m, h, given: kept.setdefault("all", {"h": h, "n": 1}), None),
        "dataclass": (lambda m, h, given: Notes(h, [h, given]), Cache()),
        "named": (lambda m, h, given: Named(h, given), [x]),
        "nothing": (lambda m, h, given: given, {"n": 1}),
    }
    for name, (make, given) in cases.items():
        model = sherd.fully_shard(Returning(make), mp_policy=policy)
        out = model(x, given)
        if name == "cache":
            assert out[0].dtype == FP32 and out[1] is given and given["h"] is x
        elif name == "output":
            assert type(out) is CausalLMOutputWithPast and out.logits.dtype == FP32 and out["logits"] is out.logits
            assert out.past_key_values is given and list(out.keys()) == ["logits", "past_key_values"]
        elif name == "kept":
            assert out["h"].dtype == FP32 and kept["all"]["h"].dtype == BF16 and out["n"] == 1
        elif name == "dataclass":
            assert type(out) is Notes and out.total.dtype == FP32 and out.seen[0].dtype == FP32 and out.seen[1] is given
        elif name == "named":
            assert type(out) is Named and out.x.dtype == FP32 and out.notes is given and given[0] is x
        else:
            assert out is given


def test_exceptions_buffers_and_outputs():
    run(1, more_of_it)


def structures():
    from sherd.casting import Given, cast
    loop: dict[str, Any] = {"x": torch.ones(2)}
    loop["self"] = loop
    x, twice = loop["x"], torch.ones(3)
    given = Given(BF16)
    (got, (a, b)), kwargs = given.cast((loop, (twice, twice)),
                                       {"n": 1, "packed": nn.utils.rnn.pack_sequence([torch.ones(2, 3)])})
    assert got is loop and loop["x"].dtype == BF16 and loop["self"] is loop and a is b
    assert kwargs["packed"].data.dtype == BF16
    assert isinstance(kwargs["packed"], nn.utils.rnn.PackedSequence)
    loop["pair"] = (loop["x"], 1)
    given.take_back()
    assert loop["x"] is x and cast(loop, BF16)["x"].dtype == BF16 and x.dtype == FP32
    values = torch.ones(2, 3).max(0)
    assert type(cast(values, BF16)) is type(values) and cast(values, BF16).values.dtype == BF16
    unchanged = (1, "a", [torch.arange(2)], {"d": torch.ones(1)}, torch.Size([2]))
    assert cast(unchanged, FP32)[2] is unchanged[2]


def test_structures_of_many_kinds():
    structures()
