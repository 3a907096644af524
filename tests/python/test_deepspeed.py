"""What a DeepSpeed configuration means: the same as in DeepSpeed 0.19.8, whose results are in data/deepspeed.json."""
import base64
import importlib
import json
import logging
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
    """What is not trained keeps requires_grad; its gradients are cleared by stage 0 alone, and count in no norm of the
    others."""
    from sherd.parameters import sharded_of
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


def skipped(stage, kind):
    """Gradients that are not finite: the step is left out on all ranks, where DeepSpeed leaves it out."""
    import sherd
    sections = {"bf16": {"enabled": True}} if kind == "bf16" else {}
    engine, optimizer, _, schedule = initialized(net(), {
        **ADAM, **sections, "zero_optimization": {"stage": stage},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 4}}})
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    before = [p.detach().clone() for p in engine.parameters()]
    x = torch.full((4, 8), float("inf") if engine.world.rank == 1 else 1.0, dtype=dtype)
    engine.backward(engine(x).float().square().mean())
    if stage == 0 and kind == "fp32":  # where DeepSpeed makes weights of it
        with pytest.raises(sherd.FaultError, match="not finite"):
            engine.step()
        return
    engine.step()
    assert (engine.skipped_steps, engine.global_steps) == (1, 1)
    assert optimizer.overflow and not engine.was_step_applied()
    assert engine.get_global_grad_norm() == float("inf") and schedule.last_batch_iteration == -1
    assert all(torch.equal(p, q) for p, q in zip(engine.parameters(), before))
    engine.backward(engine(torch.ones((4, 8), dtype=dtype)).float().square().mean())
    engine.step()
    assert engine.was_step_applied() and not optimizer.overflow and schedule.last_batch_iteration == 0
    assert all(p.isfinite().all() for p in engine.parameters())


def check_of_bf16():
    import sherd
    engine, *_ = initialized(net(), {**ADAM, "bf16": {"enabled": True, "check_grad_overflow": False}})
    engine.backward(engine(torch.full((4, 8), float("nan"), dtype=torch.bfloat16)).float().mean())
    with pytest.raises(sherd.FaultError, match="not finite"):
        engine.step()


def test_gradients_that_are_not_finite():
    cases = [(skipped, stage, kind) for stage in range(4) for kind in ("fp32", "bf16")]
    run(2, joined, "auto", *cases, (check_of_bf16,))


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


def whose_boundary_it_is():
    """managed_gradient_accumulation false: each step() is an update, of however many backwards."""
    import sherd
    for stage in (1, 3):
        engine, *_ = initialized(net(),
                                 {**ADAM, "zero_optimization": {"stage": stage}, "managed_gradient_accumulation": False,
                                  "gradient_accumulation_steps": 2, "gradient_clipping": 0})
        plain = net()
        optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.0)
        for backwards in (1, 3):
            for seed in range(backwards):
                engine.backward(loss_of(engine, seed))
                (loss_of(plain, seed) / 2).backward()
            engine.step()
            optimizer.step()
            optimizer.zero_grad()
        for p, q in zip(engine.parameters(), plain.parameters(), strict=True):
            assert torch.allclose(p.full_tensor() if hasattr(p, "full_tensor") else p, q, atol=1e-5)
        assert engine.global_steps == 2
        with pytest.raises(sherd.ConfigError, match="managed"):
            engine.set_gradient_accumulation_boundary(True)


