#!/usr/bin/env python3
"""Says which files are longer than one idea: a header over 100 lines or another source over 400 is a warning, any
file over 600 a failure."""
import pathlib
import sys

FOLDERS = ("sherd", "cli", "tests", "benchmarks", "examples", "python", "scripts")
LIMITS = {".h": 100, ".hpp": 100, ".cpp": 400, ".cc": 400, ".py": 400}
HARD_LIMIT = 600


def measure(root: pathlib.Path) -> tuple[list[str], list[str]]:
    """Warnings and failures, as file:line messages."""
    warnings, failures = [], []
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            limit = LIMITS.get(path.suffix)
            if limit is None or not path.is_file():
                continue
            lines = len(path.read_text(errors="replace").splitlines())
            where = path.relative_to(root)
            if lines > HARD_LIMIT:
                failures.append(f"{where}:{lines}: {lines} lines, at most {HARD_LIMIT}; split it by ideas")
            elif lines > limit:
                warnings.append(f"{where}:{lines}: warning: {lines} lines, better at most {limit}")
    return warnings, failures


if __name__ == "__main__":
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent.parent
    warnings, failures = measure(root)
    for message in warnings + failures:
        print(message, file=sys.stderr)
    sys.exit(1 if failures else 0)
