#!/usr/bin/env python3
"""Which torch a build is made against: that of this interpreter. CMake asks for its folder and version, pip for what a
wheel of it needs (a provider of dynamic metadata, see pyproject.toml).

While pip builds, what is installed cannot be imported, but it can be found.
"""
from __future__ import annotations

import pathlib
import re
import sys
import sysconfig

FIRST, LAST = (2, 11), (2, 15)  # what make matrix builds and tests
OTHERS = ["numpy"]


def folder() -> pathlib.Path | None:
    places = [pathlib.Path(place) / "torch" for place in [sysconfig.get_path("platlib"), *sys.path]]
    return next((place for place in places if (place / "lib" / "libtorch_cpu.so").exists()), None)


def version(torch: pathlib.Path) -> str:
    return re.search(r"__version__ = ['\"](.*)['\"]", (torch / "version.py").read_text())[1]


def minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def shown(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def of_sources() -> str:
    return f"torch>={shown(FIRST)},<{shown((LAST[0], LAST[1] + 1))}"


def of_wheel(version: str) -> str:
    return f"torch=={shown(minor(version))}.*"


def found() -> list[str]:
    """The folder and the version of a torch that will do; ends the program where there is none."""
    if (torch := folder()) is None:
        sys.exit(f"no torch in {sys.executable}; try scripts/setup.sh, or pip install torch==2.13.0")
    if not FIRST <= minor(version(torch)) <= LAST:
        sys.exit(f"got torch {version(torch)} in {sys.executable}, expected {shown(FIRST)} to {shown(LAST)}; "
                 f"try pip install '{of_sources()}'")
    return [str(torch), version(torch)]



class Requirements:
    """Of a source distribution all that the sources take, of a wheel the torch that it is built for."""

    def build_state(self, state: str) -> None:
        self.state = state

    def dynamic_metadata(self, settings, project) -> dict:
        torch = None if self.state == "sdist" else folder()
        return {"dependencies": [of_sources() if torch is None else of_wheel(version(torch)), *OTHERS]}

    def dynamic_wheel(self, settings) -> dict:
        return {"dependencies": True}


if __name__ == "__main__":
    print(*found(), sep="\n")
