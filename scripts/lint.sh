#!/bin/sh
# lint.sh [all]: ruff on the Python sources; clang-format and clang-tidy on the C++ sources that differ from origin/main,
# or on all of them. Wants the compilation database of `cmake --preset lint`.
set -eu
cd "$(dirname "$0")/.."

ruff=0.17.6
if [ "$(.venv/bin/ruff --version 2>/dev/null)" != "ruff $ruff" ]; then
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "ruff==$ruff"
fi
.venv/bin/ruff check

sources() { # as git sees them, deleted ones left out
  if [ "${1:-}" = all ]; then
    git ls-files '*.h' '*.cpp'
  else
    base=$(git merge-base HEAD origin/main 2>/dev/null || git rev-parse HEAD)
    { git diff --name-only --diff-filter=d "$base" -- '*.h' '*.cpp'
      git ls-files --others --exclude-standard -- '*.h' '*.cpp'; } | sort -u
  fi
}

files=$(sources "${1:-}")
if [ -z "$files" ]; then
  echo "lint: no C++ source differs from origin/main; try LINT=all"
  exit 0
fi
echo "$files" | xargs clang-format-14 --dry-run -Werror
units=$(echo "$files" | grep '\.cpp$' || true)
if [ -n "$units" ]; then
  # The database is g++'s: what clang does not know of it is no finding. Sources may lean on the precompiled header.
  echo "$units" | xargs -n 1 -P "$(nproc)" clang-tidy-14 -p build-lint --quiet --warnings-as-errors='*' \
    --extra-arg=-Wno-unknown-warning-option --extra-arg=-Wno-ignored-optimization-argument \
    --extra-arg=-include --extra-arg="$PWD/cmake/pch.h"
fi
echo "lint: $(echo "$files" | wc -l) C++ files, nothing found"
