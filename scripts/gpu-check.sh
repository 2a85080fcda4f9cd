#!/usr/bin/env bash
# All that can be proved of the GPU worker without a device. Usage: scripts/gpu-check.sh [ARCHITECTURE]
#   - every kernels/cuda/*.cu compiles for every architecture, with the registers, spills and shared memory of
#     kernels/cuda/ptxas.golden.txt (WEFT_GOLDEN=write: writes the table)
#   - the same files, run on this processor, conform; so does the device layer, with what calls CUDA's driver compiled in
#   - the worker, the program and loadtests/gpu pass clippy with the feature that calls CUDA's driver
#   - what bytes over bandwidth predict is printed
# With an architecture (make test has 80): only compiles for that one, and holds it to its rows of the table.
# Needs the part `cuda` of scripts/setup.sh, or another CUDA 13.0 in CUDA_HOME. The last line says how it went; exit 0 only if all of it held.
set -euo pipefail
cd "$(dirname "$0")/.."
architectures=(80 86 89 90 100)
[ -z "${1:-}" ] || architectures=("$1")
golden=kernels/cuda/ptxas.golden.txt
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

nvcc=$(scripts/nvcc.sh)
release=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
echo "gpu-check: nvcc $release"

# One line for each entry function: registers and what ptxas had to put into memory.
table() { # architecture, what ptxas said
    awk -v arch="sm_$1" '
        /Compiling entry function/ { split($0, part, "\047"); name = part[2] }
        /bytes stack frame/ { stack = $1; stores = $5; loads = $9 }
        /Used [0-9]+ registers/ {
            shared = 0
            for (i = 1; i <= NF; i++) {
                if ($i == "Used") registers = $(i + 1)
                if ($i == "smem" || $i == "smem,") shared = $(i - 2)
            }
            printf "%s %s registers %d stack %d spill_stores %d spill_loads %d shared %d\n", arch, name, registers, stack, stores, loads, shared
        }' "$2"
}

# Each kernel file for each architecture, as many at a time as there are processors.
compile() { # source, architecture
    local log
    log="$out/$(basename "$1" .cu).$2.log"
    if "$nvcc" -std=c++17 -arch="sm_$2" -cubin -Xptxas -v -o "$log.cubin" "$1" >"$log" 2>&1; then
        table "$2" "$log" >"$log.rows"
    else
        echo "gpu-check: $1 for sm_$2:" >&2
        cat "$log" >&2
    fi
}
export -f compile table
export nvcc out
wanted=0
for source in kernels/cuda/*.cu; do
    for architecture in "${architectures[@]}"; do
        wanted=$((wanted + 1))
        echo "$source" "$architecture"
    done
done >"$out/jobs"
xargs -P "$(nproc)" -L 1 bash -c 'compile "$@"' _ <"$out/jobs"
compiled=$(find "$out" -name '*.rows' | wc -l)
cat "$out"/*.rows >"$out/rows"
{
    echo "# Made by WEFT_GOLDEN=write scripts/gpu-check.sh with nvcc $release. A change of kernels that changes a row must change it here."
    echo "# shared: static bytes; stack and spills: bytes of local memory."
    sort -V "$out/rows"
} >"$out/table"
table=unchanged
if [ -n "${1:-}" ]; then
    grep -E "^(#|sm_$1 )" "$golden" | diff -u - "$out/table" || table=changed
    echo "gpu: kernels $compiled/$wanted compiled for sm_$1, golden table $table"
    [ "$compiled" = "$wanted" ] && [ "$table" = unchanged ]
    exit
elif [ "${WEFT_GOLDEN:-}" = write ]; then
    cp "$out/table" "$golden"
elif ! diff -u "$golden" "$out/table"; then
    table=changed
fi

tests="$out/tests"
cargo nextest run --release -p weft-cuda-kernels -p weft-cuda-device -p weft-engine -p weft-worker --features weft-cuda-device/cuda --no-fail-fast \
    -E 'package(weft-cuda-kernels) + package(weft-cuda-device) + (package(weft-engine) & binary(device)) + (package(weft-worker) & test(device::))' 2>&1 | tee "$tests" || true
cargo clippy --release -p weft-worker -p weft -p weft-gpu --features weft-worker/cuda,weft-gpu/cuda -- -D warnings || linted=failed
# Under the address sanitizer as well; what fails there fails here.
scripts/asan.sh cuda || sanitized=failed
ran=$(sed -nE 's/^ *Summary .* ([0-9]+) tests? run:.*/\1/p' "$tests")
passed=$(sed -nE 's/^ *Summary .* ([0-9]+) passed.*/\1/p' "$tests")

echo
cargo run --quiet --release -p weft-cuda-kernels --example ceiling || table="$table, no prediction"
echo
echo "gpu: kernels $compiled/$wanted compiled, conformance ${passed:-0}/${ran:-0}, golden table $table${sanitized:+, address sanitizer $sanitized}${linted:+, clippy $linted}"
[ "${sanitized:-passed}${linted:-}" = passed ] && [ "$compiled" = "$wanted" ] && [ -n "$ran" ] && [ "${passed:-0}" = "$ran" ] && [ "$table" = unchanged ]
