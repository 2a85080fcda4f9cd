#!/usr/bin/env bash
# Chaos, as `make chaos` has it, but shorter: first a rolling restart in which nothing may break, then kills too. How many requests the
# machine can do meanwhile is no test.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${PYTHON_VENV:-$PWD/.cache/venv}
model=${WEFT_DEMO_MODEL:-$("${CARGO_TARGET_DIR:-target}/release/weft" model fetch demo --cache-dir .cache/models)}
for kills in --no-kills --kill-every=4; do
    "$venv/bin/python" loadtests/chaos/chaos.py --model "$model" --seconds 24 --requests-min 50 $kills
done
