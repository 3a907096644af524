"""Logits of Hugging Face Llamas against transformers, and what we write read back by transformers.

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

SHAPES = {
    "grouped": dict(hidden_size=60, num_attention_heads=6, num_key_value_heads=2, intermediate_size=77, vocab_size=101,
                    num_hidden_layers=3, max_position_embeddings=64),
    "one_kv_head": dict(hidden_size=36, num_attention_heads=3, num_key_value_heads=1, intermediate_size=50, vocab_size=37,
                        num_hidden_layers=1, max_position_embeddings=70, rms_norm_eps=1e-5),
    "head_dim": dict(hidden_size=44, num_attention_heads=4, num_key_value_heads=4, head_dim=14, intermediate_size=31,
                     vocab_size=53, num_hidden_layers=2, max_position_embeddings=32, rope_theta=500000.0),
}


def random_model(folder, shape, tied, **save):
    torch.manual_seed(0)
    # Logits of a few units: larger ones have roundings of 1e-5 in transformers itself.
    config = transformers.LlamaConfig(**SHAPES[shape], tie_word_embeddings=tied, initializer_range=0.1)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder, **save)
    return model


def our_logits(folder, tokens, *more):
    stream = np.concatenate([np.array(tokens.shape), tokens.numpy().ravel()]).astype("<i8")
    stream.tofile(folder / "tokens.bin")
    out = folder / "logits.bin"
    subprocess.run([BUILD / "hf_logits", folder, folder / "tokens.bin", out, *more], check=True, timeout=120)
    return torch.from_numpy(np.fromfile(out, "<f4").reshape(*tokens.shape, -1))


def difference(model, folder, *more):
    time = model.config.max_position_embeddings
    tokens = torch.randint(model.config.vocab_size, (2, time), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(tokens).logits
    assert expected.abs().max() > 0.5  # the comparison means something
    return (our_logits(folder, tokens, *more) - expected).abs().max().item()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits(tmp_path, shape, tied):
    model = random_model(tmp_path, shape, tied)
    assert difference(model, tmp_path) < 1e-5


def test_sharded_folder(tmp_path):
    model = random_model(tmp_path, "grouped", False, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert difference(model, tmp_path) < 1e-5


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_what_we_write_loads_in_transformers(tmp_path, tied):
    model = random_model(tmp_path, "grouped", tied)
    copy = tmp_path / "copy"
    assert difference(model, tmp_path, copy) < 1e-5
    read, info = transformers.LlamaForCausalLM.from_pretrained(copy, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert read.dtype == torch.float32
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, read.state_dict()[name]), name
    assert difference(read.eval(), copy) < 1e-5


@pytest.mark.parametrize("key, value", [("rope_scaling", {"rope_type": "linear", "factor": 2.0}), ("attention_bias", True)])
def test_unsupported_config_is_refused(tmp_path, key, value):
    random_model(tmp_path, "grouped", False)
    config = json.loads((tmp_path / "config.json").read_text())
    config[key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    np.array([1, 1, 0]).astype("<i8").tofile(tmp_path / "tokens.bin")
    run = subprocess.run([BUILD / "hf_logits", tmp_path, tmp_path / "tokens.bin", tmp_path / "out"], capture_output=True,
                         text=True, timeout=120)
    assert run.returncode == 2 and key in run.stderr
