#!/usr/bin/env bash
# Measures a GPU with what loadtests/gpu/prepare.sh put beside this script; under ten minutes.
# Usage: run.sh [FOLDER FOR RESULTS [OPTIONS OF weft-gpu]]   with options, as --only decode, nothing but the measurement runs
#   tests.txt      the device layer's tests and the kernels' conformance suite on the device
#   sanitizer.txt  of those, each kernel once more under compute-sanitizer, where there is one
#   report.json    decoding, prompts, cold and streamed adapters, more adapters than slots, the model beside this script; floors and goals
# Prints the goals on stderr. Exit 0 only if the tests passed and the report is whole; goals decide nothing.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-${OUT:-.}}
shift || true
# All of it, in seconds: twice the tests at most, and the measurement, which is told its time and may end its last case after it.
tests=90 seconds=${WEFT_GPU_SECONDS:-350} late=50
mkdir -p "$out"
export WEFT_KERNELS="$here/weft.fatbin"
nvidia-smi >"$out/nvidia-smi.txt" 2>&1 || true
status=0
if [ $# = 0 ]; then
    timeout "$tests" "$here/device-tests" --ignored --nocapture >"$out/tests.txt" 2>&1 || status=1
    if command -v compute-sanitizer >/dev/null; then
        # These have few launches of each kernel; the thousands of the whole suite would take too long there.
        timeout "$tests" compute-sanitizer --error-exitcode 9 "$here/device-tests" --ignored shim >"$out/sanitizer.txt" 2>&1 || status=1
    fi
    tail -3 "$out/tests.txt"
fi
model=()
[ ! -e "$here/model" ] || model=(--model "$here/model")
timeout $((seconds + late)) "$here/weft-gpu" --kernels "$WEFT_KERNELS" --seconds "$seconds" "${model[@]}" "$@" \
    >"$out/report.json" 2>"$out/report.err" || status=1
cat "$out/report.err" >&2
exit $status
