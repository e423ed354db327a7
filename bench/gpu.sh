#!/usr/bin/env bash
# Half an hour on a GPU machine that can download nothing: build, test, and measure, the most worth knowing first.
#
#   bench/gpu.sh 1|2|3      a call of less than ten minutes: is it right, where do the kernels win, whole models
#   bench/gpu.sh STEP...    steps by name, the same limits
#
#   build                       vr_kernels._C in this checkout; where that fails, the rest goes on without it
#   test-KERNELS                the gpu tests of triton (windows), triton_others, triton_fused, cuda or cuda_fused
#   sanitize-TOOL               a small call of every kernel under compute-sanitizer's memcheck or racecheck
#   forward-H-B, backward-H-B   local cross-attention at H heads (8, 24, 48) and a batch of B against everything else
#   launches-B                  what each way to compute it launches, and how long each kernel takes
#   counters-B                  the hardware's counters of a call of each of our kernels, where ncu may read them
#   bench-OPERATOR-B            another operator at the papers' shapes
#   llava_vr-SHAPE              the time to the first token; training-SHAPE: a step of both phases
#
# Each step ends at its limit, all at $CALL_LIMIT (540 seconds), and one that fails does not stop the next. What is
# built and written is in $WORK (build/gpu); after every step $OUT/gpu.tar.gz ($WORK) holds all records and logs.
# $PYTHON (python3) has torch; wheels in $WHEELS (build/gpu-wheels), say of a newer transformers, go before what it has.
# A rehearsal without a GPU: DEVICE=cpu QUICK=1, and LIMIT=SECONDS for every step.
set -uo pipefail
SELF=$(realpath "$0")
cd "$(dirname "$SELF")/.."

PYTHON=${PYTHON:-python3}
CALL_LIMIT=${CALL_LIMIT:-540}
WORK=$(realpath -m "${WORK:-build/gpu}")
RESULTS=$WORK/results
OUT=${OUT:-$WORK}
WHEELS=${WHEELS:-build/gpu-wheels}
SITE=$WORK/site
DEVICE=${DEVICE:-cuda}

declare -A CALLS=(
  [1]="build forward-24-8 test-cuda test-triton test-cuda_fused test-triton_fused test-triton_others sanitize-memcheck
    sanitize-racecheck"
  [2]="build backward-24-8 forward-24-1 launches-1 forward-24-32 bench-local_attention-8 bench-attention_importance-8
    bench-attention_received-8 bench-bidirectional_attention-1 bench-bidirectional_attention-8 bench-token_fusion-8
    launches-8 backward-24-32 backward-24-1 forward-48-8"
  [3]="build llava_vr-v2 llava_vr-v2-anyres training-v2 bench-visionzip-8 bench-fastv-8 bench-saliency-8 llava_vr-v1
    llava_vr-v2-anyres-7b llava_vr-v2-1.5b backward-48-8 forward-48-1 bench-deformable_attention-8 forward-8-8
    backward-8-8 counters-8"
)

# Seconds that a step may take.
limit_of() {
  [[ -z ${LIMIT:-} ]] || { echo "$LIMIT" && return; }
  case $1 in
    build | sanitize-* | llava_vr-*) echo 150 ;;
    test-* | forward-24-8 | backward-24-8) echo 140 ;;
    *) echo 100 ;;
  esac
}

# The checkout is what runs, built or not, whatever else is installed.
export PYTHONPATH=$PWD:$SITE OMP_WAIT_POLICY=passive PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
export HF_HUB_OFFLINE=1 PATH=$PATH:/usr/local/cuda/bin

# CMake alone, as setup.py calls it: the machine's setuptools may be too old for pyproject.toml, and nothing newer
# comes. Machine code for the GPU at hand and nothing else: the time is short.
build() {
  local options=(-DPython_EXECUTABLE="$(command -v "$PYTHON")") here
  here=$("$PYTHON" -c "import torch; print('%d%d-real' % torch.cuda.get_device_capability())" 2>/dev/null)
  options+=(-Dpybind11_DIR="$("$PYTHON" -m pybind11 --cmakedir)")
  options+=(-DVR_KERNELS_VERSION="$("$PYTHON" -c "import vr_kernels; print(vr_kernels.__version__)")")
  options+=(-DVR_KERNELS_CUDA="${VR_KERNELS_CUDA:-}")
  options+=(-DVR_KERNELS_CUDA_ARCHITECTURES="${VR_KERNELS_CUDA_ARCHITECTURES:-$here}")
  PATH=$("$PYTHON" -c "import sysconfig; print(sysconfig.get_path('scripts'))"):$PATH
  { cmake -S . -B "$WORK/cmake" -G Ninja "${options[@]}" && cmake --build "$WORK/cmake" &&
    cmake --install "$WORK/cmake" --prefix vr_kernels; } ||
    echo "The build failed: going on without vr_kernels._C, with Triton and stock PyTorch alone."
  nvidia-smi
  cli info
  cli info --json >"$RESULTS/info.json"
}

cli() {
  "$PYTHON" -c 'from vr_kernels.cli import main; main()' "$@"
}

has() {
  "$PYTHON" -c "import $1" 2>/dev/null
}

