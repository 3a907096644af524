"""Families of causal language models train under zero3 on two ranks with the losses of the same model unsharded."""
import sys

import pytest

from conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import families  # noqa: E402

KINDS = {
    "tied and untied, Conv1D, ALiBi, learned and rotary positions":
        ("bloom", "gpt2", "gpt_neox", "llama", "opt", "phi"),
    "mixtures of experts, experts in one parameter, latent attention":
        ("deepseek_v2", "deepseek_v3", "gpt_oss", "mixtral", "qwen2_moe"),
    "state spaces and recurrences; a block shared by several layers": ("bamba", "mamba", "rwkv", "zamba"),
    "softcapping, parallel attention, models inside of models, parameters without gradients":
        ("bart", "blt", "falcon", "gemma2", "gemma3"),
    "blocks run again in backward, writes to parameters that change nothing": ("gemma3n_text", "reformer"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_trains_as_unsharded(kind):
    answers = families.together(KINDS[kind])
    assert answers == {name: "ok" for name in KINDS[kind]}
