"""An engine that trains as DeepSpeed 0.19.8's does: what it skips, counts, divides and saves."""
import pytest
import torch
from torch import nn

from fsdp_models import joined
from ranks import run
from test_deepspeed import ADAM, initialized, loss_of, net


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
    import json
    import math

    from sherd._C import StepJudge, loss_scale_options

    def judge_from(initial):
        setting = json.dumps(dict(initial=initial, window=window, hysteresis=hysteresis, minimum=1.0,
                                  consecutive_hysteresis=refills))
        return StepJudge(None, loss_scale_options(setting, torch.float16, torch.float16).after_window())

    judge, found = judge_from(64.0), []
    for i, step in enumerate("...x..x...xx.....x.x......"):
        assert judge.judge(math.inf if step == "x" else 1.0, lambda: "").made == (step == ".")
        found.append(judge.loss_scale)
        if i == 7:
            other = judge_from(1.0)
            other.restore(6, 2, judge.scale_state())
            judge = other
    assert found == [2.0 ** int(power) for power in scales.split()]
