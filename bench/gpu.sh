#!/usr/bin/env bash
# All that a machine with an NVIDIA GPU is good for, in one command of less than 9 minutes, without a network.
#
#     bench/gpu.sh OUTDIR           build radam with CUDA, test it on the GPU, sanitize it, measure it
#     bench/gpu.sh --dry OUTDIR     try all of that, small; also where there is no GPU: each part says why it cannot run
#
# OUTDIR gets summary.txt, build.log, tests.log, sanitizer.log, bench.log, gpu.json, gpu.md and gpu.png, as far as it
# came. Ends with 0 where all went well, 1 where something failed, 3 where there is no CUDA device (0 with --dry).
#
# From the environment:
#     RADAM_WHEEL    a wheel of radam: nothing is built, so that neither nvcc nor a compiler is needed
#     RADAM_BUILT=1  nothing is built or installed: the radam that Python finds is taken
#     WHEELS         a folder of wheels with what Python lacks to build, to test or to sanitize: scikit-build-core,
#                    nanobind, pythran; pytest, hypothesis, mpmath, ml_dtypes, safetensors; nvidia-cuda-sanitizer-api
#                    (13.5 has all of compute-sanitizer, 13.0 has not). A wheel of radam among them is RADAM_WHEEL.
#     PYTHON         the Python that has PyTorch, and CuPy if it is to take part; default: python3
#     RADAM_WORK     where to build and install; default: build/gpu of this repository

set -u
dry=
if [ "${1-}" = --dry ]; then
  dry=1
  shift
fi
if [ $# != 1 ] || [ "${1#-}" != "$1" ]; then
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi

root=$(cd "$(dirname "$0")/.." && pwd) || exit 1
out=$(mkdir -p "$1" && cd "$1" && pwd) || exit 1
work=${RADAM_WORK:-$root/build/gpu}
work=$(mkdir -p "$work" && cd "$work" && pwd) || exit 1
wheels=${WHEELS-}
[ -z "$wheels" ] || wheels=$(cd "$wheels" && pwd) || exit 1
[ -z "${RADAM_WHEEL-}" ] || RADAM_WHEEL=$(realpath -e "$RADAM_WHEEL") || exit 1
python=${PYTHON:-python3}
cd "$root" || exit 1
rm -f "$out"/{summary.txt,build.log,tests.log,sanitizer.log,bench.log,gpu.json,gpu.md,gpu.png}

export python work wheels
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
export PATH="$work/wheels/bin:$PATH" PYTHONPATH="$work/wheels${PYTHONPATH:+:$PYTHONPATH}"
[ -n "${RADAM_BUILT-}" ] || PYTHONPATH="$work/radam:$PYTHONPATH"

whole_limit=525 # seconds, for all of it
failed=

# ---- parts, and what becomes of them

say() { printf '%s\n' "$*" | tee -a "$out/summary.txt"; }

# verdict PART SECONDS WORDS...
verdict() { say "$(printf '%-10s %4s s  ' "$1" "$2")${*:3}"; }

# limited SECONDS LOG COMMAND...: runs a command so long at most, and not beyond the limit of all. Its exit status.
limited() {
  local limit=$1 log=$2 left=$((whole_limit - SECONDS))
  [ "$limit" -le "$left" ] || limit=$left
  if [ "$limit" -lt 1 ]; then
    echo "no time was left" >>"$log"
    return 124
  fi
  timeout --kill-after=5 "$limit" "${@:3}" >>"$log" 2>&1
}

# last_word LOG: the line that says best why a command failed.
last_word() {
  local pattern line
  for pattern in '^ *radam: ' 'missing' '^E  ' '[Ee]rror:|ERROR' '.'; do
    line=$(grep -aE "$pattern" "$1" | tail -n 1)
    [ -z "$line" ] || break
  done
  printf '%.400s' "${line#"${line%%[! ]*}"}"
}

# part NAME SECONDS LOG COMMAND...: runs a part and says what became of it. Its exit status.
part() {
  local name=$1 limit=$2 log=$out/$3 began=$SECONDS status
  limited "$limit" "$log" "${@:4}"
  status=$?
  case $status in
    0) verdict "$name" $((SECONDS - began)) "well" ;;
    124 | 137) verdict "$name" $((SECONDS - began)) "STOPPED at its limit of time (see $3)" ;;
    *) verdict "$name" $((SECONDS - began)) "FAILED with $status (see $3): $(last_word "$log")" ;;
  esac
  [ $status = 0 ] || failed=1
  return $status
}

# ---- the machine

describe() {
  uname -srm
  timeout 20 nvidia-smi --format=csv,noheader \
    --query-gpu=name,memory.total,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit \
    2>/dev/null || echo "nvidia-smi: missing, or without a driver"
  nvcc --version 2>/dev/null | grep release || echo "nvcc: missing"
  "$python" - <<'PYTHON'
import importlib.metadata, platform, sys
print(f"Python {platform.python_version()} ({sys.executable})")
for name in ("torch", "cupy-cuda13x", "numpy", "nanobind", "scikit-build-core", "pythran", "pytest"):
    try:
        print(f"{name} {importlib.metadata.version(name)}")
    except importlib.metadata.PackageNotFoundError:
        print(f"{name}: missing")
PYTHON
}

# ---- radam

