#!/usr/bin/env bash
# Measures a GPU with what loadtests/gpu/prepare.sh put beside this script; under ten minutes. Usage: run.sh [FOLDER FOR RESULTS]
#   tests.txt    the device layer's tests on the device, once more under compute-sanitizer where there is one
#   report.json  decoding with 0 to 64 adapters in bf16, int8 and fp8, with and without graphs; loads of cold adapters; the floor of each
# Exit 0 only if the tests passed and the report is whole.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-${OUT:-.}}
mkdir -p "$out"
export WEFT_KERNELS="$here/weft.fatbin"
nvidia-smi >"$out/nvidia-smi.txt" 2>&1 || true
status=0
"$here/device-tests" --ignored --nocapture >"$out/tests.txt" 2>&1 || status=1
if command -v compute-sanitizer >/dev/null; then
    compute-sanitizer --error-exitcode 9 "$here/device-tests" --ignored >"$out/sanitizer.txt" 2>&1 || status=1
fi
timeout 400 "$here/weft-gpu" --kernels "$WEFT_KERNELS" --seconds "${WEFT_GPU_SECONDS:-1}" >"$out/report.json" 2>"$out/report.err" || status=1
tail -3 "$out/tests.txt"
cat "$out/report.err" >&2
exit $status
