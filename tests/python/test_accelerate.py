"""Unmodified Trainer and Accelerate programs under sherd, against the same programs without it."""
import json
import os
import subprocess
import sys

import pytest

from conftest import ROOT

PROGRAMS = ROOT / "tests" / "python" / "programs"


def run_program(program, *arguments, ranks=0, environment=None):
    """What the program printed as its result; ranks: 0 without sherd, else under sherd."""
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    if ranks:
        command += ["-m", "sherd.as_deepspeed"]
    command += [str(PROGRAMS / program), *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
                          capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-20000:]
    return json.loads(next(line for line in done.stdout.splitlines()
                           if line.startswith("RESULT")).removeprefix("RESULT"))


def weights(folder):
    from transformers import LlamaForCausalLM
    return LlamaForCausalLM.from_pretrained(folder).state_dict()


def assert_close(folder, other, tolerance):
    ours, theirs = weights(folder), weights(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert (value - theirs[name]).abs().max() < tolerance, name


def flat(history):
    return [value for entry in history for value in entry]


def test_trainer_with_checkpoints_and_resume(tmp_path):
    plain = run_program("trainer.py", tmp_path / "plain", 4)
    one = run_program("trainer.py", tmp_path / "one", 4, ranks=1)
    two = run_program("trainer.py", tmp_path / "two", 2, ranks=2)
    again = run_program("trainer.py", tmp_path / "two", 2, "resume", ranks=2)
    for ours in (one, two, again):
        assert flat(ours["history"]) == pytest.approx(flat(plain["history"]), rel=1e-3)
        assert ours["evaluated"] == pytest.approx(plain["evaluated"], rel=1e-3)
    assert_close(tmp_path / "one" / "final", tmp_path / "plain" / "final", 1e-3)
    assert_close(tmp_path / "two" / "final", tmp_path / "plain" / "final", 1e-3)


def test_an_accelerate_program():
    plain = run_program("accelerated.py", 8)
    losses = {}
    for stage in ("1", "3"):
        environment = {"ACCELERATE_DEEPSPEED_ZERO_STAGE": stage}
        one = run_program("accelerated.py", 8, ranks=1, environment=environment)
        two = run_program("accelerated.py", 8, ranks=2, environment=environment)
        assert one["losses"] == pytest.approx(plain["losses"], rel=1e-4)
        for name, value in plain["state"].items():
            assert one["state"][name] == [pytest.approx(v, rel=1e-3, abs=1e-5) for v in value]
        assert two["losses"][-1] < two["losses"][0] and len(two["losses"]) == len(plain["losses"]) // 2
        losses[stage] = two["losses"]
    assert losses["1"] == pytest.approx(losses["3"], rel=1e-5)


def test_a_pretrained_model_is_sharded_while_it_is_read(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig
    llama = LlamaConfig(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                        num_attention_heads=4, num_key_value_heads=2)
    # transformers 4 initializes some of its modules again before it reads them.
    gpt2 = GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=16, attn_pdrop=0, embd_pdrop=0,
                      resid_pdrop=0)
    for config in (llama, gpt2):
        torch.manual_seed(0)
        folder = tmp_path / config.model_type
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        plain = run_program("pretrained.py", folder)
        ours = run_program("pretrained.py", folder, ranks=2, environment={"ACCELERATE_DEEPSPEED_ZERO3_INIT": "true"})
        assert plain["plain"] and not ours["plain"]
        assert ours["losses"] == pytest.approx(plain["losses"], rel=1e-4)
        assert ours["drawn"] == plain["drawn"]


def in_16_bits(document, model_type=None):
    import torch

    from fsdp_models import token_loss
    from sherd import as_deepspeed
    from test_precision import seeded
    model = seeded().to(model_type or torch.float32)
    made, *_ = as_deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2),
                                       config=document)
    losses = []
    for step in range(4):
        loss = token_loss(made, step, made.world.rank)
        made.backward(loss)
        made.step()
        losses.append(loss.item())
    return losses, made.loss_scale, [str(p.dtype) for p in model.parameters()]


def test_deepspeeds_sections_of_16_bits():
    import torch
    """The model's parameters stay fp32, as DeepSpeed's masters do; what is computed is not."""
    from ranks import run
    plain = run(2, in_16_bits, {"zero_optimization": {"stage": 3}})[0]
    fp16 = {"enabled": True, "initial_scale_power": 9, "loss_scale_window": 3}
    half, wire, bf16 = (run(2, in_16_bits, {"zero_optimization": {"stage": 3}, **more})[0] for more in (
        {"fp16": fp16}, {"fp16": {"enabled": True, "loss_scale": 128}, "communication_data_type": "fp32"},
        {"bf16": {"enabled": True}}))
    read_in_16_bits = run(2, in_16_bits, {"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}},
                          torch.bfloat16)[0]
    assert set(read_in_16_bits[2]) == {"torch.float32"}
    reduced = run(2, in_16_bits, {"zero_optimization": {"stage": 3}, "communication_data_type": "bf16"})[0]
    assert reduced[0] != plain[0] and reduced[0] == pytest.approx(plain[0], rel=2e-2)
    assert plain[1] == bf16[1] == 1 and half[1] == 1024 and wire[1] == 128
    for got in (half, wire, bf16):
        assert set(got[2]) == {"torch.float32"} and got[0] != plain[0]
        assert got[0] == pytest.approx(plain[0], rel=2e-2)


@pytest.mark.parametrize("document, message", [
    ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "bf16"),
    ({"bf16": {"enabled": True}, "communication_data_type": "x"}, "'x'"),
    ({"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}, "offload_param"),
    ({"zero_optimization": {"stage": 4}}, "stage"), ({"optimizer": {"type": "Lamb"}}, "Lamb")])
def test_what_sherd_cannot_do_is_an_error(document, message):
    from sherd import ConfigError
    from sherd.as_deepspeed import native
    with pytest.raises(ConfigError, match=message):
        native(document)
