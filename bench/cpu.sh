#!/usr/bin/env bash
# Measures everything that `vr-kernels bench` knows on this machine's CPU, and writes the records that the documentation's
# figures are made from, with the options of those that are committed. Leave the machine alone meanwhile: it takes an
# hour and more on two cores.
#
#   bench/cpu.sh [OPERATOR...]
#
# Records go to $OUT (bench/results), named OPERATOR_$PROCESSOR_DTYPE_DIRECTION.json: $PROCESSOR is cpu unless it is set,
# and the committed records are cpu for an AMD EPYC, cpu-amx for an Intel Xeon. Another processor gets a name of its own,
# lest it write over them.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-bench/results}
PROCESSOR=${PROCESSOR:-cpu}
export OMP_WAIT_POLICY=passive PATH=$PWD/.venv/bin:$PATH

# OPERATOR DTYPE forward|forward_backward [OPTION...]
measure() {
  local operator=$1 dtype=$2 direction=$3 flag=--no-backward
  shift 3
  [[ $direction == forward ]] || flag=--backward
  echo "== $operator $dtype $direction"
  vr-kernels bench "$operator" --dtype "$dtype" $flag "$@" --json "$OUT/${operator}_${PROCESSOR}_${dtype}_$direction.json"
}

operator() {
  local dtype direction
  for dtype in float32 bfloat16; do
    case $1 in
      local_cross_attention)
        for direction in forward forward_backward; do
          measure "$1" $dtype $direction --repeats 5 --compare naive --compare absorbed --compare unabsorbed
        done
        ;;
      local_attention)
        for direction in forward forward_backward; do
          measure "$1" $dtype $direction --repeats 5
        done
        ;;
      deformable_attention)
        for direction in forward forward_backward; do
          measure "$1" $dtype $direction --repeats 5 --compare grid_sample --compare transformers
        done
        ;;
      attention_importance) measure "$1" $dtype forward --repeats 5 ;;
      attention_received) measure "$1" $dtype forward --repeats 7 ;;
      bidirectional_attention) measure "$1" $dtype forward ;;
      token_fusion) measure "$1" $dtype forward --repeats 3 --compare linear --compare conv ;;
      saliency | visionzip | fastv | llava_vr) measure "$1" $dtype forward --repeats 3 ;;
      *)
        echo "cpu.sh: nothing measures $1" >&2
        return 2
        ;;
    esac
  done
}

ALL=(
  attention_importance attention_received bidirectional_attention deformable_attention saliency token_fusion visionzip
  local_attention local_cross_attention fastv llava_vr
)
for name in "${@:-${ALL[@]}}"; do
  operator "$name"
done
