"""The README's Python example, as printed, under every way to start it."""
import os
import re
import subprocess
import sys

from conftest import ROOT

EXAMPLE = ROOT / "examples" / "train.py"
PYTHON = sys.executable
WAYS = {
    "alone": [PYTHON],
    "torchrun": [PYTHON, "-m", "torch.distributed.run", "--nproc-per-node", "2"],
    "mpirun": ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", PYTHON],
}


def losses(way):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*WAYS[way], str(EXAMPLE)], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [float(x) for x in re.findall(r"step \d+: loss ([\d.]+)", done.stdout)]


def test_the_readme_prints_the_example():
    code = EXAMPLE.read_text().split('"""', 2)[2].strip()
    assert f"```python\n{code}\n```" in (ROOT / "README.md").read_text()


def test_the_example_learns_alone():
    values = losses("alone")
    assert len(values) == 4 and values == sorted(values, reverse=True)


def test_launchers_give_the_same_losses():
    assert losses("torchrun") == losses("mpirun") != []
