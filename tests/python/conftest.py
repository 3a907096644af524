"""What the tests share: where the build is, the golden model, and small files to train on.

SHERD_BUILD names another build folder than build/ (relative to the root of the repository).
"""
import copy
import json
import os
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = ROOT / os.environ.get("SHERD_BUILD", "build")

# The package sherd as it was built, here and in every process that is started from here.
sys.path.insert(0, str(BUILD / "python"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(BUILD / "python"), os.environ.get("PYTHONPATH")]))
GOLDEN = ROOT / "tests" / "golden" / "tiny"

# The smallest run: the golden model on its own tokens.
TINY_CONFIG = {
    "model": {"path": str(GOLDEN)},
    "data": {"tokens": str(GOLDEN / "tokens.bin"), "context": 64, "order": "sequential"},
    "batch": {"rows": 4, "micro": "auto", "accumulate": 1},
    "optimizer": {"type": "adamw", "lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "no_decay": []},
    "schedule": {"type": "constant"},
    "clip": 1.0,
    "strategy": "zero3",
    "steps": 4,
    "seed": 0,
}


@pytest.fixture(scope="session")
def build() -> pathlib.Path:
    """The build folder."""
    return BUILD


@pytest.fixture(scope="session")
def sherd() -> pathlib.Path:
    """The command."""
    command = BUILD / "sherd"
    if not command.is_file():
        pytest.fail(f"there is no {command}; try make build")
    return command


@pytest.fixture
def write_config(tmp_path):
    """Writes TINY_CONFIG with changes ({"data.tokens": ...}) to a file; the run folder is tmp_path/run."""

    def write(changes: dict | None = None) -> pathlib.Path:
        config = copy.deepcopy(TINY_CONFIG)
        config["output"] = str(tmp_path / "run")
        for key, value in (changes or {}).items():
            *parents, last = key.split(".")
            place = config
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = value
        file = tmp_path / "config.json"
        file.write_text(json.dumps(config))
        return file

    return write
