#!/usr/bin/env bash
# Build, check, sanitize and measure the kernels on a machine with an NVIDIA GPU and no network.
#
#   bench/gpu.sh [build] [check] [sanitize] [measure] [micro]        all five if none is named
#
# Needs python3 with torch and triton, cmake, a C++ compiler and nvcc. Python packages that are
# missing (pybind11, pytest, ...) are taken from wheels in .whl/ if that folder exists. Each stage
# has a time limit, LIMIT_BUILD and so on in seconds; together they stay within ten minutes.
# OUT: where logs and results go (bench/results). PYTHON: the interpreter.
# MEASURE_ARGS: options of bench.kernels, such as --quick.
set -uo pipefail
cd "$(dirname "$0")/.."

OUT=${OUT:-bench/results}
WORK=build/gpu
if [[ -z ${PYTHON:-} ]]; then
  PYTHON=python3
  [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi
LIMIT_BUILD=${LIMIT_BUILD:-120}
LIMIT_CHECK=${LIMIT_CHECK:-140}
LIMIT_SANITIZE=${LIMIT_SANITIZE:-70}
LIMIT_MEASURE=${LIMIT_MEASURE:-190}
LIMIT_MICRO=${LIMIT_MICRO:-60}
SANITIZED=(append_kv build_tree compact_kv verify)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4} GOMP_SPINCOUNT=0 PYTHONDONTWRITEBYTECODE=1

say() { printf '== %s\n' "$*"; }
fail() { printf '!! %s\n' "$*" >&2; return 1; }
has_module() { "$PYTHON" -c "import importlib.util as u, sys; sys.exit(not u.find_spec('$1'))" 2>/dev/null; }
has_gpu() { "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; }

unpack_wheels() {
  local wheel
  for wheel in .whl/*.whl; do
    [[ -e $wheel ]] || return 0
    mkdir -p "$WORK/packages"
    "$PYTHON" -m zipfile -e "$wheel" "$WORK/packages" || fail "cannot unpack $wheel"
  done
  # Last, so that packages of the machine itself win.
  export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$PWD/$WORK/packages"
}

describe() {
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null ||
    say "no nvidia-smi: stages run on the CPU where they can"
  "$PYTHON" -c '
import platform, sys
print("python", platform.python_version(), sys.executable)
for name in ("torch", "triton", "pybind11", "pytest", "transformers", "flashinfer"):
    try:
        print(name, __import__(name).__version__)
    except ImportError as error:
        print(name, "missing:", error)
' || fail "$PYTHON does not run"
}

# An installed package (make demo) is used as it is; else the modules are built into the tree.
build() {
  "$PYTHON" -c 'import torch' || { fail "$PYTHON has no torch"; return 1; }
  if "$PYTHON" - <<'PY' 2>/dev/null
import sys
from importlib.util import find_spec
from pathlib import Path
module = find_spec("specedge_kernels._cpu")
sys.exit(module is None or Path(module.origin).parent == Path("specedge_kernels").resolve())
PY
  then
    say "specedge_kernels is installed; it is used as it is"
    return 0
  fi
  has_module pybind11 || { fail "pybind11 is missing: put its wheel into .whl/"; return 1; }
  local generator=() tool
  for tool in cmake c++; do
    command -v "$tool" >/dev/null || { fail "$tool is missing"; return 1; }
  done
  command -v ninja >/dev/null && generator=(-G Ninja)
  command -v nvcc >/dev/null || [[ -x ${CUDACXX:-} ]] || say "nvcc is missing: no _cuda module"
  cmake -S . -B "$WORK/cmake" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release \
    -DPython_EXECUTABLE="$(command -v "$PYTHON")" \
    -Dpybind11_DIR="$("$PYTHON" -m pybind11 --cmakedir)" &&
    cmake --build "$WORK/cmake" --parallel &&
    cmake --install "$WORK/cmake" --prefix . &&
    "$PYTHON" -c 'import specedge_kernels; from specedge_kernels.library import DEVICES; print(DEVICES)'
}

# Each path in a process of its own: after an illegal access nothing else runs on that GPU context.
check() {
  has_module pytest || { fail "pytest is missing: put its wheels into .whl/"; return 1; }
  local paths=(tests/kernels tests/gpu/test_registration.py tests/bench)
  if has_gpu; then
    paths=(tests/gpu/interpreted/test_*.py "${paths[@]}")
  else
    say "no GPU: the Triton kernels are not run"
  fi
  has_module transformers &&
    paths+=(tests/gpu/test_graphs.py tests/server/verify/test_{overlap,verifier}.py
      tests/model/test_{engine,invariance,transformer,graphs}.py)
  local jobs=$((($(nproc) + 1) / 2))
  printf '%s\n' "${paths[@]}" | xargs -P "$jobs" -I {} bash -c '
    report=$("$1" -m pytest -q -p no:cacheprovider "$2" 2>&1)
    code=$?
    ((code == 0 || code == 5)) || printf "%s\n" "$report" # 5: there was nothing to collect
    printf "%s: %s\n" "$2" "$(tail -n 1 <<<"$report")"
    ((code == 0 || code == 5))' _ "$PYTHON" {}
}

sanitize() {
  command -v compute-sanitizer >/dev/null ||
    { say "compute-sanitizer is not installed: skipped"; return 0; }
  has_gpu || { say "no GPU: skipped"; return 0; }
  # Else torch hides accesses beyond an allocation inside its own large blocks.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  local failed=0 tool
  for tool in memcheck racecheck; do
    sanitized "$tool" "${SANITIZED[@]/#/tests/gpu/interpreted/test_}" || failed=1
    sanitized "$tool" tests/gpu/interpreted/test_tree_attention -k "splits or windows" || failed=1
  done
  return $failed
}

sanitized() {
  local tool=$1 path paths=()
  shift
  while [[ ${1:-} == tests/* ]]; do paths+=("$1.py"); shift; done
  say "$tool ${paths[*]##*/}"
  compute-sanitizer --tool "$tool" --error-exitcode 1 --print-limit 20 \
    "$PYTHON" -m pytest -q -x -p no:cacheprovider "${paths[@]}" "$@"
}

