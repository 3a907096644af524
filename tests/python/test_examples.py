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


def test_hugging_face_models_fine_tune_with_all_parameters_and_with_adapters():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [PYTHON, "-m", "torch.distributed.run", "--nproc-per-node", "2",
               str(ROOT / "examples" / "hugging_face.py"), "--steps", "10"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    for kind in ("llama", "gpt2"):
        first, last = map(float, re.search(rf"{kind}: loss ([\d.]+) to ([\d.]+)", done.stdout).groups())
        adapted = float(re.search(rf"{kind} with LoRA, \d+ trained parameters: loss ([\d.]+)", done.stdout)[1])
        assert last < 0.7 * first and adapted < 0.7 * first
        assert f"{kind} writes: 'the quick " in done.stdout
