#!/usr/bin/env bash
# Builds all that loadtests/gpu/run.sh needs on a machine with a GPU, where nothing else has to be installed but the driver and cuBLAS.
# Usage: loadtests/gpu/prepare.sh [FOLDER]   (target/gpu)
# WEFT_GPU_MODEL: a GGUF file or a Hugging Face folder, to be measured too.
# Needs nvcc (scripts/nvcc.sh).
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-target/gpu}
mkdir -p "$folder"
scripts/build-cuda.sh "$folder/weft.fatbin"
# In a folder of its own: these features would build much of the workspace anew.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/gpu-build"
cargo build --release -p weft-gpu --features cuda
cp "$CARGO_TARGET_DIR/release/weft-gpu" "$folder/"
tests=$(cargo test --release -p weft-cuda-device --features cuda --test device --no-run --message-format json |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1)
cp "$tests" "$folder/device-tests"
cp loadtests/gpu/run.sh "$folder/"
rm -rf "$folder/model"
[ -z "${WEFT_GPU_MODEL:-}" ] || cp -rL "$WEFT_GPU_MODEL" "$folder/model"
echo "gpu: prepared $folder ($(du -sh "$folder" | cut -f1))"
