#!/usr/bin/env bash
# Measures Weft and llama.cpp's server on the same base, adapters and prompts, in one run, and prints the ratios.
# Needs the release build of weft and what `scripts/setup.sh bench` installs. Figures: target/bench/{serve,llama_cpp}.json.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=${PYTHON_VENV:-$PWD/.cache/venv}
workload=target/bench/workload
weft=${CARGO_TARGET_DIR:-target}/release/weft
model=$("$weft" model fetch demo)
mkdir -p "$workload"
"$weft" bench --export "$workload"
"$weft" bench --out target/bench/serve.json
"$venv/bin/python" loadtests/peers/llama_cpp.py "$model" "$workload" target/bench/llama_cpp.json
"$venv/bin/python" - <<'PY'
import json
weft = {case["name"]: case["tokens_per_second_median"] for case in json.load(open("target/bench/serve.json"))["cases"]}
peer = json.load(open("target/bench/llama_cpp.json"))["weights"]
name = "a different adapter each"
best = max(rates[name] for rates in peer.values())
shared = max(rates["one shared adapter"] for rates in peer.values())
print(f"\n32 different adapters: weft {weft[name]:.1f} tokens/s = {weft[name] / best:.1f} x llama.cpp's best with them,"
      f" {weft[name] / shared:.1f} x its best with one shared adapter")
PY