# Of result files: the date and the device.
label() {
  "$PYTHON" -c '
import datetime, platform, re, torch
name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu-" + platform.machine()
print(datetime.date.today().isoformat(), re.sub(r"\W+", "-", name), sep="-")'
}

measure() {
  local name
  name=$(label) || return 1
  # shellcheck disable=SC2086
  "$PYTHON" -m bench.kernels --save "$OUT/kernels-$name.json" ${MEASURE_ARGS:-}
}

micro() {
  local name
  for name in pytest pytest_benchmark; do
    has_module "$name" || { say "$name is missing: skipped"; return 0; }
  done
  name=$(label) || return 1
  "$PYTHON" -m pytest -q -p no:cacheprovider bench/test_kernels.py \
    --benchmark-min-rounds=5 --benchmark-max-time=0.3 --benchmark-warmup=off \
    --benchmark-columns=min,median,iqr --benchmark-json "$OUT/micro-$name.json"
}

# A stage runs in a child of this script, so that the limit ends all of it.
run_stage() {
  local stage=$1 limit_name=LIMIT_${1^^} code
  local limit=${!limit_name}
  say "$stage (at most $limit s)"
  local start=$SECONDS
  STAGE=$stage timeout --kill-after=5 "$limit" bash bench/gpu.sh 2>&1 | tee "$OUT/$stage.log"
  code=${PIPESTATUS[0]}
  if ((code == 0)); then
    summary+=("$stage: passed, $((SECONDS - start)) s")
  elif ((code == 124 || code == 137)); then
    summary+=("$stage: CUT OFF after $limit s")
  else
    summary+=("$stage: FAILED ($code), $((SECONDS - start)) s")
  fi
  return "$code"
}

main() {
  local stages=("$@") stage failed=0
  summary=()
  ((${#stages[@]})) || stages=(build check sanitize measure micro)
  for stage in "${stages[@]}"; do
    [[ $stage =~ ^(build|check|sanitize|measure|micro)$ ]] ||
      { fail "unknown stage $stage; expected build, check, sanitize, measure or micro"; exit 2; }
  done
  mkdir -p "$OUT" "$WORK"
  OUT=$(cd "$OUT" && pwd)
  export OUT PYTHON
  unpack_wheels
  describe
  for stage in "${stages[@]}"; do
    run_stage "$stage" || failed=1
    if [[ $stage == build && $failed == 1 ]]; then break; fi
  done
  say "summary"
  printf '%s\n' "${summary[@]}"
  return $failed
}

if [[ -n ${STAGE:-} ]]; then
  "$STAGE"
else
  main "$@"
fi
