#!/usr/bin/env bash
# Measures every operator on this machine's CPU and writes the records that the documentation's figures are made from.
# Leave the machine alone meanwhile.
#
#   bench/cpu.sh [OPERATOR...]
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=passive
export PATH=$PWD/.venv/bin:$PATH

measure() {
  local operator=$1 dtype=$2 direction=$3
  shift 3
  echo "== $operator $dtype $direction"
  vr-kernels bench "$operator" --dtype "$dtype" "--${direction/forward_backward/backward}" "$@" \
    --json "bench/results/${operator}_cpu_${dtype}_$direction.json"
}