# Versions here differ from those that the project pins: settings of their own, in which pytest may be older and the
# others' warnings are not errors. Most of the time goes into Triton's compiler, which knows one core: a process a core
# shares it where pytest-xdist is installed.
tests() {
  local options=() settings=$WORK/pytest.ini
  printf '[pytest]\naddopts = --import-mode=importlib\nmarkers = gpu\nxfail_strict = true\n' >"$settings"
  has xdist && options+=(-n "$(nproc)")
  has pytest_timeout && options+=(--timeout 100)
  OMP_NUM_THREADS=1 "$PYTHON" -m pytest -c "$settings" --rootdir . python_tests/gpu -k "$1" "${options[@]}" -q -rs \
    -p no:cacheprovider
}

# Without torch's allocator each tensor is an allocation, whose bounds the tool knows.
sanitize() {
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 9 \
    "$PYTHON" -m python_tests.gpu.small_calls
}

# OPERATOR NAME OPTION...: one record. A kernel that ends the process takes the later shapes with it, so that they are
# measured once more without those of ours that are there by name only.
measure() {
  local operator=$1 record stock=()
  record=$(realpath --relative-to . "$RESULTS")/$2 # it stands in the record itself
  shift 2
  set -- "$operator" --device "$DEVICE" --dtype bfloat16 ${QUICK:+--quick} "$@"
  cli bench "$@" --json "$record.json" && return
  for baseline in $("$PYTHON" -c "from vr_kernels.cli.measure.benches import BENCHES as benches
print(*[name for name in benches['$operator'].baselines if not name.startswith(('triton', 'cuda'))])"); do
    stock+=(--compare "$baseline")
  done
  echo "== again, without the kernels that run by name"
  cli bench "$@" "${stock[@]}" --json "$record-stock.json"
  return 1
}

run() {
  local name=gpu-$1 tiny=(${QUICK:+--shape tiny}) first second
  IFS=- read -r _ first second <<<"$1"
  case $1 in
    build) build ;;
    test-triton) tests "triton and local_ and not triton_fused" ;;
    test-triton_others) tests "triton and not local_ and not triton_fused" ;;
    test-cuda) tests "not triton and not cuda_fused" ;;
    test-*_fused) tests "$first" ;;
    sanitize-*) sanitize "$first" ;;
    forward-*-*) measure local_cross_attention "$name" "${tiny[@]}" --no-backward --heads "$first" --batch "$second" ;;
    backward-*-*) measure local_cross_attention "$name" "${tiny[@]}" --backward --heads "$first" --batch "$second" ;;
    launches-*)
      "$PYTHON" bench/launches.py local_cross_attention --device "$DEVICE" ${QUICK:+--shape tiny} --batch "$first" \
        --json "$RESULTS/$name.json"
      ;;
    counters-*)
      local sections=()
      for section in LaunchStats Occupancy SpeedOfLight MemoryWorkloadAnalysis WarpStateStats; do
        sections+=(--section "$section")
      done
      ncu --profile-from-start off --clock-control none "${sections[@]}" --csv --log-file "$RESULTS/$name.csv" \
        "$PYTHON" bench/one_call.py local_cross_attention triton triton_fused cuda cuda_fused --device "$DEVICE" \
        --batch "$first" ${QUICK:+--shape tiny}
      ;;
    bench-*-*) measure "$first" "$name" "${tiny[@]}" --batch "$second" ;;
    llava_vr-*) measure llava_vr "$name" --shape "${1#llava_vr-}" --repeats 7 ;;
    training-*)
      "$PYTHON" bench/training_step.py --shape "${1#training-}" --device "$DEVICE" ${QUICK:+--quick} \
        --json "$RESULTS/$name.json"
      ;;
    *)
      echo "gpu.sh: no step $1; the calls are 1: ${CALLS[1]}; 2: ${CALLS[2]}; 3: ${CALLS[3]}" >&2
      return 2
      ;;
  esac
}

# One step of a run with several, as a process of its own so that it can be stopped at its limit.
if [[ ${1:-} == --step ]]; then
  run "$2"
  exit
fi

mkdir -p "$RESULTS" "$OUT" "$SITE"
OUT=$(cd "$OUT" && pwd)
if compgen -G "$WHEELS/*.whl" >/dev/null; then
  timeout -k 5 "${LIMIT:-60}" "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target "$SITE" "$WHEELS"/*.whl
fi

steps=()
for name in "${@:-1}"; do
  read -rd '' -a of_call <<<"${CALLS[$name]:-$name}" || true
  steps+=("${of_call[@]}")
done
status=0
for step in "${steps[@]}"; do
  left=$((CALL_LIMIT - SECONDS))
  limit=$(limit_of "$step")
  if ((left < 20)); then
    echo "== $step: not begun, $left seconds are left" && status=1
    continue
  fi
  begun=$SECONDS
  # As by Ctrl-C, upon which pytest says what failed so far. To a file: what is left running would hold a pipe open.
  timeout -s INT -k 5 $((limit < left ? limit : left)) "$SELF" --step "$step" >"$RESULTS/$step.log" 2>&1 </dev/null
  result=$?
  echo "== $step: exit status $result after $((SECONDS - begun)) s"
  [[ $result == 0 ]] || status=1
  tail -n $((result == 0 ? 1 : 4)) "$RESULTS/$step.log" | cut -c1-200
  tar -czf "$WORK/packing" -C "$RESULTS" . && mv "$WORK/packing" "$OUT/gpu.tar.gz"
done
exit $status
