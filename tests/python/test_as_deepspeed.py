"""Programs of Hugging Face's libraries under sherd.as_deepspeed that look at parameters, or call parts of models, as
they would under DeepSpeed: against the same programs without it."""
import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from conftest import ROOT
from fsdp_models import Net, token_loss
from ranks import free_port, outcomes, run
from test_accelerate import PROGRAMS, run_program


def close(ours, plain, rel=1e-5):
    assert ours["losses"] == pytest.approx(plain["losses"], rel=rel, abs=1e-6)


def test_names_that_are_there_and_names_that_are_not():
    done = subprocess.run([sys.executable, "-m", "sherd.as_deepspeed", "-m", "programs.names"], cwd=PROGRAMS.parent,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    messages = json.loads(done.stdout.split("RESULT")[1])
    assert all("not in sherd's stand-in for DeepSpeed 0.19.8" in message for message in messages), messages
    assert [message.split(":")[0] for message in messages] == [
        "ImportError", "ImportError", "AttributeError", "AttributeError", "ConfigError"]
    assert "'deepspeed.utils.no_such_name'" in messages[0] and "'deepspeed.no_such_module'" in messages[1]


@pytest.mark.parametrize("more", [(), ("bf16",)], ids=["fp32", "bf16"])
def test_a_program_that_reads_and_writes_parameters(tmp_path, more):
    plain = run_program("parameters_read.py", tmp_path / "plain", 8, *more, environment={"ACCELERATE_USE_CPU": "true"})
    ours = run_program("parameters_read.py", tmp_path / "ours", 4, *more, ranks=2,
                       environment={"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"})
    close(ours, plain, 1e-4 if more else 1e-5)
    assert ours["checks"] == pytest.approx(plain["checks"], rel=1e-2 if more else 1e-5)
    for name, value in plain["saved"].items():
        assert ours["saved"][name] == pytest.approx(value, rel=1e-5, abs=2e-2 if more else 1e-5), name


def engine_of(model, stage, **config):
    from sherd import as_deepspeed
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return as_deepspeed.initialize(model=model, optimizer=optimizer, config={
        "zero_optimization": {"stage": stage}, "gradient_clipping": 0.0, **config})[0]


def changed_between_steps(step, model):
    """What programs do to parameters of a model in training."""
    with torch.no_grad():
        if step == 0:
            for p in model.parameters():
                p.mul_(0.9).clamp_(-0.3, 0.3)
        if step == 1:
            for p in model.parameters():
                p.data.sub_(0.01)
        if step == 2:
            model.head.weight.data = model.head.weight.data * 0.5
        if step == 3:
            model.load_state_dict({name: value * 1.01 for name, value in model.state_dict().items()})
        if step == 4:
            nn.init.constant_(model.norm.bias, 0.125)


def whole_outside(stage, transport):
    import sherd
    world = sherd.init(transport=transport)
    torch.manual_seed(0)
    plain = Net(tied=stage == 0)
    ours = copy.deepcopy(plain)
    average = copy.deepcopy(plain)
    engine = engine_of(ours, stage)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2)
    for step in range(6):
        for rank in range(world.size):
            (token_loss(plain, step, rank) / world.size).backward()
        optimizer.step()
        optimizer.zero_grad()
        engine.backward(token_loss(engine, step, world.rank))
        if step == 5:  # between backward and step: the optimizer then updates what was written
            for model in (ours,):
                assert all(p.grad is None for p in model.parameters())
        engine.step()
        for p, q in zip(plain.parameters(), ours.parameters()):
            assert type(q) is nn.Parameter
            assert (p - q).abs().max() < 1e-5
        for mean, p in zip(average.parameters(), ours.parameters()):
            mean.data.lerp_(p.data, 0.5)
        changed_between_steps(step, plain)
        changed_between_steps(step, ours)
        x = torch.ones(3, 7, dtype=torch.long)
        with torch.no_grad():  # an inner module, and the whole
            assert (plain.embed(x) - ours.embed(x)).abs().max() < 1e-5
            assert (plain(x) - engine(x)).abs().max() < 1e-4
    state = sherd.full_state_dict(ours, all_ranks=True)
    for name, value in plain.state_dict().items():
        assert (state[name] - value).abs().max() < 1e-5, name


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("transport", ["host", "gloo"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_parameters_are_whole_outside_where_the_strategy_keeps_them(stage, transport, ranks):
    run(ranks, whole_outside, stage, transport)


def used_outside(transport):
    import sherd
    world = sherd.init(transport=transport)
    torch.manual_seed(0)
    plain = Net()
    ours, average = copy.deepcopy(plain), copy.deepcopy(plain)
    engine = engine_of(ours, 3)
    x = torch.ones(3, 7, dtype=torch.long)
    with torch.no_grad():
        assert torch.equal(plain.embed(x), ours.embed(x))
        assert torch.equal(plain.norm(plain.embed(x)), ours.norm(ours.embed(x)))
    plain.head(plain.embed(x)).sum().backward()
    ours.head(ours.embed(x)).sum().backward()
    for name in ("embed", "head"):
        assert torch.allclose(getattr(ours, name).weight.grad.full_tensor(), getattr(plain, name).weight.grad,
                              atol=1e-5)
    engine.zero_grad()
    with torch.no_grad():
        for mean, p in zip(average.parameters(), ours.parameters()):
            mean.mul_(0.5).add_(p, alpha=0.25)
            p.copy_(mean)
        for mean, p in zip(average.parameters(), plain.parameters()):
            assert torch.allclose(mean, p * 0.75)
    state = sherd.full_state_dict(ours, all_ranks=True)
    for name, value in average.state_dict().items():
        assert torch.equal(state[name], value), name
    assert world.size == 1 or engine.zero_optimization_stage() == 3


@pytest.mark.parametrize("transport", ["host", "gloo"])
def test_uses_of_sharded_parameters_outside_of_forwards_gather_them(transport):
    run(2, used_outside, transport)


def engine_names():
    model = Net()
    model.config = {"of": "the model"}
    engine = engine_of(model, 2, train_micro_batch_size_per_gpu=2, gradient_accumulation_steps=3)
    assert engine.config["zero_optimization"] == {"stage": 2} and engine.module.config == {"of": "the model"}
    assert engine.train_batch_size() == 2 * 3 * engine.world.size and engine.embed is model.embed
    assert engine.zero_optimization_partition_gradients() and not engine.zero_optimization_partition_weights()
    with pytest.raises(AttributeError,
                       match="DeepSpeedEngine.monitor, which is not in sherd's stand-in for DeepSpeed 0.19.8"):
        _ = engine.monitor
    from sherd import deepspeed_parameters as parameters
    engine.set_gradient_accumulation_boundary(True)
    engine.backward(token_loss(engine, 0, engine.world.rank))
    weight = model.head.weight
    gradient = parameters.safe_get_full_grad(weight)
    assert gradient.shape == weight.shape and gradient.abs().sum() > 0
    engine.step()
    assert engine.was_step_applied()
    assert torch.allclose(parameters.safe_get_full_optimizer_state(weight, "exp_avg"), gradient * 0.1, atol=1e-6)
    parameters.safe_set_full_fp32_param(weight, torch.full_like(weight, 0.5))
    assert (weight == 0.5).all() and (parameters.safe_get_full_fp32_param(weight) == 0.5).all()
    engine.compile(backend="eager", compile_kwargs={"dynamic": False})
    assert engine.is_compiled and torch.isfinite(token_loss(engine, 1, engine.world.rank))


def test_an_engines_names():
    run(2, engine_names)


def test_inner_modules_called_by_generate_and_by_programs(tmp_path):
    plain = run_program("encoder_decoder.py", tmp_path / "plain", 8, environment={"ACCELERATE_USE_CPU": "true"})
    for stage in ("3", "2"):
        ours = run_program("encoder_decoder.py", tmp_path / stage, 4, ranks=2,
                           environment={"ACCELERATE_DEEPSPEED_ZERO_STAGE": stage})
        for name, expected in plain.items():
            close(ours[name], expected)
            assert ours[name]["tokens"] == expected["tokens"]
            assert ours[name]["encoded"] == pytest.approx(expected["encoded"], rel=1e-5)
            assert ours[name]["read"].keys() == expected["read"].keys()  # tied heads once
            for key, value in expected["read"].items():
                assert ours[name]["read"][key] == pytest.approx(value, rel=1e-5, abs=1e-4), key


def test_adapters_of_a_model_that_is_sharded_while_it_is_read(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM
    LlamaForCausalLM(LlamaConfig(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                 num_attention_heads=4, num_key_value_heads=2)).save_pretrained(tmp_path)
    plain = run_program("adapters.py", tmp_path, 8, tmp_path / "plain", environment={"ACCELERATE_USE_CPU": "true"})
    ours = run_program("adapters.py", tmp_path, 4, tmp_path / "ours", ranks=2,
                       environment={"ACCELERATE_DEEPSPEED_ZERO3_INIT": "true"})
    assert ours["sizes"] == plain["sizes"]
    close(ours, plain, 1e-4)
    assert ours["saved"].keys() == plain["saved"].keys()
    for key, value in plain["saved"].items():
        assert ours["saved"][key] == pytest.approx(value, rel=1e-3), key


def optimizers():
    from transformers import Adafactor
    yield lambda parameters: Adafactor(parameters, lr=1e-2, relative_step=False, scale_parameter=True, beta1=0.9)
    yield lambda parameters: Adafactor(parameters, lr=None)
    for kind in (torch.optim.Adafactor, torch.optim.Adagrad, torch.optim.Rprop):
        yield lambda parameters, kind=kind: kind(parameters, lr=1e-2)


def steps_of_optimizers(strategy, folder):
    import sherd
    world = sherd.distributed.world()
    for number, make in enumerate(optimizers()):
        torch.manual_seed(0)
        plain = Net()
        ours = copy.deepcopy(plain)
        optimizer = make(list(plain.parameters()))
        engine, *_ = sherd.initialize(model=ours, optimizer=make(list(ours.parameters())),
                                      config={"strategy": strategy, "clip": None})
        for step in range(3):
            for rank in range(world.size):
                (token_loss(plain, step, rank) / world.size).backward()
            optimizer.step()
            optimizer.zero_grad()
            engine.backward(token_loss(engine, step, world.rank))
            engine.step()
            if step == 0:
                engine.save_checkpoint(f"{folder}/{number}")
                engine.load_checkpoint(f"{folder}/{number}")
        state = sherd.full_state_dict(ours, all_ranks=True)
        for name, value in plain.state_dict().items():
            assert (state[name] - value).abs().max() < 1e-5, (number, name)


@pytest.mark.parametrize("strategy", ["zero3", "ddp"])
def test_optimizers_that_are_not_element_by_element(tmp_path, strategy):
    run(2, steps_of_optimizers, strategy, str(tmp_path))


def first_forward_inside_gathered():
    import sherd
    model = sherd.shard(Net())
    with sherd.GatheredParameters(list(model.parameters())):
        model(torch.ones(1, 3, dtype=torch.long))


def test_a_first_forward_inside_of_gathered_parameters_is_refused():
    for failure in outcomes(2, first_forward_inside_gathered):
        assert failure.kind == "ConfigError" and "first forward inside of GatheredParameters" in failure.message


CONFIGURATIONS = {
    "DEEPSPEED": {"deepspeed_config": {"gradient_accumulation_steps": 2, "gradient_clipping": 1.0, "zero_stage": 2,
                                       "zero3_init_flag": False, "offload_optimizer_device": "none",
                                       "offload_param_device": "none"}},
    "FSDP": {"fsdp_config": {"fsdp_version": 2, "fsdp_reshard_after_forward": True, "fsdp_offload_params": False,
                             "fsdp_cpu_ram_efficient_loading": False,
                             "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}}}


def launched(tmp_path, kind, environment=None, **changes):
    document = {"compute_environment": "LOCAL_MACHINE", "distributed_type": kind, "num_machines": 1, "num_processes": 2,
                "machine_rank": 0, "mixed_precision": "no", "use_cpu": False, "main_process_port": free_port(),
                **CONFIGURATIONS[kind]}
    for key, value in changes.items():
        document[f"{kind.lower()}_config"][key] = value
    (tmp_path / "config.json").write_text(json.dumps(document))
    return subprocess.run([sys.executable, "-m", "sherd.accelerate", "launch", "--config_file",
                           str(tmp_path / "config.json"), str(PROGRAMS / "accelerated.py"), "8"],
                          env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}, cwd=ROOT,
                          capture_output=True, text=True, timeout=180)


def test_accelerate_launch(tmp_path):
    expected = run_program("accelerated.py", 8, ranks=2, environment={"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"})
    for kind in CONFIGURATIONS:
        done = launched(tmp_path, kind, {"ACCELERATE_GRADIENT_CLIPPING": "1.0"} if kind == "FSDP" else None)
        assert done.returncode == 0, done.stderr[-5000:]
        assert json.loads(done.stdout.split("RESULT")[1])["losses"] == pytest.approx(expected["losses"], rel=1e-5)
        assert (kind == "FSDP") == ("an FSDP 2 configuration" in done.stderr and "ZeRO-3" in done.stderr)


@pytest.mark.parametrize("changes, message", [
    ({}, "got clip_grad_norm_ with max_norm=1.0, after a step that was clipped at 0"),
    ({"fsdp_offload_params": True}, "got fsdp_offload_params: true in an FSDP configuration")])
def test_what_cannot_be_followed_of_an_fsdp_configuration(tmp_path, changes, message):
    done = launched(tmp_path, "FSDP", **changes)
    assert done.returncode != 0 and message in done.stderr
