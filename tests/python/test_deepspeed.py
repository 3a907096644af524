"""What a DeepSpeed configuration means: the same as in DeepSpeed 0.19.8, whose results are in data/deepspeed.json."""
import importlib
import json
import pathlib
import sys

import pytest
import torch
from torch import nn

from fsdp_models import joined
from ranks import run

HERE = pathlib.Path(__file__).parent
RECORDED = json.loads((HERE / "data" / "deepspeed.json").read_text())
# What DeepSpeed leaves to torch, and does not clip by a norm that it adds up in its own order: the same bits. Of the
# others, how far losses may be off: FusedAdam rounds otherwise than sherd's Adam, and 16-bit gradients are summed in 16
# bits there and in fp32 here.
CLOSE = {"fp16": 5e-4, "bf16": 5e-3, "": 1e-5}


def program():
    from sherd import as_deepspeed
    as_deepspeed.activate()
    sys.path.insert(0, str(HERE / "programs"))
    return importlib.import_module("record_deepspeed")


def is_exact(document):
    params = document["optimizer"]["params"]
    return document.get("gradient_clipping") == 0.0 and (params.get("torch_adam")
                                                         or document["optimizer"]["type"] == "SGD")


def bound(name, document, same_processor):
    if is_exact(document) and same_processor:
        return 0.0
    return CLOSE[next((kind for kind in ("fp16", "bf16") if kind in document), "")]


def as_recorded():
    recorder = program()
    assert RECORDED["version"] == "0.19.8" and RECORDED["results"].keys() == recorder.CONFIGURATIONS.keys()
    same_processor = recorder.fingerprint() == RECORDED["fingerprint"]
    for name, (document, choose) in recorder.CONFIGURATIONS.items():
        ours, theirs = recorder.trained(document, choose), RECORDED["results"][name]
        for key in ("rates", "scales", "samples", "schedule", "batch"):
            assert ours[key] == theirs[key], (name, key)
        off = bound(name, document, same_processor)
        for key in ("losses", "returned") if torch.distributed.get_rank() == 0 else ():  # they are a rank's own
            assert ours[key] == (pytest.approx(theirs[key], rel=off, abs=0) if off else theirs[key]), (name, key)
        if None not in theirs["norms"]:  # there are none in fp32 without ZeRO
            assert ours["norms"] == pytest.approx(theirs["norms"], rel=off or 1e-6), name
        for mine, other in zip(ours["sums"], theirs["sums"], strict=True):
            assert mine == (pytest.approx(other, rel=10 * off, abs=100 * off) if off else other), name


@pytest.mark.parametrize("transport", ("host", "gloo"))
def test_the_same_numbers_as_deepspeed(transport):
    run(2, joined, transport, (as_recorded,), timeout=180)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 1))


def initialized(model, document=None, **more):
    from sherd import as_deepspeed
    document = {"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 2}, **(document or {})}
    return as_deepspeed.initialize(model=model, config=document, **more)


ADAM = {"optimizer": {"type": "Adam", "params": {"lr": 1e-2}}}


def loss_of(model, seed=0):
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
    return (model(x) - x.sum(1, keepdim=True)).square().mean()


def gradients_of_the_rest(stage):
    """What is not trained keeps requires_grad; its gradients are cleared by stage 0 alone,
    and count in no norm of the others."""
    from sherd.faces import sharded_of
    model = net()
    engine, *_ = initialized(model, ADAM | {"zero_optimization": {"stage": stage}},
                             model_parameters=model[2].parameters())
    rest, sizes = list(map(sharded_of, engine.module[0].parameters())), []
    before = [p.detach().clone() for p in rest]
    for step in range(3):
        engine.backward(loss_of(engine))
        if step == 0:
            everything = nn.utils.clip_grad_norm_(map(sharded_of, engine.module.parameters()), float("inf"))
            trained = nn.utils.clip_grad_norm_(map(sharded_of, engine.module[2].parameters()), float("inf"))
        engine.step()
        if step == 0:
            whole = [t.full_tensor() if hasattr(t, "full_tensor") else t for t in (everything, trained)]
            assert engine.get_global_grad_norm().item() == pytest.approx(whole[0 if stage == 0 else 1].item(), rel=1e-5)
        sizes.append([None if p.grad is None else p.grad.norm() for p in rest])
    assert all(p.requires_grad for p in rest) and all(torch.equal(p, q) for p, q in zip(rest, before))
    if stage == 0:
        assert sizes[0] == [None, None]
    else:
        assert all(last > first > 0 for first, last in zip(sizes[0], sizes[2]))
    engine.zero_grad()
    assert all(p.grad is None for p in rest)


def named_parameters_and_dummy_optimizers():
    """Accelerate gives DummyOptim's params on: generators, named parameters, groups."""
    for give in (lambda m: m.named_parameters(), lambda m: iter(m.parameters()),
                 lambda m: [{"params": m.parameters()}, {"params": []}],
                 lambda m: ({"params": p, "lr": 1e-2} for p in m.parameters())):
        engine, optimizer, *_ = initialized(model := net(), ADAM, model_parameters=give(model))
        assert sum(len(group["params"]) for group in optimizer.param_groups) == 4 and engine.get_lr()[0] == 1e-2
        engine.backward(loss_of(engine))
        engine.step()
        assert engine.was_step_applied()


def of_functions():
    """A program's function of parameters gets what was given, sharded, and a schedule's function the optimizer."""
    seen = []

    def make(parameters):
        seen.append(parameters)
        return torch.optim.SGD(parameters, lr=0.5)

    model = net()
    engine, optimizer, _, schedule = initialized(model, optimizer=make, model_parameters=model[2].parameters(),
                                                 lr_scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5))
    assert [tuple(p.shape) for p in seen[0]] == [(1, 32), (1,)] and schedule.optimizer is optimizer
    engine.backward(loss_of(engine))
    engine.step()
    assert engine.get_lr() == [0.25]
    assert initialized(net(), ADAM | {"scheduler": {"type": "StepLR", "params": {"step_size": 2}}})[3].step_size == 2


