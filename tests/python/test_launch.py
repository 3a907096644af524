"""One training, started in every way that there is: the same losses, bit for bit."""
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys

import pytest

INHERITED_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "OMPI_", "PMIX_", "SLURM_", "TORCHELASTIC_",
                      "GLIBC_TUNABLES")


def environment(**more: str) -> dict:
    """Ours without traces of launchers and settings of malloc, and one compute thread a rank."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(INHERITED_VARIABLES)}
    return {**env, "OMP_NUM_THREADS": "1", **more}


def losses(folder: pathlib.Path) -> list:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows and all("loss" in row for row in rows)
    return [(row["step"], row["loss"]) for row in rows]


def end_well(*commands: list, envs: list):
    """Runs all at once."""
    running = [subprocess.Popen([str(a) for a in command], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
               for command, env in zip(commands, envs)]
    for process in running:
        try:
            text, _ = process.communicate(timeout=120)
        finally:
            for other in running:
                if process.returncode != 0:
                    other.kill()
        assert process.returncode == 0, text.decode(errors="replace")


@pytest.fixture
def train(sherd, write_config, tmp_path):
    """train(name) is the command that trains into tmp_path/name, and this folder."""
    config = write_config()
    return lambda name: ([sherd, "train", config, "--set", f"output={tmp_path / name}"], tmp_path / name)


@pytest.fixture
def expected(train):
    command, folder = train("ranks")
    end_well([*command, "--ranks", 2], envs=[environment()])
    return losses(folder)


def test_torchrun(train, expected):
    command, folder = train("torchrun")
    torchrun = pathlib.Path(sys.executable).parent / "torchrun"
    end_well([torchrun, "--standalone", "--nproc-per-node", 2, "--no-python", *command], envs=[environment()])
    assert losses(folder) == expected


@pytest.mark.parametrize("master", [{}, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29417"}],
                         ids=["alone", "with a master"])
def test_mpirun(train, expected, master):
    mpirun = shutil.which("mpirun")
    if mpirun is None:
        pytest.fail("there is no mpirun; try scripts/setup.sh")
    command, folder = train("mpirun")
    end_well([mpirun, "--allow-run-as-root", "--oversubscribe", "-n", 2, *command], envs=[environment(**master)])
    assert losses(folder) == expected


def test_srun(train, expected):
    """Two processes with the environment of srun's tasks."""
    command, folder = train("srun")
    tasks = [environment(SLURM_PROCID=str(task), SLURM_LOCALID=str(task), SLURM_NTASKS="2", SLURM_STEP_ID="0",
                         SLURM_STEP_NODELIST="localhost", SLURM_JOB_ID=str(os.getpid())) for task in range(2)]
    end_well(command, command, envs=tasks)
    assert losses(folder) == expected


@pytest.mark.parametrize("alone", [True, False], ids=["one process", "a rank of one"])
def test_steps_take_no_fresh_pages(sherd, write_config, tmp_path, alone):
    """What a step frees, the next one uses again; what the user has set for malloc is left alone. The blocks of this
    model are of 36 MiB: malloc by itself maps anew what is above 32 MiB, and keeps of smaller ones what it has learnt
    to."""
    config = write_config({"model": {"preset": "tiny", "dim": 32, "heads": 1, "kv_heads": 1, "ffn": 9216},
                           "batch.rows": 16})
    place = {} if alone else {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1",
                              "MASTER_PORT": "29419"}

    def faults(steps: int, **more: str) -> int:
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt
        command = [sherd, "train", config, "--set", f"steps={steps}", "--set", f"output={tmp_path / 'run'}"]
        end_well(command, envs=[environment(**place, **more)])
        shutil.rmtree(tmp_path / "run")
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt - before

    def faults_a_step(**more: str) -> float:
        return (faults(4, **more) - faults(1, **more)) / 3

    as_users_have_it = faults_a_step(GLIBC_TUNABLES="glibc.malloc.arena_max=8")
    assert faults_a_step() < as_users_have_it / 10
    assert faults_a_step(GLIBC_TUNABLES="glibc.rtld.nns=4") < as_users_have_it / 10
