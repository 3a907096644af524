#!/usr/bin/env bash
# Programs of TRL, transformers and PEFT under sherd, in virtual environments with one version of transformers each; they are made
# where they are missing, in build/soak. scripts/soak.sh [ARGUMENTS of pytest]
set -euo pipefail
cd "$(dirname "$0")/.."
torch=$(grep '^torch==' scripts/requirements.txt)
accelerate=$(grep '^accelerate==' scripts/requirements.txt)
peft=$(grep '^peft==' scripts/requirements.txt)
numpy=$(grep '^numpy==' scripts/requirements.txt)
venvs=()
for transformers in 4.57.3 5.24.0; do
  venv=$PWD/build/soak/transformers-$transformers
  venvs+=("$venv")
  if [ ! -f "$venv/ready" ]; then
    rm -rf "$venv"
    "$(.venv/bin/python -c 'import sys; print(sys._base_executable)')" -m venv "$venv"
    "$venv/bin/pip" install --quiet "$torch"
    "$venv/bin/pip" install --quiet "$torch" "$numpy" "transformers==$transformers" "$accelerate" "$peft" trl==1.16.0 datasets
    touch "$venv/ready"
  fi
done
SOAK_VENVS=$(IFS=:; echo "${venvs[*]}") .venv/bin/python -m pytest tests/soak -q --timeout 900 "$@"
