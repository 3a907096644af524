"""sherd from C++: the example in the tree, and the same program built outside of it against an installed sherd."""
import os
import pathlib
import shutil
import subprocess

import pytest

from conftest import BUILD, ROOT

def run(program: pathlib.Path, ranks: int, port: int) -> list[float]:
    """The losses that a program prints, run as torchrun would: by environment."""
    processes = []
    for rank in range(ranks):
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        if ranks > 1:
            env |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank),
                    "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        processes.append(subprocess.Popen([program], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    outputs = [process.communicate(timeout=120) for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    assert all(out == "" for out, _ in outputs[1:]), "only rank 0 prints"
    return [float(line.split()[-1]) for line in outputs[0][0].splitlines()]


@pytest.fixture
def free_port():
    import socket
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_example_learns_and_ranks_do_not_change_what(free_port):
    program = BUILD / "example_shard_your_own"
    one = run(program, 1, free_port)
    two = run(program, 2, free_port)
    assert len(one) == 6 and one[0] > 0.5
    assert one[-1] < 0.5 * one[0]
    assert two == pytest.approx(one, rel=1e-2, abs=1e-3)  # one batch, other orders of addition


def test_an_installed_sherd_builds_and_runs_the_example_elsewhere(tmp_path, free_port):
    prefix, source, build = tmp_path / "prefix", tmp_path / "source", tmp_path / "build"
    subprocess.run(["cmake", "--install", BUILD, "--prefix", prefix], check=True, capture_output=True, timeout=60)
    shutil.copytree(ROOT / "tests" / "package", source)
    shutil.copy(ROOT / "examples" / "shard_your_own.cpp", source / "main.cpp")
    launcher = shutil.which("ccache")
    configure = ["cmake", "-S", source, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}", "-DSOURCE=main.cpp",
                 *([f"-DCMAKE_CXX_COMPILER_LAUNCHER={launcher}"] if launcher else [])]
    done = subprocess.run(configure, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(["cmake", "--build", build], capture_output=True, text=True, timeout=500,
                          env={**os.environ, "CCACHE_BASEDIR": str(tmp_path), "CCACHE_NOHASHDIR": "1"})
    assert done.returncode == 0, done.stdout[-8000:]
    assert str(ROOT / "sherd") not in (build / "CMakeFiles" / "app.dir" / "flags.make").read_text()
    assert run(build / "app", 2, free_port)[-1] < 0.5


def test_a_package_whose_torch_is_gone_says_so(tmp_path):
    prefix = tmp_path / "prefix"
    subprocess.run(["cmake", "--install", BUILD, "--prefix", prefix], check=True, capture_output=True, timeout=60)
    done = subprocess.run(["cmake", "-S", ROOT / "tests" / "package", "-B", tmp_path / "build", "-DSOURCE=main.cpp",
                           f"-DCMAKE_PREFIX_PATH={prefix}", f"-DSHERD_TORCH={tmp_path}"],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "no libtorch in" in done.stderr and "-DSHERD_TORCH=FOLDER" in done.stderr.replace("\n", " ")
