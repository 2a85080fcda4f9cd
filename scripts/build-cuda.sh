#!/usr/bin/env bash
# Builds all kernels/cuda/*.cu into one fatbin, which a worker with a GPU loads. Usage: scripts/build-cuda.sh [FILE]
#   FILE  target/cuda/weft.fatbin, if none is named
# Holds code for every architecture of scripts/gpu-check.sh, and PTX of compute_80, which a driver of CUDA 13 compiles for any other from 8.0 on.
# Needs the part `cuda` of scripts/setup.sh, or another CUDA 13 (scripts/nvcc.sh).
set -euo pipefail
cd "$(dirname "$0")/.."
architectures=(80 86 89 90 100)
file=${1:-${CARGO_TARGET_DIR:-target}/cuda/weft.fatbin}
nvcc=$(scripts/nvcc.sh)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# One translation unit, as in the shim: one module, in which a name is found once.
for source in kernels/cuda/*.cu; do
    echo "#include \"$PWD/$source\""
done >"$work/weft.cu"
codes=(-gencode "arch=compute_80,code=compute_80")
for architecture in "${architectures[@]}"; do
    codes+=(-gencode "arch=compute_$architecture,code=sm_$architecture")
done
mkdir -p "$(dirname "$file")"
# Whoever reads it meanwhile has the old one or the new one.
"$nvcc" -std=c++17 --threads 0 "${codes[@]}" -fatbin -o "$work/weft.fatbin" "$work/weft.cu"
mv "$work/weft.fatbin" "$file.new"
mv "$file.new" "$file"
echo "build-cuda: $file, $(stat -c %s "$file") bytes, sm_${architectures[*]} and PTX of compute_80"
