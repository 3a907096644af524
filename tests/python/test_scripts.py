"""The checks of scripts/ find what they are for, and find nothing in the repository itself."""
import subprocess
import sys

import pytest

from conftest import ROOT

CMAKE = """
sherd_plain_layer(base)
sherd_plain_layer(kernels base hwy)
sherd_layer(comm base kernels)
"""


def check(script: str, root) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, ROOT / "scripts" / script, root], capture_output=True, text=True)


@pytest.fixture
def tree(tmp_path):
    """A small repository whose layers are in order."""
    files = {
        "CMakeLists.txt": CMAKE,
        "sherd/base/a.h": "#pragma once\n",
        "sherd/kernels/k.h": '#include "sherd/base/a.h"\n#include <hwy/highway.h>\n',
        "sherd/comm/c.cpp": '#include <ATen/core/Tensor.h>\n#include "sherd/kernels/k.h"\n',
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_layers_in_order_pass(tree):
    assert check("check_layers.py", tree).returncode == 0


@pytest.mark.parametrize("file, text, message", [
    ("sherd/base/a.h", '#pragma once\n#include "sherd/comm/c.h"\n', "sherd/base/a.h:2: base/ may include nothing"),
    ("sherd/kernels/k.h", "\n\n#  include <c10/util/Half.h>\n",
     "sherd/kernels/k.h:3: kernels/ is a layer without torch"),
    ("sherd/base/b.cpp", "#include <torch/nn/module.h>\n", "sherd/base/b.cpp:1: base/ is a layer without torch"),
    ("sherd/comm/c.cpp", '#include "sherd/base/gone.h"\n', "sherd/comm/c.cpp:1: there is no sherd/base/gone.h"),
    ("sherd/kernels/k.cpp", '#include "k.h"\n', 'sherd/kernels/k.cpp:1: include it as "sherd/kernels/k.h"'),
    ("sherd/new/n.h", "", "sherd/new/n.h:1: is in no layer"),
    ("sherd/comm/c.cpp", '#include "cli/main.h"\n', "sherd/comm/c.cpp:1: the library includes nothing of its users"),
    ("CMakeLists.txt", CMAKE.replace("layer(base)", "layer(base comm)"), "depend on each other"),
])
def test_layer_violations_are_named(tree, file, text, message):
    path = tree / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    result = check("check_layers.py", tree)
    assert result.returncode == 1
    assert message in result.stderr


@pytest.mark.parametrize("file, lines, code, said", [
    ("sherd/base/x.h", 100, 0, ""),
    ("sherd/base/x.h", 101, 0, "sherd/base/x.h:101: warning"),
    ("sherd/base/x.cpp", 400, 0, ""),
    ("cli/x.cpp", 401, 0, "cli/x.cpp:401: warning"),
    ("tests/x.cpp", 601, 1, "tests/x.cpp:601: 601 lines, at most 600"),
    ("sherd/base/x.h", 601, 1, "at most 600"),
])
def test_sizes(tmp_path, file, lines, code, said):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text("\n" * lines)
    result = check("check_size.py", tmp_path)
    assert result.returncode == code
    assert said in result.stderr if said else not result.stderr


ARCHITECTURE = """
## The files

| folder | file | what |
|---|---|---|
| base | error, log | errors |
| | set: one | x |
| cli | main | y |

## Python

| file | what |
|---|---|
| units, optim | z |
| src/module, unit | bindings |

## Faults
"""


@pytest.mark.parametrize("more, changed, said", [
    ([], {}, ""),
    (["sherd/base/new.cpp"], {}, "says nothing of sherd/base/new;"),
    (["python/sherd/new.py"], {}, "says nothing of python/sherd/new;"),
    (["python/src/new.cpp"], {}, "says nothing of python/src/new;"),
    ([], {"main": "main, gone"}, "names cli/gone, which is not there"),
    ([], {"set: one": "set"}, "says nothing of sherd/base/one;"),
])
def test_the_tables_of_the_architecture(tmp_path, more, changed, said):
    for file in ("sherd/base/error.h", "sherd/base/error.cpp", "sherd/base/log.h", "sherd/base/set.h",
                 "sherd/base/one.h", "cli/main.cpp", "python/sherd/__init__.py", "python/sherd/units.py",
                 "python/sherd/optim.py", "python/src/module.cpp", "python/src/unit.h", *more):
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    text = ARCHITECTURE
    for old, new in changed.items():
        text = text.replace(old, new)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "architecture.md").write_text(text)
    result = check("check_architecture.py", tmp_path)
    assert result.returncode == bool(said)
    assert said in result.stderr if said else not result.stderr


@pytest.mark.parametrize("script", ["check_layers.py", "check_size.py", "check_architecture.py"])
def test_the_repository_passes(script):
    result = check(script, ROOT)
    assert result.returncode == 0, result.stderr


def test_setup_twice_does_nothing():
    subprocess.run([ROOT / "scripts" / "setup.sh"], check=True, capture_output=True)
    again = subprocess.run([ROOT / "scripts" / "setup.sh"], check=True, capture_output=True, text=True)
    assert again.stdout == "" and again.stderr == ""


def test_the_acceptance_tables_name_tests_that_exist():
    """docs/acceptance.md: "file: test_a, test_b; file: test_c"."""
    import re
    named = 0
    for line in (ROOT / "docs" / "acceptance.md").read_text().splitlines():
        for part in line.rpartition(" | ")[2].split(";") if line.startswith("| ") else ():
            file, _, names = part.strip(" |").partition(": ")
            if not re.fullmatch(r"test_\w+", file) or not names:
                continue
            source = (ROOT / "tests" / "python" / f"{file}.py").read_text()
            for name in names.split(","):
                assert f"def {name.strip(' |')}(" in source, (file, name)
                named += 1
    assert named > 40


def test_the_stub_names_what_the_extension_has():
    """python/sherd/_C.pyi, so that type checkers know the extension."""
    import ast

    import sherd._C as extension
    tree = ast.parse((ROOT / "python" / "sherd" / "_C.pyi").read_text())
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            assert hasattr(extension, node.name), node.name
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef):
                    assert hasattr(getattr(extension, node.name), member.name), (node.name, member.name)
    public = {name for name in dir(extension) if not name.startswith("_")}
    assert public <= {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
