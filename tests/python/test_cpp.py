"""Runs the C++ tests: one test here for each GoogleTest suite of each build/test_* program."""
import os
import pathlib
import subprocess

import pytest

from conftest import BUILD


def programs() -> list[pathlib.Path]:
    return sorted(path for path in BUILD.glob("test_*") if path.is_file() and os.access(path, os.X_OK))


def suites(program: pathlib.Path) -> list[str]:
    """The suites as GoogleTest lists them: "Suite." or "Prefix/Suite.  # TypeParam = ..." at the start of a line."""
    listing = subprocess.run([program, "--gtest_list_tests"], capture_output=True, text=True, timeout=120, check=True)
    return [line.split("#")[0].strip().removesuffix(".") for line in listing.stdout.splitlines()
            if line[:1].strip() and line.split("#")[0].strip().endswith(".")]


def pytest_generate_tests(metafunc):
    if "suite" in metafunc.fixturenames:
        found = [(program, suite) for program in programs() for suite in suites(program)]
        metafunc.parametrize("program, suite", found, ids=[f"{p.name[5:]}-{s}" for p, s in found])


def test_there_are_programs():
    assert programs(), f"no test_* in {BUILD}; try make test"


def test_every_folder_with_tests_has_its_program():
    tests = pathlib.Path(__file__).resolve().parents[1]
    folders = {path.parent.name for path in tests.glob("*/*_test.cpp")}
    assert folders <= {program.name.removeprefix("test_") for program in programs()}


def test_cpp(program, suite):
    run = subprocess.run([program, f"--gtest_filter={suite}.*", "--gtest_brief=1"], capture_output=True, text=True,
                         errors="replace")
    if run.returncode != 0:
        pytest.fail(f"{program.name} {suite}: exit code {run.returncode}\n{run.stdout[-20000:]}\n{run.stderr[-8000:]}",
                    pytrace=False)
    if "[  PASSED  ] 0 tests" in run.stdout:
        pytest.skip("every test of the suite skipped itself")
