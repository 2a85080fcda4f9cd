#!/usr/bin/env bash
# Measures Weft and other engines on the same base, adapters and prompts, in one run, and prints one table with ratios.
# Usage: run.sh [--check] [llama-cpp] [openvino] [vllm]   (none named: all)
# --check: status 1 if a figure of Weft or a ratio is not what it should be, or a peer is missing.
# Needs the release build of weft. Each peer is installed by install.sh; one that cannot be is skipped with a line that says why.
# ROUNDS (3): rounds that count, after one that warms up. THREADS (2). WEIGHTS (q4_1,q8_0,bf16): llama.cpp's formats.
# DTYPES (int8 bf16 q4): Weft's, the fastest counts. Figures: target/bench/peers.json.
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${ROUNDS:-3} threads=${THREADS:-2} weights=${WEIGHTS:-q4_1,q8_0,bf16} dtypes=${DTYPES:-int8 bf16 q4}
out=target/bench workload=target/bench/workload weft=${CARGO_TARGET_DIR:-target}/release/weft
check=()
if [ "${1:-}" = --check ]; then
    check=(--check)
    shift
fi
peers=("$@")
failed=0
[ ${#peers[@]} -gt 0 ] || peers=(llama-cpp openvino vllm)
model=$("$weft" model fetch demo)
mkdir -p "$workload"
rm -f "$out"/peer-*.json "$out"/weft-*.json
"$weft" bench --rounds "$rounds" --export "$workload"

for dtype in $dtypes; do
    echo "== weft, $dtype"
    "$weft" bench ${check[@]+"${check[@]}"} --rounds "$rounds" --prompts "$workload/prompts.json" --out "$out/weft-$dtype.json" \
        -- --dtype "$dtype" --worker-threads "$threads" || failed=1
done

script_of() {
    case $1 in
        llama-cpp) echo llama_cpp.py --weights "$weights" ;;
        openvino) echo openvino_peer.py ;;
        vllm) echo vllm_peer.py ;;
    esac
}

for peer in "${peers[@]}"; do
    if ! python=$(loadtests/peers/install.sh "$peer"); then
        echo "== $peer skipped: it could not be installed"
        continue
    fi
    echo "== $peer"
    read -r script options <<<"$(script_of "$peer")"
    # shellcheck disable=SC2086
    if ! "$python" "loadtests/peers/$script" "$model" "$workload" "$out/peer-$peer.json" \
        --rounds $((rounds + 1)) --threads "$threads" $options 2>"$workload/$peer.log"; then
        echo "== $peer skipped: it failed; the end of $workload/$peer.log:"
        tail -n 5 "$workload/$peer.log"
    fi
done
python3 loadtests/peers/table.py "$out" ${check[@]+"${check[@]}"} || failed=1
exit $failed
