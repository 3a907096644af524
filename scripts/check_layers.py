#!/usr/bin/env python3
"""Fails when a folder of sherd/ includes what its line in CMakeLists.txt does not list, or a plain layer includes
torch.

The table is the one the build links by: sherd_layer(NAME DEPS...) and sherd_plain_layer(NAME DEPS...). A header reached
through an allowed layer is itself a violation there, so only direct includes are read.
"""
import pathlib
import re
import sys

LAYER = re.compile(r"^\s*sherd_(plain_)?layer\(([^)]*)\)", re.MULTILINE)
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
TORCH = re.compile(r"^(torch|ATen|c10|caffe2)/")
SOURCES = {".h", ".hpp", ".cpp", ".cc", ".inc"}


def read_table(cmake: str) -> tuple[dict[str, set[str]], set[str]]:
    """What each layer may include besides itself, and which layers are plain."""
    allowed, plain = {}, set()
    for match in LAYER.finditer(cmake):
        name, *deps = match.group(2).split()
        allowed[name] = set(deps)
        if match.group(1):
            plain.add(name)
    for name in allowed:
        allowed[name] &= allowed.keys()
    return allowed, plain


def find_cycle(allowed: dict[str, set[str]]) -> list[str]:
    """The layers of one cycle in the table, or none."""
    left = dict(allowed)
    while free := [name for name, deps in left.items() if not deps & left.keys()]:
        for name in free:
            del left[name]
    return sorted(left)


def violations(root: pathlib.Path) -> list[str]:
    allowed, plain = read_table((root / "CMakeLists.txt").read_text())
    found = []
    if cycle := find_cycle(allowed):
        found.append(f"CMakeLists.txt: the layers {', '.join(cycle)} depend on each other")
    for path in sorted((root / "sherd").rglob("*")):
        if path.suffix not in SOURCES:
            continue
        where = path.relative_to(root)
        layer = where.parts[1] if len(where.parts) > 2 else None
        if layer not in allowed:
            found.append(f"{where}:1: is in no layer of CMakeLists.txt; add a sherd_layer line for its folder")
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if not (include := INCLUDE.match(line)):
                continue
            target = include.group(2)
            if layer in plain and TORCH.match(target):
                found.append(f"{where}:{number}: {layer}/ is a layer without torch, but includes {target}")
            if target.startswith("sherd/"):
                other = target.split("/")[1]
                if other != layer and other not in allowed[layer]:
                    listed = ", ".join(sorted(allowed[layer])) or "nothing"
                    found.append(f"{where}:{number}: {layer}/ may include {listed}; got {target}")
                if not (root / target).is_file():
                    found.append(f"{where}:{number}: there is no {target}")
            elif include.group(1) == '"' and (path.parent / target).is_file():
                found.append(f'{where}:{number}: include it as "{(where.parent / target).as_posix()}"')
            elif target.startswith(("cli/", "tests/", "benchmarks/", "python/")):
                found.append(f"{where}:{number}: the library includes nothing of its users; got {target}")
    return found


if __name__ == "__main__":
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent.parent
    found = violations(root)
    for message in found:
        print(message, file=sys.stderr)
    sys.exit(1 if found else 0)
