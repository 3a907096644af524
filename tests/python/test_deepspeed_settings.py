"""How a DeepSpeed configuration is read: where from, what its numbers mean, what is refused or not followed."""
import base64
import json
import logging
import pathlib

import pytest
import torch

from test_deepspeed import net

HERE = pathlib.Path(__file__).parent


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
