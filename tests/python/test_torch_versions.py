"""A build belongs to one minor version of torch: it says which, and says so beside another one."""
import os
import runpy
import subprocess
import sys

import pytest
import torch

from conftest import BUILD, ROOT

HERE = ".".join(torch.__version__.split(".")[:2])


def beside(version: str, folder, program: str) -> subprocess.CompletedProcess:
    """Runs a program where the torch that is found first is of another version, and nothing else than that."""
    package = folder / "torch"
    package.mkdir()
    (package / "__init__.py").write_text(f"__version__ = '{version}'\n")
    information = folder / f"torch-{version.split('+')[0]}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    path = os.pathsep.join([str(folder), str(BUILD / "python")])
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": path})


@pytest.mark.parametrize("version", ["2.9.1+cu128", "3.0.0"])
def test_beside_another_torch_the_import_names_both(tmp_path, version):
    done = beside(version, tmp_path, "import sherd")
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith("ImportError: [sherd] got torch " + version), done.stderr
    assert f"expected {HERE}" in last and torch.__version__ in last and f"torch=={HERE}.*" in last


def test_the_command_says_the_same(tmp_path):
    done = beside("2.9.1", tmp_path,
                  "import sys; from sherd_command import main; sys.argv = ['sherd', '--help']; sys.exit(main())")
    if "got no" in done.stderr:  # in a build folder the program lies elsewhere; in a wheel it is there
        pytest.skip("the program is not in the package")
    assert done.returncode == 2 and "got torch 2.9.1, expected " + HERE in done.stderr, done.stderr


def test_another_patch_of_the_same_version_will_do():
    check = runpy.run_path(str(BUILD / "python" / "sherd" / "_build.py"))["check"]
    check(torch.__version__)
    check(f"{HERE}.99+cu999")
    with pytest.raises(ImportError, match=f"got torch {HERE}9.0"):
        check(f"{HERE}9.0")


def test_the_standard_library_is_found_before_torchs_own():
    """libtorch exports a std::filesystem; that of 2.11 crashes."""
    extension = next((BUILD / "python" / "sherd").glob("_C.*.so"))
    for file in (BUILD / "sherd", extension):
        said = subprocess.run(["readelf", "--dynamic", file], capture_output=True, text=True, check=True).stdout
        needed = [line.partition("[")[2].rstrip("]") for line in said.splitlines() if "(NEEDED)" in line]
        assert needed.index("libstdc++.so.6") < needed.index("libtorch.so"), (file, needed)


@pytest.fixture
def of_wheels(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import wheel_torch
    return wheel_torch


def test_a_wheel_needs_the_torch_that_it_is_built_with(of_wheels):
    needs = of_wheels.Requirements()
    needs.build_state("wheel")
    assert needs.dynamic_metadata({}, {}) == {"dependencies": [f"torch=={HERE}.*", "numpy"]}
    needs.build_state("sdist")
    assert needs.dynamic_metadata({}, {}) == {"dependencies": ["torch>=2.11,<2.16", "numpy"]}


def test_the_torch_of_this_interpreter_is_found_without_importing_it(of_wheels):
    done = subprocess.run([sys.executable, "-X", "importtime", ROOT / "scripts" / "wheel_torch.py"],
                          capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1] == torch.__version__ and "numpy" not in done.stderr
    assert of_wheels.of_wheel("2.15.0+cu132") == "torch==2.15.*"


@pytest.mark.parametrize("version", ["2.10.0", "2.16.0a0+git1234"])
def test_sources_refuse_a_torch_that_they_were_not_tried_with(of_wheels, monkeypatch, tmp_path, version):
    (tmp_path / "version.py").write_text(f"__version__ = '{version}'\n")
    monkeypatch.setattr(of_wheels, "folder", lambda: tmp_path)
    with pytest.raises(SystemExit, match="got torch " + version.replace("+", ".") + " .*expected 2.11 to 2.15"):
        of_wheels.found()