install() { "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade "$@"; }

build() {
  local wheel some=() own=${RADAM_WHEEL-}
  for wheel in ${wheels:+"$wheels"/*.whl}; do
    case ${wheel##*/} in
      radam-*) own=${own:-$wheel} ;;
      *) some+=("$wheel") ;;
    esac
  done
  [ ${#some[@]} = 0 ] || install --target "$work/wheels" "${some[@]}" || return
  if [ -z "${RADAM_BUILT-}" ]; then
    if [ -n "$own" ]; then
      install --target "$work/radam" "$own" || return
    else # pyproject.toml says what this needs, and pip what of it is missing
      install --target "$work/radam" --no-build-isolation --check-build-dependencies \
        --config-settings=build-dir="$work/build" --config-settings=cmake.define.RADAM_CUDA=ON . || return
    fi
  fi
  "$python" -c 'import radam; print(radam.__file__); radam.show_config()'
}
export -f install build

# ---- sanitizers

find_sanitizer() {
  local place
  for place in "$(command -v compute-sanitizer)" "$work"/wheels/nvidia/*/bin/compute-sanitizer \
    /usr/local/cuda/bin/compute-sanitizer; do
    [ -f "$place" ] || continue
    [ -x "$place" ] || chmod +x "$place"
    echo "$place"
    return
  done
  return 1
}

# sanitize TOOL: what it says counts where it is about a kernel of radam's, or comes from radam's library.
sanitize() {
  local tool=$1 began=$SECONDS log=$work/$1.log status seconds
  local filter=(--kernel-name kns=radam) # of mangled names
  [ "$tool" != initcheck ] || filter=()  # it must see who writes, too, and those are others
  rm -f "$log"
  echo "==== $tool" >>"$out/sanitizer.log"
  # Without the caches of PyTorch's allocator, so that the end of a tensor is the end of its memory.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 limited 35 "$out/sanitizer.log" "$sanitizer" --tool "$tool" "${filter[@]}" \
    --target-processes application-only --print-limit 20 --log-file "$log" "${tests[@]}" -m "gpu and sanitized"
  status=$?
  seconds=$((SECONDS - began))
  touch "$log"
  cat "$log" >>"$out/sanitizer.log"
  if grep -aqE 'radam::|5radam4cuda|libradam_cuda' "$log"; then
    failed=1
    verdict "$tool" $seconds "FAILED: it says something of radam (see sanitizer.log)"
  elif [ $status = 124 ] || [ $status = 137 ]; then
    failed=1
    verdict "$tool" $seconds "STOPPED at its limit of time (see sanitizer.log)"
  elif grep -aqE 'Device not supported|before first instrumented API call' "$log"; then
    verdict "$tool" $seconds "not possible here: $(last_word "$log")"
  elif ! grep -aq SUMMARY "$log"; then
    failed=1
    verdict "$tool" $seconds "FAILED before its end: $(last_word "$log")"
  elif [ $status != 0 ]; then
    failed=1
    verdict "$tool" $seconds "FAILED: the tests do under it (see sanitizer.log)"
  else
    verdict "$tool" $seconds "well: $(grep -a SUMMARY "$log" | tail -n 1 | sed 's/^=* *//')"
  fi
}

# ---- all of it

say "$(date -u +%Y-%m-%dT%H:%M:%SZ) bench/gpu.sh${dry:+ --dry}, commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
say "$(describe)"
say ""

part build 160 build.log bash -c build || say "radam is not installed as asked for; see whether there is another one"

limited 60 "$out/build.log" "$python" bench/gpu.py --check
device=$?
if [ $device != 0 ]; then
  say "$(tail -n 1 "$out/build.log")"
  [ -n "$dry" ] || { say "so nothing is tested or measured"; exit $((device == 3 ? 3 : 1)); }
fi

# No plugins: those of this machine are none of ours.
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
mapfile -t files < <(grep -l 'pytest\.mark\.gpu' tests/test_*.py)
tests=("$python" -m pytest -m gpu -rs --no-showlocals -p no:cacheprovider --maxfail=30 -o faulthandler_timeout=90
  -W "ignore:The pynvml package is deprecated:FutureWarning" "${files[@]}") # which PyTorch imports where it is
part tests 130 tests.log "${tests[@]}"
counts=$(grep -aE '[0-9]+ (passed|skipped|failed|errors?)' "$out/tests.log" | tail -n 1)
say "                   ${counts:-no test has run}"
if [ $device = 0 ] && ! grep -q passed <<<"$counts"; then
  failed=1
  say "                   FAILED: none has passed"
fi

if ! sanitizer=$(find_sanitizer); then
  say "sanitizers        compute-sanitizer is missing (in CUDA's toolkit, or on PyPI: nvidia-cuda-sanitizer-api)"
elif [ $device != 0 ]; then
  say "sanitizers        not run, there is no device; found $("$sanitizer" --version | grep -i version)"
else
  for tool in memcheck racecheck initcheck; do sanitize "$tool"; done
fi

if [ $device = 0 ]; then
  left=$((whole_limit - SECONDS))
  part bench "$left" bench.log "$python" bench/gpu.py --seconds $((left > 160 ? 100 : left > 70 ? left - 55 : 15)) \
    ${dry:+--quick --seconds 5} --output "$out/gpu"
else
  limited 60 "$out/bench.log" "$python" bench/gpu.py --output "$out/gpu"
  say "bench             not run: $(tail -n 1 "$out/bench.log")"
fi

say ""
say "${failed:+something FAILED; }$SECONDS s in all"
[ -z "$failed" ]
