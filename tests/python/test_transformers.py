"""Families of causal language models train under zero3 on two ranks with the losses of the same model unsharded."""
import sys

import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import families  # noqa: E402

# Tied and untied, Conv1D, ALiBi, learned and rotary positions, mixtures of experts, state spaces, softcapping.
KINDS = ("bloom", "deepseek_v3", "gemma2", "gpt2", "gpt_neox", "llama", "mamba", "mixtral", "opt", "phi", "qwen2_moe")


@pytest.mark.parametrize("name", KINDS)
def test_trains_as_unsharded(name):
    assert families.family(name)[0] == "ok"
