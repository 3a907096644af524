#!/bin/sh
# Makes .venv-peers, the peers' own virtual environment: nothing in it comes from .venv or from the system.
# Running it again costs nothing while the requirements stay the same. Arguments are more requirement files to install.
set -eu
cd "$(dirname "$0")/../.."

for file in benchmarks/peers/requirements.txt "$@"; do
  stamp=.venv-peers/$(basename "$file").installed
  if cmp -s "$file" "$stamp"; then continue; fi
  if [ ! -x .venv-peers/bin/python ]; then "${PYTHON:-python3}" -m venv .venv-peers; fi
  echo "setup: installing $file into .venv-peers"
  .venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --requirement "$file"
  cp "$file" "$stamp"
done
