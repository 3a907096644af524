"""Logits of Hugging Face models against transformers, and what we write read back by transformers.

Finds the tool by SHERD_BUILD (default: build/ of the repository).
"""
import json
import os
import pathlib
import subprocess

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("SHERD_BUILD", ROOT / "build"))

GROUPED = dict(hidden_size=60, num_attention_heads=6, num_key_value_heads=2, intermediate_size=77, vocab_size=101,
               num_hidden_layers=3, max_position_embeddings=64)
ONE_KV_HEAD = dict(hidden_size=36, num_attention_heads=3, num_key_value_heads=1, intermediate_size=50, vocab_size=37,
                   num_hidden_layers=1, max_position_embeddings=70, rms_norm_eps=1e-5)
HEAD_DIM = dict(hidden_size=44, num_attention_heads=4, num_key_value_heads=4, head_dim=14, intermediate_size=31,
                vocab_size=53, num_hidden_layers=2, max_position_embeddings=32, rope_theta=500000.0)

# The architecture and the shape; rows are as long as max_position_embeddings.
MODELS = {
    "llama_grouped": ("Llama", GROUPED),
    "llama_one_kv_head": ("Llama", ONE_KV_HEAD),
    "llama_head_dim": ("Llama", HEAD_DIM),
    "mistral_window": ("Mistral", {**GROUPED, "sliding_window": 7}),
    "mistral_window_of_one": ("Mistral", {**ONE_KV_HEAD, "sliding_window": 1}),
    "mistral_no_window": ("Mistral", {**HEAD_DIM, "sliding_window": None}),
    "mistral_long_window": ("Mistral", {**GROUPED, "sliding_window": 64}),
    "qwen2_grouped": ("Qwen2", GROUPED),
    "qwen2_head_dim": ("Qwen2", HEAD_DIM),
    "qwen2_window_from_layer": ("Qwen2", {**GROUPED, "use_sliding_window": True, "sliding_window": 9,
                                          "max_window_layers": 1}),
    "qwen2_window_by_layer": ("Qwen2", {**GROUPED, "use_sliding_window": True, "sliding_window": 5, "layer_types":
                                        ["sliding_attention", "full_attention", "sliding_attention"]}),
    "qwen2_window_unused": ("Qwen2", {**ONE_KV_HEAD, "use_sliding_window": False, "sliding_window": 3,
                                      "max_window_layers": 0}),
}


