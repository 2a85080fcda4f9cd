#!/usr/bin/env bash
# Runs the real Python clients (tests/clients) against a real `weft up` with the demo model and the example adapters.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${PYTHON_VENV:-$PWD/.cache/venv}
weft=${CARGO_TARGET_DIR:-target}/release/weft
work=$(mktemp -d)
cleanup() {
    status=$?
    [ -z "${server:-}" ] || { kill "$server" 2>/dev/null && wait "$server" || true; }
    [ "$status" = 0 ] || { echo "--- log of weft up"; tail -40 "$work/log"; } >&2
    rm -rf "$work"
}
trap cleanup EXIT

model=${WEFT_DEMO_MODEL:-$("$weft" model fetch demo --cache-dir .cache/models)}
unset WEFT_DEMO_MODEL
"$weft" up --model "$model" --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 --data-dir "$work/data" \
    --admin-key test-admin-key >"$work/out" 2>"$work/log" &
server=$!
for _ in $(seq 300); do
    grep -q '^serving ' "$work/out" && break
    kill -0 "$server" 2>/dev/null || { echo "weft up ended early" >&2; exit 1; }
    sleep 0.2
done
data=$(sed -n 's/^data plane *//p' "$work/out")
export WEFT_ADMIN_URL WEFT_ADMIN_KEY=test-admin-key
WEFT_ADMIN_URL=$(sed -n 's/^admin plane *//p' "$work/out")
for pair in harbour:pirate helpdesk:support-triage; do
    "$weft" tenant create "${pair%%:*}" >/dev/null
    "$weft" publish "examples/adapters/${pair##*:}" --tenant "${pair%%:*}" >/dev/null
done
key=$("$weft" key create --tenant harbour | "$venv/bin/python" -c 'import json, sys; print(json.load(sys.stdin)["secret"])')
unset WEFT_ADMIN_URL WEFT_ADMIN_KEY
WEFT_TEST_URL=$data WEFT_TEST_KEY=$key "$venv/bin/python" -m pytest -q -p no:cacheprovider tests/clients
