"""The command `sherd` of an installed package: `sherd data prepare` is Python, all else the program in C++."""
from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pathlib
import runpy
import sys


def main() -> int:
    if sys.argv[1:3] == ["data", "prepare"]:
        from .prepare import main as prepare
        return prepare(sys.argv[3:])
    package = pathlib.Path(importlib.util.find_spec("sherd").submodule_search_locations[0])
    program = package / "bin" / "sherd"
    if not program.is_file():
        print(f"[sherd] got no {program}, expected the program that comes with the package; try to install CLI11's "
              "headers (libcli11-dev) and the package again", file=sys.stderr)
        return 2
    try:
        runpy.run_path(str(package / "_build.py"))["check"](importlib.metadata.version("torch"))
    except ImportError as error:
        print(error, file=sys.stderr)
        return 2
    os.execv(program, ["sherd", *sys.argv[1:]])
