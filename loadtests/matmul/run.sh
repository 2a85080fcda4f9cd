#!/usr/bin/env bash
# Weft's products with matrices beside those of the crates gemm and candle and of oneDNN (by PyTorch), in one run. Usage: run.sh
# THREADS (2), REPEATS (5). PyTorch comes from the venv of the vLLM peer (loadtests/peers/install.sh).
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p target/bench
threads=${THREADS:-2} repeats=${REPEATS:-5}
CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/matmul" cargo build --release -q --manifest-path loadtests/matmul/Cargo.toml
"${CARGO_TARGET_DIR:-target}/matmul/release/weft-matmul" --threads "$threads" --repeats "$repeats"
if python=$(loadtests/peers/install.sh vllm); then
    "$python" loadtests/matmul/onednn.py --threads "$threads" --repeats "$repeats" 2>target/bench/matmul-torch.log ||
        { echo "torch failed:"; tail -n 5 target/bench/matmul-torch.log; }
else
    echo "torch skipped: it could not be installed"
fi