def test_what_is_trained():
    cases = [(gradients_of_the_rest, stage) for stage in range(4)]
    for transport in ("host", "gloo"):
        run(2, joined, transport, *cases, (named_parameters_and_dummy_optimizers,), (of_functions,), (types_of_inputs,),
            (while_it_is_built,))


def frozen(stage, kind):
    import sherd
    model = net().requires_grad_(False)
    sections = {"fp32": {}, "fp16": {"fp16": {"enabled": True, "auto_cast": True}},
                "bf16": {"bf16": {"enabled": True}}}[kind]
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    plain = model(torch.ones(4, 8))
    for more in (ADAM, {}):
        engine, optimizer, loader, schedule = initialized(model if not more else net().requires_grad_(False),
                                                          {**more, **sections, "zero_optimization": {"stage": stage}})
        assert (optimizer, loader, schedule, engine.optimizer, engine.lr_scheduler) == (None,) * 5
        assert engine.get_lr() == []
        assert torch.allclose(engine(torch.ones(4, 8).to(dtype)).float(), plain, atol=2e-2)
        for call in (lambda: engine.backward(plain.sum()), engine.step):
            with pytest.raises(sherd.ConfigError, match="without an optimizer"):
                call()
        engine.zero_grad()
        engine.destroy()


def a_teacher_and_a_student(folder):
    """Both sharded, in one program; a model that could train but has no optimizer only computes too."""
    import sherd
    teacher, student = initialized(net().requires_grad_(False),
                                   {"zero_optimization": {"stage": 3}})[0], initialized(net(), ADAM)[0]
    reader = initialized(net(), {"zero_optimization": {"stage": 3}})[0]
    losses = []
    for step in range(6):
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
        with torch.no_grad():
            target = teacher(x) + 1
        loss = (student(x) - target).square().mean()
        student.backward(loss)
        student.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and torch.equal(reader(x), teacher(x))
    with pytest.raises(sherd.ConfigError, match="without an optimizer"):
        reader.backward(reader(x).sum())
    teacher.save_checkpoint(folder)
    assert teacher.load_checkpoint(folder)[0] is not None


def test_models_without_an_optimizer(tmp_path):
    cases = [(frozen, stage, "fp32") for stage in range(4)] + [(frozen, 3, "bf16"), (frozen, 0, "fp16")]
    for transport in ("host", "gloo"):
        run(2, joined, transport, *cases, (a_teacher_and_a_student, str(tmp_path / transport)))


class Timed(nn.Module):
    """A block whose second input is more exact than what is computed with; `seen` are the types that it got."""

    def __init__(self, name):
        super().__init__()
        self.linear, self.seen, self.name = nn.Linear(8, 8), [], name

    def forward(self, x, time):
        self.seen.append((x.dtype, time.dtype))
        return self.linear(x), time.float() + 0.5


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Timed("first"), Timed("second")])

    def forward(self, x, *, time):
        for block in self.blocks:
            x, time = block(x, time)
        return x.float().mean() + time.mean()


def types_of_inputs():
    """The model's inputs are cast, what goes from block to block is not; nothing where fp16 says auto_cast false."""
    for sections, outer in (({"bf16": {"enabled": True}}, torch.bfloat16),
                            ({"fp16": {"enabled": True, "auto_cast": True}}, torch.float16)):
        engine, *_ = initialized(model := Blocks(), {**ADAM, **sections, "zero_optimization": {"stage": 3}})
        engine(torch.ones(4, 8), time=torch.ones(1))
        assert [block.seen for block in model.blocks] == [[(outer, outer)], [(outer, torch.float32)]]
    engine, *_ = initialized(model := Blocks(), {**ADAM, "fp16": {"enabled": True, "auto_cast": False}})
    engine(torch.ones(4, 8).half(), time=torch.ones(1))
    assert model.blocks[0].seen == [(torch.float16, torch.float32)]


def while_it_is_built():
    """A model that zero.Init has sharded: groups of what is sharded already, and a schedule's own arguments."""
    import sherd
    torch.manual_seed(0)
    with sherd.zero.Init():
        model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 1))
    range_test = {"type": "LRRangeTest", "params": {"lr_range_test_min_lr": 1e-3, "lr_range_test_step_size": 1}}
    engine, optimizer, _, schedule = initialized(
        model, ADAM | {"zero_optimization": {"stage": 3}, "scheduler": range_test},
        model_parameters=[{"params": [model[0].weight], "weight_decay": 0.5}, {"params": model[2].parameters()}])
    before = {name: p.full_tensor().clone() for name, p in engine.module.named_parameters()}
    engine.backward(loss_of(engine))
    engine.step({"batch_iteration": 6})
    moved = {name for name, p in engine.module.named_parameters() if not torch.equal(before[name], p.full_tensor())}
    assert moved == {"0.weight", "2.weight", "2.bias"}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    assert schedule.last_batch_iteration == 6 and engine.get_lr() == [pytest.approx(8e-3)] * 2
