#!/usr/bin/env bash
# Runs the real Python clients (tests/clients) against a real `weft up` with the demo model and the example adapters.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${PYTHON_VENV:-$PWD/.cache/venv}
weft=${CARGO_TARGET_DIR:-target}/release/weft
model=${WEFT_DEMO_MODEL:-$("$weft" model fetch demo --cache-dir .cache/models)}
unset WEFT_DEMO_MODEL
. scripts/weft-up.sh
for pair in harbour:pirate helpdesk:support-triage; do
    "$weft" tenant create "${pair%%:*}" >/dev/null
    "$weft" publish "examples/adapters/${pair##*:}" --tenant "${pair%%:*}" >/dev/null
done
key=$("$weft" key create --tenant harbour | "$venv/bin/python" -c 'import json, sys; print(json.load(sys.stdin)["secret"])')
unset WEFT_ADMIN_URL WEFT_ADMIN_KEY
WEFT_TEST_URL=$data WEFT_TEST_KEY=$key "$venv/bin/python" -m pytest -q -p no:cacheprovider tests/clients
