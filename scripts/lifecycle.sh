#!/usr/bin/env bash
# The life of a release: the story, the racing registries, and the false alarms of experiments under continuous peeking. What is built is in
# $CARGO_TARGET_DIR/release; `make lifecycle` builds it. `short` uses a tiny model and does less of each: the part of make test.
set -euo pipefail
cd "$(dirname "$0")/.."
bins=${CARGO_TARGET_DIR:-target}/release
golden=crates/engine/tests/golden
operations=100000 kill_every=15 runs=(--false-alarms) model=${WEFT_DEMO_MODEL:-demo}
packages=(examples/adapters/pirate examples/adapters/sql-writer examples/adapters/support-triage)
if [ "${1:-}" = short ]; then
    operations=6000 kill_every=2 runs=(--false-alarms --runs 1000) model=$golden/tiny
    packages=("$golden/adapters/rank8" "$golden/adapters/rank16" "$golden/adapters/rank4")
fi
failed=0
log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT

echo "== the story"
python3 examples/lifecycle/lifecycle.py --weft "$bins/weft" --model "$model" "${packages[@]}" | tee "$log/story" || failed=1
echo "== racing registries"
"$bins/weft-racing" run --operations "$operations" --kill-every-s "$kill_every" | tee "$log/racing" || failed=1
echo "== false alarms under continuous peeking"
"$bins/weft-experiments-simulator" "${runs[@]}" | tee "$log/alarms" || failed=1

stages=$(sed -n 's/^story: stages \([0-9/]*\),.*/\1/p' "$log/story")
failures=$(sed -n 's/^story: .*client_failures \([0-9]*\)$/\1/p' "$log/story")
lost=$(sed -n 's/^racing: .* wrong \([0-9]*\)$/\1/p' "$log/racing")
# The largest of the table's column "false alarms".
rate=$(awk -F'|' '/exact|asymptotic/ { gsub(/[ %]/, "", $6); if ($6 + 0 > most) most = $6 + 0 } END { printf "%.4f", most / 100 }' "$log/alarms")
[ -n "$stages" ] && [ "${stages%/*}" = "${stages#*/}" ] && [ "$failures" = 0 ] && [ "$lost" = 0 ] || failed=1
echo "lifecycle: stages ${stages:-0/0}, client_failures ${failures:-unknown}, lost ${lost:-unknown}, false_alarm_rate $rate"
exit "$failed"
