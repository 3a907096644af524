"""Which tokens the loss counts, and what it is divided by: masks, documents, uneven splits, accumulation and the last
step of an epoch, each against a plain loop over the same data, whatever the number of ranks."""
import json
import subprocess

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

pytest.importorskip("transformers")
import plain
from conftest import TINY_CONFIG

STEPS = 5
SEPARATOR = 7


# Linear in the gradients, unlike Adam, which makes rounding errors of tiny gradients into whole steps.
OPTIMIZER = {"type": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "no_decay": []}


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)


@pytest.fixture
def files(tmp_path):
    """Tokens with documents, and a mask whose ones are unevenly spread: some rows have hundreds, some none."""
    random = np.random.default_rng(0)
    tokens = plain.golden_tokens()[:1300].copy()
    tokens[random.random(len(tokens)) < 0.05] = SEPARATOR
    chance = np.repeat(random.random(-(-len(tokens) // 64)) ** 2, 64)[:len(tokens)]
    mask = (random.random(len(tokens)) < chance).astype(np.uint8) * random.integers(1, 255, len(tokens), dtype=np.uint8)
    mask[64 * 2:64 * 4] = 0
    tokens.astype(np.uint16).tofile(tmp_path / "tokens.bin")
    mask.tofile(tmp_path / "mask.bin")
    return tokens, mask, {"tokens": str(tmp_path / "tokens.bin"), "context": 64, "order": "sequential"}, tmp_path


def train(sherd, file, *options):
    done = subprocess.run([sherd, "train", file, *options], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = (file.parent / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], load_file(file.parent / "run" / "model" / "model.safetensors"), done


def expect_same(metrics, weights, plain_run):
    losses, norms, expected = plain_run
    np.testing.assert_allclose([line["loss"] for line in metrics], losses, rtol=3e-6)
    np.testing.assert_allclose([line["grad_norm"] for line in metrics], norms, rtol=1e-5)
    for name in expected:
        np.testing.assert_allclose(weights[name], expected[name], rtol=0, atol=1e-5, err_msg=name)


CASES = {
    "mask": (dict(mask=True), {}),
    "documents": (dict(separator=True), {}),
    "both, accumulated in micro-batches": (dict(mask=True, separator=True, rows=5, accumulate=2), {"micro": 1}),
    "accumulated, reduced once": (dict(mask=True, rows=3, accumulate=3), {"micro": 2, "reduce": "last"}),
    "weighted": (dict(mask=True, rows=3, accumulate=3, last="weighted"), {"micro": 1}),
    "weighted, reduced once": (dict(rows=8, last="weighted"), {"reduce": "last"}),
    "drop": (dict(separator=True, rows=6, last="drop"), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_loss_is_the_mean_over_all_targets_of_the_global_batch(sherd, write_config, files, case):
    tokens, mask, config, folder = files
    options, batch = CASES[case]
    data = plain.Data(tokens=tokens, mask=mask if options.get("mask") else None,
                      separator=SEPARATOR if options.get("separator") else None, rows=options.get("rows", 4),
                      accumulate=options.get("accumulate", 1), last=options.get("last", "next_epoch"))
    expected = plain.train(sgd, STEPS, data)
    if options.get("mask"):
        config["mask"] = str(folder / "mask.bin")
    if options.get("separator"):
        config["separator"] = SEPARATOR
    for ranks in [1, 2, 3, 4] if "both" in case else [1, 3]:
        file = write_config({"steps": STEPS, "data": config, "optimizer": OPTIMIZER,
                             "strategy": "zero3" if ranks % 2 else "ddp",
                             "batch": {"rows": data.rows, "accumulate": data.accumulate, "last": data.last, **batch}})
        metrics, weights, _ = train(sherd, file, "--ranks", str(ranks))
        expect_same(metrics, weights, expected)


def test_an_evaluation_divides_by_its_own_targets(sherd, write_config, files):
    tokens, mask, config, folder = files
    first = len(tokens) - len(tokens) // 4
    data = plain.Data(tokens=tokens[first:], mask=mask[first:], separator=SEPARATOR, rows=3)
    inputs, targets = data.piece(0, 0)
    with torch.no_grad():
        loss = plain.loss_sum(plain.golden_model(), inputs, targets).item() / int((targets != plain.IGNORED).sum())
    config |= {"mask": str(folder / "mask.bin"), "separator": SEPARATOR, "validation": 0.25}
    for ranks in [1, 2, 4]:
        # A learning rate of 0 keeps the weights, so that the evaluation is of the golden ones.
        file = write_config({"steps": 1, "data": config, "eval_every": 1, "eval_rows": 3, "optimizer.lr": 0.0})
        metrics, _, _ = train(sherd, file, "--ranks", str(ranks))
        assert metrics[0]["validation_loss"] == pytest.approx(loss, rel=3e-6)


def test_a_step_without_targets_is_a_warning_and_a_loss_of_zero(sherd, write_config, files):
    _, _, config, folder = files
    mask = np.zeros(1300, dtype=np.uint8)
    mask[64 * 4 + 5] = 1  # the second step's only target
    mask.tofile(folder / "mask.bin")
    config["mask"] = str(folder / "mask.bin")
    for ranks in [1, 2]:
        file = write_config({"steps": 2, "data": config})
        metrics, weights, done = train(sherd, file, "--ranks", str(ranks))
        assert "warning: step 1 has no targets" in done.stdout + done.stderr
        assert [line["targets"] for line in metrics] == [0, 1]
        assert metrics[0]["loss"] == 0 and metrics[0]["grad_norm"] == 0
        assert metrics[1]["loss"] > 0 and metrics[1]["grad_norm"] > 0
        assert all(np.isfinite(values).all() for values in weights.values())


@pytest.mark.parametrize("change, words", [
    ({"data.mask": "/none"}, ["data.mask", "there is none"]),
    ({"data.mask": "SHORT"}, ["data.mask", "10 bytes", "one byte a token: 1300"]),
    ({"data.separator": 100000}, ["data.separator", "got 100000", "below the vocabulary"]),
    ({"batch.last": "drop", "batch.rows": 64}, ["batch.last", "20 rows an epoch", "64 of a step", "weighted"]),
])
def test_mistakes_are_named_before_the_start(sherd, write_config, files, change, words):
    _, _, config, folder = files
    (folder / "short.bin").write_bytes(bytes(10))
    change = {key: str(folder / "short.bin") if value == "SHORT" else value for key, value in change.items()}
    file = write_config({"data": config, **change})
    done = subprocess.run([sherd, "train", file, "--ranks", "2"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    for word in words:
        assert word in done.stderr


def test_all_data_is_read_once_before_the_start_and_not_by_every_rank(sherd, write_config, tmp_path):
    """A token outside the vocabulary where no row reads it: found, by whoever checks, without any rank."""
    tokens = plain.golden_tokens()
    tokens[-1] = 60000
    tokens.astype(np.uint16).tofile(tmp_path / "tokens.bin")
    file = write_config({"data": {**TINY_CONFIG["data"], "tokens": str(tmp_path / "tokens.bin")}})
    done = subprocess.run([sherd, "train", file, "--ranks", "2"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.count("token 60000") == 1
