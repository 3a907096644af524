#!/usr/bin/env python3
"""Fails when a source has no line in the tables of docs/architecture.md, or a line there names a source that is gone.

The table under "The files" has a folder (of sherd/, or cli) in its first column, empty where it is the one above; the
table under "Python" has none: its names are of python/sherd, or with src/ before the first of a line of python/src.
"""
import pathlib
import re
import sys

DOCUMENT = "docs/architecture.md"
SOURCES = {".h", ".cpp", ".py"}
NAME = re.compile(r"[a-z][a-z0-9_]*")


def section(text: str, title: str) -> str:
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines()
            if line.startswith("| ") and not line.startswith(("| folder |", "| file |"))]


def named(document: str) -> dict[str, set[str]]:
    """The names of the tables, by folder."""
    names: dict[str, set[str]] = {}
    folder = ""
    for cells in rows(section(document, "The files")):
        folder = cells[0] or folder
        where = folder if folder == "cli" else f"sherd/{folder}"
        names.setdefault(where, set()).update(NAME.findall(cells[1]))
    for cells in rows(section(document, "Python")):
        source = cells[0].startswith("src/")
        where = "python/src" if source else "python/sherd"
        names.setdefault(where, set()).update(NAME.findall(cells[0].removeprefix("src/")))
    return names


def there(root: pathlib.Path) -> dict[str, set[str]]:
    """The sources, without their extensions, by folder."""
    names: dict[str, set[str]] = {}
    folders = [*sorted((root / "sherd").glob("*/")), root / "cli", root / "python/sherd", root / "python/src"]
    for folder in folders:
        files = {path.stem for path in folder.glob("*") if path.suffix in SOURCES and path.stem != "__init__"}
        names[folder.relative_to(root).as_posix()] = files
    return names


def main() -> int:
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent.parent)
    told, found = named((root / DOCUMENT).read_text()), there(root)
    wrong = [f"{DOCUMENT}: says nothing of {folder}/{name}; add it to a line of its table"
             for folder, names in found.items() for name in sorted(names - told.get(folder, set()))]
    wrong += [f"{DOCUMENT}: names {folder}/{name}, which is not there; take it out of its table"
              for folder, names in told.items() for name in sorted(names - found.get(folder, set()))]
    print("".join(f"{line}\n" for line in wrong), end="", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
