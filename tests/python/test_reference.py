"""The command on the recorded reference: every strategy, rank count and transport of real processes.

tests/golden/tiny holds what PyTorch got: losses and gradient norms of 20 steps and the final weights. (The threads
transport exists in one process only: tests/engine/llama_training_test.cpp holds it to the same reference.)
"""
import json
import subprocess

import numpy as np
import pytest
from safetensors.numpy import load_file

from conftest import GOLDEN, TINY_CONFIG

STRATEGIES = ["ddp", "zero1", "zero2", "zero3"]


@pytest.fixture
def train(sherd, write_config):
    """Runs the command; returns its metrics and final weights."""

    def run(*options, **changes):
        file = write_config({"steps": 20, **changes})
        done = subprocess.run([sherd, "train", str(file), *options], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        folder = file.parent / "run"
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines], load_file(folder / "model" / "model.safetensors")

    return run


def bits(result):
    metrics, weights = result
    numbers = [(line["loss"], line["grad_norm"]) for line in metrics]
    return numbers, {name: values.tobytes() for name, values in weights.items()}


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_every_strategy_and_transport_gives_the_reference_and_the_same_bits(train, ranks):
    reference = json.loads((GOLDEN / "losses.json").read_text())
    expected = load_file(GOLDEN / "final.safetensors")
    first = None
    for transport in ["host", "gloo"] if ranks > 1 else ["auto"]:
        for strategy in STRATEGIES:
            result = train("--ranks", str(ranks), "--transport", transport, "--strategy", strategy)
            metrics, weights = result
            np.testing.assert_allclose([line["loss"] for line in metrics], reference["losses"], rtol=2e-6)
            np.testing.assert_allclose([line["grad_norm"] for line in metrics], reference["gradient_norms"], rtol=2e-6)
            assert weights.keys() == expected.keys()
            for name in expected:
                np.testing.assert_allclose(weights[name], expected[name], rtol=0, atol=1e-5)
            first = first or bits(result)
            assert bits(result) == first, f"{strategy} over {transport}"


@pytest.mark.parametrize("reduce", ["every", "last"])
def test_accumulation_gives_the_same_bits_everywhere(train, reduce):
    batch = {"rows": 4, "micro": 1, "accumulate": 2, "reduce": reduce}
    first = None
    for transport in ["host", "gloo"]:
        for strategy in STRATEGIES:
            result = train("--ranks", "3", "--transport", transport, "--strategy", strategy,
                           batch=batch, steps=5)
            first = first or bits(result)
            assert bits(result) == first, f"{strategy} over {transport}"


def test_recomputation_and_persistent_groups_do_not_change_a_bit(train):
    first = bits(train("--ranks", "2", steps=4))
    for change in [{"recompute": "full"}, {"recompute": "every:2"}, {"persistent_below": 20000},
                   {"recompute": "full", "persistent_below": 20000, "transport": "gloo"}]:
        assert bits(train("--ranks", "2", steps=4, **change)) == first, change


@pytest.mark.parametrize("transport", ["host", "gloo"])
def test_hsdp_gives_the_reference(train, transport):
    reference = json.loads((GOLDEN / "losses.json").read_text())
    expected = load_file(GOLDEN / "final.safetensors")
    for ranks, replicate in [(2, 2), (4, 2)]:
        metrics, weights = train("--ranks", str(ranks), strategy="hsdp", mesh={"replicate": replicate},
                                 transport=transport)
        np.testing.assert_allclose([line["loss"] for line in metrics], reference["losses"], rtol=2e-6)
        for name in expected:
            np.testing.assert_allclose(weights[name], expected[name], rtol=0, atol=1e-5)


def test_metrics_have_what_other_tools_rely_on(train):
    metrics, _ = train("--ranks", "2", steps=3)
    assert [line["step"] for line in metrics] == [1, 2, 3]
    for line in metrics:
        for key in ["loss", "grad_norm", "lr", "tokens_per_s", "step_s", "memory_mib"]:
            assert line[key] > 0


def test_validation_loss_is_the_same_for_every_number_of_ranks(train):
    data = {**TINY_CONFIG["data"], "validation": 0.2}
    seen = []
    for ranks in [1, 3]:
        metrics, _ = train("--ranks", str(ranks), data=data, steps=2, eval_every=2, eval_rows=4)
        seen.append(metrics[1]["validation_loss"])
        assert "validation_loss" not in metrics[0]
    assert seen[0] == pytest.approx(seen[1], rel=2e-6)
