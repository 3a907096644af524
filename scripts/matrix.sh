#!/bin/sh
# The Python package beside each version of torch that it is for: a venv with that torch, a wheel built against it, installed there,
# and the Python tests with what was installed. Ends with a table. A CUDA build of torch does as well: it runs on the CPU too.
#
#   MATRIX="2.11 2.15"   which versions
#   PYTHON=python3.12    the interpreter of new venvs
#   TESTS="-k fsdp"      more arguments for pytest
#   JOBS=2               compilers at a time
#
# Venvs (of 1 to 6 GB) stay in .cache/matrix/, and are used again; so do the folders that wheels are built in.
set -eu
cd "$(dirname "$0")/.."

root=$PWD
: "${MATRIX:=2.11 2.13 2.14 2.15}" "${PYTHON:=python3}" "${TESTS:=}" "${JOBS:=$(nproc)}"
# What a wheel does not have: programs in C++, and the tree itself.
elsewhere="test_cpp test_package test_hugging_face test_same_bits test_scripts"
results=""
failed=0

# Each of these runs in the folder of its version, as a condition: there a failure ends nothing by itself, hence the &&.
make_venv() {
  { echo "torch==$version.*"; grep -v '^torch==' "$root/scripts/requirements.txt"; echo scikit-build-core; echo ninja; } >requirements.txt
  cmp -s requirements.txt venv/requirements.installed || {
    { [ -x venv/bin/python ] || "$PYTHON" -m venv venv; } &&
      venv/bin/python -m pip install --quiet --requirement requirements.txt &&
      cp requirements.txt venv/requirements.installed
  }
}

install_wheel() {
  rm -rf wheels
  CMAKE_BUILD_PARALLEL_LEVEL=$JOBS venv/bin/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir wheels \
    --config-settings=build-dir="$PWD/objects" "$root" &&
    venv/bin/python -m pip install --quiet --no-deps --force-reinstall wheels/sherd-*.whl &&
    show_as_build
}

# The tests look into a build folder: what was installed, under the names that it has there.
show_as_build() {
  rm -rf build
  mkdir build &&
    ln -s "$(venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')" build/python &&
    ln -s python/sherd/bin/sherd build/sherd
}

run_tests() {
  folder=$PWD
  set --
  for file in $elsewhere; do set -- "$@" "--ignore=tests/python/$file.py"; done
  (cd "$root" && SHERD_BUILD=$folder/build "$folder/venv/bin/python" -m pytest tests/python "$@" $TESTS)
}

stage() {  # NAME COMMAND: its output goes into a file, its seconds into the table's row
  start=$(date +%s)
  "$2" >"$1.log" 2>&1 && ended=ok || ended=failed
  seconds=$(($(date +%s) - start))
  echo "matrix: torch $version: $1: $ended after $seconds s ($PWD/$1.log)"
  row="$row | $seconds"
  [ $ended = ok ]
}

for version in $MATRIX; do
  mkdir -p ".cache/matrix/$version"
  cd ".cache/matrix/$version"
  row="| $version"
  if ! stage install make_venv; then
    row="$row | |" outcome="failed: not installed"
  elif ! stage build install_wheel; then
    row="$row |" outcome="failed: not built"
  elif ! stage tests run_tests; then
    outcome="failed: $(tail -n 1 tests.log)"
  else
    outcome=$(tail -n 1 tests.log)
  fi
  case $outcome in failed*) failed=1 ;; esac
  results="$results$row | $outcome |
"
  cd "$root"
done

printf '\n| torch | install, s | build, s | tests, s | |\n|---|---|---|---|---|\n%s' "$results"
exit $failed
