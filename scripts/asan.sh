#!/usr/bin/env bash
# The kernels' tests under the address sanitizer, those of the CUDA kernels' shim among them. The flag is unstable, so the stable compiler has to be told to take it.
set -euo pipefail
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTC_BOOTSTRAP=1 RUSTFLAGS="${RUSTFLAGS:-} -Zsanitizer=address" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/asan"
exec cargo nextest run --release -p weft-kernels -p weft-cuda-kernels --target "$host"
