#!/usr/bin/env bash
# Measures the operators on this machine's CPU and writes the records that the documentation's figures are made from.
# Leave the machine alone meanwhile: it takes an hour on two cores.
#
#   bench/cpu.sh [OPERATOR...]
#
# Records go to $OUT (bench/results).
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-bench/results}
export OMP_WAIT_POLICY=passive PATH=$PWD/.venv/bin:$PATH

# OPERATOR DTYPE forward|forward_backward [OPTION...]
measure() {
  local operator=$1 dtype=$2 direction=$3 flag=--no-backward
  shift 3
  [[ $direction == forward ]] || flag=--backward
  echo "== $operator $dtype $direction"
  vr-kernels bench "$operator" --dtype "$dtype" $flag "$@" --json "$OUT/${operator}_cpu_${dtype}_$direction.json"
}

operator() {
  local dtype
  for dtype in float32 bfloat16; do
    case $1 in
      local_cross_attention)
        for direction in forward forward_backward; do
          measure "$1" $dtype $direction --repeats 5 --compare naive --compare absorbed --compare unabsorbed
        done
        ;;
      deformable_attention)
        measure "$1" $dtype forward --repeats 7 --compare grid_sample --compare transformers
        measure "$1" $dtype forward_backward --repeats 5 --compare grid_sample --compare transformers
        ;;
      attention_importance) measure "$1" $dtype forward ;;
      attention_received) measure "$1" $dtype forward --repeats 7 ;;
      bidirectional_attention) measure "$1" $dtype forward ;;
      token_fusion) measure "$1" $dtype forward --repeats 5 --compare linear --compare conv ;;
      saliency | visionzip | fastv | llava_vr) measure "$1" $dtype forward --repeats 3 ;;
    esac
  done
}

ALL=(
  attention_importance attention_received bidirectional_attention deformable_attention saliency token_fusion visionzip
  local_cross_attention fastv llava_vr
)
for name in "${@:-${ALL[@]}}"; do
  operator "$name"
done
