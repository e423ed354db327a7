#!/usr/bin/env bash
# The first half hour on a GPU machine that can download nothing: build, test, and find where which kernel wins.
#
#   bench/gpu.sh [STEP...]
#
# Without a STEP all run, in this order. Each takes less than ten minutes, so that any one fits a short lease:
#   build                       vr_kernels._C in this checkout; where that fails, the rest goes on without it
#   test-KERNELS                the gpu tests of triton (windows), triton_others, triton_fused, cuda or cuda_fused
#   forward-H-B, backward-H-B   the crossover at H heads (8, 24, 48) and a batch of B (1, 8, 32)
#   bench-OPERATOR              every other operator at the papers' shapes against everything else
# Records and logs go to $OUT (bench/results); $PYTHON (python3) has torch. A step that fails does not stop the next.
set -uo pipefail
SELF=$(realpath "$0")
cd "$(dirname "$SELF")/.."

PYTHON=${PYTHON:-python3}
OUT=${OUT:-bench/results}
LIMIT=${LIMIT:-580} # seconds a step
OTHERS=(attention_importance attention_received bidirectional_attention deformable_attention token_fusion visionzip)
STEPS=(build test-{triton,triton_fused,triton_others,cuda,cuda_fused} {forward,backward}-24-{8,32,1}
  "${OTHERS[@]/#/bench-}" {forward,backward}-{8,48}-{8,32,1})

mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
# The checkout is what runs, built or not, whatever else is installed.
export PYTHONPATH=$PWD OMP_WAIT_POLICY=passive

# CMake alone, as setup.py calls it: the machine's setuptools may be too old for pyproject.toml, and nothing newer comes.
build() {
  local options=(-DPython_EXECUTABLE="$(command -v "$PYTHON")")
  options+=(-Dpybind11_DIR="$("$PYTHON" -m pybind11 --cmakedir)")
  options+=(-DVR_KERNELS_VERSION="$("$PYTHON" -c "import vr_kernels; print(vr_kernels.__version__)")")
  options+=(-DVR_KERNELS_CUDA="${VR_KERNELS_CUDA:-}")
  options+=(-DVR_KERNELS_CUDA_ARCHITECTURES="${VR_KERNELS_CUDA_ARCHITECTURES:-}")
  PATH=$("$PYTHON" -c "import sysconfig; print(sysconfig.get_path('scripts'))"):$PATH
  { cmake -S . -B build/gpu -G Ninja "${options[@]}" && cmake --build build/gpu &&
    cmake --install build/gpu --prefix vr_kernels; } ||
    echo "The build failed: going on without vr_kernels._C, with Triton and stock PyTorch alone."
  cli info
}

# Triton's and torch's versions here differ from those that the project pins: their warnings are not errors. Most of the
# time goes into Triton's compiler, which knows one core: several processes share it where pytest-xdist is installed.
tests() {
  local workers=()
  "$PYTHON" -c "import xdist" 2>/dev/null && workers=(-n 8)
  "$PYTHON" -m pytest python_tests/gpu -k "$1" "${workers[@]}" -o minversion=0 -o filterwarnings=default \
    -p no:cacheprovider
}

cli() {
  "$PYTHON" -c 'from vr_kernels.cli import main; main()' "$@"
}

# The papers' three windows at one number of heads and one batch, against everything else.
crossover() {
  local flag=$1 step=$2 heads batch
  IFS=- read -r _ heads batch <<<"$step"
  cli bench local_cross_attention --device cuda --dtype bfloat16 --heads "$heads" --batch "$batch" "$flag" \
    --json "$OUT/gpu-$step.json" --plot "$OUT/gpu-$step.png"
}

other() {
  cli bench "$1" --device cuda --dtype bfloat16 --batch 8 --json "$OUT/gpu-$1.json"
}

run() {
  case $1 in
    build) build ;;
    test-triton) tests "triton and local_ and not triton_fused" ;;
    test-triton_others) tests "triton and not local_ and not triton_fused" ;;
    test-cuda) tests "not triton and not cuda_fused" ;;
    test-*_fused) tests "${1#test-}" ;;
    forward-*-*) crossover --no-backward "$1" ;;
    backward-*-*) crossover --backward "$1" ;;
    bench-*) other "${1#bench-}" ;;
    *)
      echo "gpu.sh: no step $1; the steps are ${STEPS[*]}" >&2
      return 2
      ;;
  esac
}

# One step of a run with several, as a process of its own so that it can be stopped at its limit.
if [[ ${1:-} == --step ]]; then
  run "$2"
  exit
fi

status=0
for step in "${@:-${STEPS[@]}}"; do
  echo "== $step"
  timeout "$LIMIT" "$SELF" --step "$step" 2>&1 | tee "$OUT/gpu-$step.log"
  result=${PIPESTATUS[0]}
  [[ $result == 0 ]] || { echo "== $step: exit status $result" && status=1; }
done
exit $status