class TwoOutputs(nn.Module):
    """A loss of its own, and what it is made of."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        y = self.net(x)
        return {"loss": (y - x.sum(1, keepdim=True)).square().mean(), "y": y}


def backward_without_the_engine():
    """loss.backward() in the place of engine.backward(loss) is divided by the accumulation steps once, whatever outputs
    it comes by."""
    import sherd
    for stage in range(4):
        weights = []
        for way in ("engine", "loss", "outputs", "in place"):
            engine, *_ = initialized(TwoOutputs(),
                                     {**ADAM, "zero_optimization": {"stage": stage}, "gradient_accumulation_steps": 2,
                                      "optimizer": {"type": "SGD", "params": {"lr": 0.1}}, "gradient_clipping": 0})
            for seed in range(4):
                x = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
                out = engine(x)
                loss = out["loss"]
                if way == "outputs":
                    loss = (out["y"] - x.sum(1, keepdim=True)).square().mean()
                if way == "in place":
                    loss += 1
                if way == "engine":
                    engine.backward(loss)
                else:
                    loss.backward()
                engine.step()
            weights.append([p.full_tensor() if hasattr(p, "full_tensor") else p for p in engine.module.parameters()])
        for other in weights[1:]:
            assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(weights[0], other, strict=True)), stage
    engine, *_ = initialized(net(), {**ADAM, "fp16": {"enabled": True, "loss_scale": 8}})
    with pytest.raises(sherd.ConfigError, match="engine.scale"):
        engine(torch.ones(4, 8).half()).float().mean().backward()
    engine, *_ = initialized(net(), {**ADAM, "fp16": {"enabled": True, "loss_scale": 8}})
    norms = []
    for scaled in (False, True):
        loss = engine(torch.ones(4, 8).half()).float().mean()
        if scaled:
            engine.scale(loss).backward()
        else:
            engine.backward(loss)
        norms.append(sherd.optim.gradient_norm(engine.module))
        engine.zero_grad()
    assert norms[0] == norms[1] > 0


def sizes_of_batches(folder):
    import sherd
    engine, *_ = initialized(net(), {**ADAM, "gradient_accumulation_steps": 2, "steps_per_print": 1})
    assert engine.get_batch_info() == (16, 4, 2) and engine.gradient_clipping() == 1.0
    engine.set_train_batch_size(8)
    assert engine.gradient_accumulation_steps() == 1
    with pytest.raises(sherd.ConfigError, match="multiple of 8"):
        engine.set_train_batch_size(12)
    engine.backward(loss_of(engine))
    engine.step()
    engine.set_train_micro_batch_size(2)
    assert (engine.global_steps, engine.global_samples, engine.train_batch_size()) == (1, 8, 4)
    with engine.no_sync(), pytest.raises(sherd.ConfigError, match="no_sync"):
        engine.step()
    engine.save_checkpoint(folder)
    data = torch.utils.data.TensorDataset(torch.arange(19.0))
    for last, batches in ((False, [4, 4, 2]), (True, [4, 4])):
        loader = initialized(net(), {**ADAM, "dataloader_drop_last": last}, training_data=data)[2]
        assert [len(batch) for batch, in loader] == batches


def sums_instead_of_means():
    norms = []
    for operation in ("mean", "sum"):
        engine, *_ = initialized(net(), {**ADAM, "gradient_allreduce_op": operation})
        engine.backward(loss_of(engine))
        engine.step()
        norms.append(engine.get_global_grad_norm().item())
    assert norms[1] == pytest.approx(2 * norms[0], rel=1e-6)


def resumed(folder):
    """A schedule goes on where it was."""
    section = {"scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": 9, "warmup_num_steps": 3}}}
    rates = []
    for first, last in ((0, 3), (3, 6)):
        engine, _, _, schedule = initialized(net(), ADAM | section)
        if first:
            assert engine.load_checkpoint(folder)[0] is not None and engine.global_samples == 24
        for step in range(first, last):
            rates += engine.get_lr()
            engine.backward(loss_of(engine, step))
            engine.step()
        engine.save_checkpoint(folder)
    straight = initialized(net(), ADAM | section)[3]
    expected = []
    for _ in rates:
        expected += straight._last_lr
        straight.step()
    assert rates == expected


def test_counting(tmp_path):
    run(2, joined, "auto", (whose_boundary_it_is,), (backward_without_the_engine,),
        (sizes_of_batches, str(tmp_path / "a")), (sums_instead_of_means,), (resumed, str(tmp_path / "b")))


@pytest.mark.parametrize("window, hysteresis, refills, scales", [  # of DeepSpeed 0.19.8's DynamicLossScaler
    (2, 1, False, "6 6 7 6 6 6 5 5 5 6 5 4 4 4 5 5 6 5 5 4 4 4 5 5 6 6"),
    (2, 2, False, "6 6 7 7 7 7 6 6 6 7 7 6 6 6 7 7 8 8 8 7 7 7 8 8 9 9"),
    (3, 2, True, "6 6 6 6 6 6 6 6 6 6 6 5 5 5 5 6 6 6 6 6 6 6 6 7 7 7"),
    (1, 3, False, "6 7 8 8 8 9 9 9 10 11 11 11 11 12 13 14 15 15 15 15 15 16 17 18 19 20")])
def test_the_loss_scale_of_each_step(window, hysteresis, refills, scales):
    from sherd.deepspeed_training import LossScale
    scale, found = LossScale(64.0, window, hysteresis, 1.0, refills), []
    for i, step in enumerate("...x..x...xx.....x.x......"):
        scale.update(step == "x")
        found.append(scale.scale)
        if i == 7:
            other = LossScale(1.0, window, hysteresis, 1.0, refills)
            other.load_state_dict(scale.state_dict())
            scale = other
    assert found == [2.0 ** int(power) for power in scales.split()]


def test_where_a_configuration_is_read(tmp_path):
    from sherd import ConfigError
    from sherd.deepspeed_settings import read
    text = '{"train_batch_size": 4, "optimizer": {"type": "Adam"}}'
    (tmp_path / "ds.json").write_text(text)
    for given in (json.loads(text), tmp_path / "ds.json", str(tmp_path / "ds.json"),
                  base64.urlsafe_b64encode(text.encode()).decode()):
        assert read(given) == json.loads(text)
    (tmp_path / "twice.json").write_text('{"optimizer": {"type": "Adam", "type": "AdamW"}}')
    for wrong, message in ((None, "no configuration"), (tmp_path / "none.json", "none.json"),
                           (tmp_path / "twice.json", "'type' is there twice")):
        with pytest.raises(ConfigError, match=message):
            read(wrong)


@pytest.mark.parametrize("numbers, expected", [
    ((12, 3, None), (3, 4)), ((12, None, 4), (3, 4)), ((None, 3, 4), (3, 4)), ((12, None, None), (12, 1)),
    ((None, 3, None), (3, 1)), ((12, "auto", 4), (3, 4)), ((None, None, None), (1, 1))])
def test_batch_sizes(numbers, expected):
    from sherd.deepspeed_settings import batch_of
    keys = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    assert batch_of({key: number for key, number in zip(keys, numbers) if number is not None}) == expected


@pytest.mark.parametrize("document, message", [
    ({"train_batch_size": 12, "train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 3}, "12.*3 x"),
    ({"train_batch_size": 10, "train_micro_batch_size_per_gpu": 4}, "train_batch_size 10"),
    ({"optimizer": {"type": "Adam", "params": {"learning_rate": 1}}}, "learning_rate for Adam.*betas, eps, lr"),
    ({"optimizer": {"type": "AdamW", "params": {"torch_adam": True, "nope": 1}}}, "nope"),
    ({"optimizer": {"type": "Adam", "params": {"max_grad_norm": 1}}}, "gradient_clipping"),
    ({"optimizer": {"type": "Adam", "params": {"amsgrad": True}}}, "amsgrad.*torch_adam"),
    ({"optimizer": {"type": "Adam", "params": {"bias_correction": False}}}, "bias_correction"),
    ({"optimizer": {"type": "Adam", "params": {"betas": "auto"}}}, "betas 'auto'"),
    *(({"optimizer": {"type": kind}}, kind) for kind in ("Lion", "Lamb", "Muon", "MuAdam", "LBFGS", "Adafactor")),
    ({"optimizer": {"type": "SGD", "params": {"betas": [0, 0]}}}, "betas for SGD"),
    ({"zero_optimization": {"stage": 3, "overlap_com": True}}, "overlap_com.*'overlap_comm'"),
    ({"zero_optimization": {"cpu_offload": True}}, "cpu_offload"),
    ({"zero_optimization": {"stage": 2, "zenflow": {}}}, "zenflow"),
    ({"zero_optimization": {"mics_shard_size": 2}}, "mics_shard_size.*no longer"),
    ({"amp": {"enabled": False}}, "amp.*no longer"),
    ({"fp16": {"enabled": True, "scale_window": 3}}, "fp16.scale_window.*'loss_scale_window'"),
    ({"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}}, "bf16_master"),
    ({"torch_autocast": {"enabled": True}}, "torch_autocast"),
    ({"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel"),
    ({"sequence_parallel_size": 2}, "sequence_parallel_size"), ({"data_types": {"param_dtype": "bf16"}}, "param_dtype"),
    ({"fp16": {"enabled": True}, "bfloat16": {"enabled": True}}, "bf16.enabled")])
def test_what_is_refused(document, message):
    from sherd import ConfigError
    from sherd.as_deepspeed import native
    with pytest.raises(ConfigError, match=message):
        native(document)


def test_schedules_that_are_refused():
    from sherd import ConfigError
    from sherd.deepspeed_schedules import schedule_of
    optimizer = torch.optim.AdamW(net().parameters())
    for section, message in (({"type": "Warmup"}, "Warmup.*WarmupLR"),
                             ({"type": "WarmupLR", "params": {"steps": 3}}, "steps"),
                             ({"type": "WarmupDecayLR"}, "total_num_steps"),
                             ({"type": "WarmupLR", "params": {"warmup_num_steps": 0}}, "above 0"),
                             ({"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}}, "'auto'"),
                             ({"type": "OneCycle", "params": {"cycle_min_lr": [1, 2], "cycle_max_lr": 1}},
                              "cycle_min_lr")):
        with pytest.raises(ConfigError, match=message):
            schedule_of(section, optimizer)


def test_what_is_not_followed_is_said_once(caplog):
    from sherd.as_deepspeed import native
    document = {"zero_optimization": {"stage": 3, "overlap_comm": True, "stage3_max_live_parameters": 5,
                                      "contiguous_gradients": True, "reduce_bucket_size": "auto",
                                      "zero_quantized_weights": True},
                "wall_clock_breakdown": True, "prescale_gradients": True, "gradient_cliping": 1.0,
                "tensorboard": {"enabled": False}, "steps_per_print": 10, "zero_allow_untested_optimizer": True}
    with caplog.at_level(logging.WARNING, "sherd"):
        native(document)
        native(document)
    assert len(caplog.records) == 1
    text = caplog.text
    for key in ("overlap_comm", "max_live_parameters", "zero_quantized_weights", "wall_clock_breakdown",
                "prescale_gradients", "gradient_cliping", "'gradient_clipping' is meant"):
        assert key in text, key
    for key in ("contiguous_gradients", "reduce_bucket_size", "tensorboard", "steps_per_print", "untested"):
        assert key not in text, key


@pytest.mark.parametrize("chosen", ("0 part", "2 groups", "3 part"))
def test_what_accelerate_leaves_to_the_configuration(chosen):
    from test_accelerate import run_program
    recorded = json.loads((HERE / "data" / "deepspeed_accelerate.json").read_text())[chosen]
    ours = run_program("dummies.py", *chosen.split(), ranks=2)
    assert ours["rates"] == recorded["rates"] and ours["skipped"] is False
    assert ours["losses"] == pytest.approx(recorded["losses"], rel=1e-6)
