#!/usr/bin/env bash
# Prints the path of an nvcc of CUDA 13: in CUDA_HOME, else on PATH, else of the wheels that `scripts/setup.sh cuda` installs.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${PYTHON_CUDA_VENV:-$PWD/.cache/venv-cuda}

candidates=()
if [ -n "${CUDA_HOME:-}" ]; then
    candidates+=("$CUDA_HOME/bin/nvcc")
else
    on_path=$(command -v nvcc || true)
    [ -z "$on_path" ] || candidates+=("$on_path")
    candidates+=("$venv"/lib/python*/site-packages/nvidia/cu13/bin/nvcc)
fi
for nvcc in "${candidates[@]}"; do
    [ -x "$nvcc" ] || continue
    release=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
    case $release in
        13.*) echo "$nvcc"; exit 0 ;;
        *) echo "nvcc: $nvcc is of CUDA ${release:-unknown}, needed is 13" >&2 ;;
    esac
done
echo "nvcc: none of CUDA 13 in ${candidates[*]}: run scripts/setup.sh cuda, or set CUDA_HOME" >&2
exit 1
