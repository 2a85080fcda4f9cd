#!/usr/bin/env bash
# The kernels' tests under the address sanitizer. Usage: scripts/asan.sh PART...
#   cpu    the CPU kernels'
#   cuda   the CUDA kernels', in the shim; compiling those takes some minutes
# The flag is unstable, so the stable compiler has to be told to take it.
set -euo pipefail
cd "$(dirname "$0")/.."
packages=()
for part in "$@"; do
    case $part in
        cpu) packages+=(-p weft-kernels) ;;
        cuda) packages+=(-p weft-cuda-kernels) ;;
        *) echo "asan: no part $part: cpu, cuda" >&2; exit 2 ;;
    esac
done
[ ${#packages[@]} -gt 0 ] || { echo "asan: name a part: cpu, cuda" >&2; exit 2; }
host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTC_BOOTSTRAP=1 RUSTFLAGS="${RUSTFLAGS:-} -Zsanitizer=address" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/asan"
exec cargo nextest run --release "${packages[@]}" --target "$host"