def random_model(folder, name, tied, **save):
    torch.manual_seed(0)
    family, shape = MODELS[name]
    # Logits of a few units: larger ones have roundings of 1e-5 in transformers itself.
    config = getattr(transformers, family + "Config")(**shape, tie_word_embeddings=tied, initializer_range=0.1)
    model = getattr(transformers, family + "ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name or "bias" in parameter_name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder, **save)
    return model


def our_logits(folder, tokens, *more):
    stream = np.concatenate([np.array(tokens.shape), tokens.numpy().ravel()]).astype("<i8")
    stream.tofile(folder / "tokens.bin")
    out = folder / "logits.bin"
    subprocess.run([BUILD / "hf_logits", folder, folder / "tokens.bin", out, *more], check=True, timeout=120)
    return torch.from_numpy(np.fromfile(out, "<f4").reshape(*tokens.shape, -1))


def difference(model, folder, *more, time=None):
    time = time or model.config.max_position_embeddings
    tokens = torch.randint(model.config.vocab_size, (2, time), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(tokens).logits
    assert expected.abs().max() > 0.5  # the comparison means something
    return (our_logits(folder, tokens, *more) - expected).abs().max().item()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", MODELS)
def test_logits(tmp_path, name, tied):
    model = random_model(tmp_path, name, tied)
    assert difference(model, tmp_path) < 1e-5


@pytest.mark.parametrize("name", [name for name in MODELS if "window_" in name or name.endswith("window")])
def test_logits_of_rows_as_short_as_the_window(tmp_path, name):
    model = random_model(tmp_path, name, False)
    for time in [1, 5, 6, 7, 8]:
        assert difference(model, tmp_path, time=time) < 1e-5, time


def test_sharded_folder(tmp_path):
    model = random_model(tmp_path, "llama_grouped", False, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert difference(model, tmp_path) < 1e-5


def expect_loads(folder):
    """The folder's model, as transformers reads it, without anything missing."""
    read, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert read.dtype == torch.float32
    return read.eval()


@pytest.mark.parametrize("name, tied", [("llama_grouped", False), ("llama_grouped", True), ("mistral_window", False),
                                        ("mistral_no_window", True), ("qwen2_grouped", True),
                                        ("qwen2_window_by_layer", False), ("qwen2_window_from_layer", True)])
def test_what_we_write_loads_in_transformers(tmp_path, name, tied):
    model = random_model(tmp_path, name, tied)
    copy = tmp_path / "copy"
    assert difference(model, tmp_path, copy) < 1e-5
    read = expect_loads(copy)
    assert type(read) is type(model)
    for parameter_name, parameter in model.state_dict().items():
        assert torch.equal(parameter, read.state_dict()[parameter_name]), parameter_name
    assert difference(read, copy) < 1e-5
    tokens = torch.arange(2 * 30).view(2, 30) % model.config.vocab_size
    with torch.no_grad():
        assert torch.equal(read(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("name, tied", [("mistral_window", False), ("qwen2_window_by_layer", True)])
def test_training_goes_on_from_a_folder(tmp_path, sherd, name, tied):
    model = random_model(tmp_path / "start", name, tied)
    tokens = torch.randint(model.config.vocab_size, (4000,), generator=torch.Generator().manual_seed(2))
    tokens.numpy().astype("<u2").tofile(tmp_path / "tokens.bin")
    config = {"model": {"path": str(tmp_path / "start")},
              "data": {"tokens": str(tmp_path / "tokens.bin"), "context": 24, "order": "sequential"},
              "batch": {"rows": 4}, "optimizer": {"lr": 1e-3, "eps": 1e-5, "weight_decay": 0.1},
              "schedule": {"type": "constant"}, "clip": 1.0, "strategy": "zero3", "steps": 3,
              "output": str(tmp_path / "run")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = subprocess.run([sherd, "train", tmp_path / "config.json", "--ranks", "2"], capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]

    # The same with transformers: no decay of norms and biases, which is the default. A large eps, since with a small
    # one the sign of a gradient near zero, which is rounding, moves a weight as far as any other.
    plain = [p for n, p in model.named_parameters() if "norm" in n or n.endswith("bias")]
    decayed = [p for n, p in model.named_parameters() if not ("norm" in n or n.endswith("bias"))]
    optimizer = torch.optim.AdamW([{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.1}],
                                  lr=1e-3, betas=(0.9, 0.95), eps=1e-5)
    for step, loss in enumerate(losses):
        rows = torch.stack([tokens[24 * row: 24 * row + 25] for row in range(4 * step, 4 * step + 4)])
        logits = model(rows[:, :-1]).logits
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        expected.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        assert loss == pytest.approx(expected.item(), rel=2e-6), step

    trained = expect_loads(tmp_path / "run" / "model")
    for parameter_name, parameter in model.state_dict().items():
        assert (trained.state_dict()[parameter_name] - parameter).abs().max() < 1e-5, parameter_name
    sampled = subprocess.run([sherd, "sample", tmp_path / "run", "--tokens", "1,2,3", "--max-tokens", "20",
                              "--temperature", "0"], capture_output=True, text=True, timeout=120)
    assert sampled.returncode == 0, sampled.stderr
    assert len(sampled.stdout.replace(",", " ").split()) >= 20


@pytest.mark.parametrize("name, key, value", [
    ("llama_grouped", "rope_scaling", {"rope_type": "linear", "factor": 2.0}),
    ("llama_grouped", "attention_bias", True), ("mistral_window", "sliding_window", 0),
    ("mistral_window", "hidden_act", "gelu"), ("qwen2_grouped", "layer_types", ["sliding_attention"] * 3),
    ("qwen2_grouped", "model_type", "qwen3")])
def test_unsupported_config_is_refused(tmp_path, name, key, value):
    random_model(tmp_path, name, False)
    config = json.loads((tmp_path / "config.json").read_text())
    config[key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    np.array([1, 1, 0]).astype("<i8").tofile(tmp_path / "tokens.bin")
    run = subprocess.run([BUILD / "hf_logits", tmp_path, tmp_path / "tokens.bin", tmp_path / "out"],
                         capture_output=True, text=True, timeout=120)
    assert run.returncode == 2 and key in run.stderr
