"""`sherd train` with each optimizer against torch.optim's in a plain loop: losses, gradient norms and final weights."""
import json
import subprocess

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

pytest.importorskip("transformers")
import plain

STEPS = 8
OPTIMIZERS = {
    "adamw": ({"type": "adamw", "lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1},
              lambda p: torch.optim.AdamW(p, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)),
    "adam": ({"type": "adam", "lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1},
             lambda p: torch.optim.Adam(p, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)),
    "sgd": ({"type": "sgd", "lr": 0.1, "weight_decay": 0.01},
            lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01)),
    "momentum": ({"type": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
                 lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01)),
    "nesterov": ({"type": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
                 lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01)),
}
STATES = {"adamw": 2, "adam": 2, "sgd": 0, "momentum": 1, "nesterov": 1}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_is_torchs(sherd, write_config, name):
    config, make = OPTIMIZERS[name]
    losses, norms, weights = plain.train(make, STEPS)
    bits = {}
    for ranks in [1, 2, 3]:
        for strategy in ["zero3", "ddp"]:
            file = write_config({"steps": STEPS, "strategy": strategy, "optimizer": {**config, "no_decay": []}})
            done = subprocess.run([sherd, "train", file, "--ranks", str(ranks)], capture_output=True, text=True,
                                  timeout=120)
            assert done.returncode == 0, done.stderr
            metrics = [json.loads(line) for line in (file.parent / "run" / "metrics.jsonl").read_text().splitlines()]
            np.testing.assert_allclose([line["loss"] for line in metrics], losses, rtol=3e-6)
            np.testing.assert_allclose([line["grad_norm"] for line in metrics], norms, rtol=1e-5)
            got = load_file(file.parent / "run" / "model" / "model.safetensors")
            assert got.keys() == weights.keys()
            for key in weights:
                np.testing.assert_allclose(got[key], weights[key], rtol=0, atol=1e-5, err_msg=key)
            # No state that the rule does not need: the books say how many tensors as large as the parameters there are.
            mib = metrics[-1]["rank0_mib"]
            if ranks == 1:
                assert round(mib["moments"] / mib["parameters"]) == STATES[name]
            bits.setdefault(ranks, got)
            assert all(got[key].tobytes() == bits[ranks][key].tobytes() for key in got), "strategies differ"
