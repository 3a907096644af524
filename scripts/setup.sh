#!/bin/sh
# Makes this machine ready to build: Debian packages that are missing, and .venv with scripts/requirements.txt.
# Running it again costs nothing: apt is left alone when all packages are there, pip when the requirements are the same.
# Arguments are more Debian packages to have. PYTHON=python3.11 chooses the interpreter of a new .venv.
set -eu
cd "$(dirname "$0")/.."

packages="g++ cmake make ninja-build ccache libhwy-dev libcli11-dev nlohmann-json3-dev libgloo-dev libgtest-dev
libbenchmark-dev openmpi-bin $*"

python=${PYTHON:-python3}
if [ ! -x .venv/bin/python ] && ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  packages="$packages python3 python3-venv"
fi

# The Python package is built against the interpreter's headers.
if ! "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
  2>/dev/null; then
  packages="$packages python3-dev"
fi

say() { echo "setup: $*"; }

installed() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }

# Several make targets may call this at once.
mkdir -p .cache
exec 9>.cache/setup.lock
if command -v flock >/dev/null; then flock 9; fi

if ! command -v dpkg-query >/dev/null; then
  say "this is not Debian; expected these packages under the names of your system:" $packages >&2
else
  missing=""
  for package in $packages; do
    installed "$package" || missing="$missing $package"
  done
  if [ -n "$missing" ]; then
    as_root=""
    if [ "$(id -u)" -ne 0 ]; then
      if ! command -v sudo >/dev/null; then
        say "missing packages, and neither root nor sudo; try as root: apt-get install$missing" >&2
        exit 1
      fi
      as_root=sudo
    fi
    say "installing$missing"
    $as_root apt-get update -qq
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
  fi
fi

stamp=.venv/requirements.installed
if ! cmp -s scripts/requirements.txt "$stamp"; then
  if [ ! -x .venv/bin/python ]; then
    say "making .venv"
    if ! "$python" -m venv .venv; then
      say "cannot make .venv; try PYTHON=python3.11 $0" >&2
      exit 1
    fi
  fi
  say "installing scripts/requirements.txt into .venv"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement scripts/requirements.txt
  cp scripts/requirements.txt "$stamp"
fi
