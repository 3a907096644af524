"""sherd from C++: the example in the tree, and the same program built outside of it against an installed sherd."""
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

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
        processes.append(subprocess.Popen([program], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                          text=True))
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


def test_a_build_without_gloo_and_cli11_says_what_it_lacks(tmp_path):
    command = ["cmake", "-S", str(ROOT), "-B", str(tmp_path), "-G", "Ninja", "-DSHERD_TESTS=OFF", "-DSHERD_GLOO=OFF",
               "-DSHERD_CLI11=OFF"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert "built without the transport gloo" in said and "libgloo-dev" in said
    assert "built without the command sherd" in said and "libcli11-dev" in said
    targets = subprocess.run(["ninja", "-C", str(tmp_path), "-t", "commands", "sherd_cli", "sherd_python"],
                             capture_output=True, text=True, check=True).stdout
    assert "cli/" not in targets and "gloo_backend.cpp" not in targets
    united = "".join(file.read_text() for file in tmp_path.rglob("unity_*.cxx"))
    assert "gloo_backend_missing.cpp" in united + targets


def test_a_build_without_highway_is_refused(tmp_path):
    command = ["cmake", "-S", str(ROOT), "-B", str(tmp_path), "-G", "Ninja", "-DSHERD_HWY=OFF"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "apt-get install libhwy-dev" in " ".join(done.stderr.split())


def test_what_goes_into_a_wheel_runs_beside_torch(tmp_path):
    """What pip would install: the extension and the program find the torch that lies beside them."""
    subprocess.run(["cmake", "--install", str(BUILD), "--component", "python", "--prefix", str(tmp_path)], check=True,
                   capture_output=True)
    for package in ("sherd", "sherd_command"):
        shutil.copytree(ROOT / "python" / package, tmp_path / package, dirs_exist_ok=True)
    (tmp_path / "torch").symlink_to(pathlib.Path(importlib.util.find_spec("torch").origin).parent)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "LD_LIBRARY_PATH": ""}
    program = "import sherd, torch; print(sherd.__file__); print(sherd.shard(torch.nn.Linear(2, 2)).weight.shape)"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60,
                          cwd=tmp_path)
    assert done.stdout.splitlines() == [str(tmp_path / "sherd" / "__init__.py"), "torch.Size([2, 2])"], done.stderr
    command = "import sys; from sherd_command import main; sys.argv = ['sherd', '--help']; main()"
    done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True, timeout=60,
                          cwd=tmp_path)
    assert done.returncode == 0 and "train" in done.stdout, done.stderr
