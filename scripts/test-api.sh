#!/usr/bin/env bash
# The HTTP API of a real `weft up` with the demo model, held against its own OpenAPI document by schemathesis (tests/api), and a mesh over
# an S3 server that is not ours (tests/object-stores). WEFT_API_EXAMPLES: generated requests a route, of which there are few by default;
# WEFT_API_SEED: which ones.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${PYTHON_API_VENV:-$PWD/.cache/venv-api}
bins=$(realpath "${CARGO_TARGET_DIR:-target}/release")
examples=${WEFT_API_EXAMPLES:-5} seed=${WEFT_API_SEED:-1}
model=${WEFT_DEMO_MODEL:-$("$bins/weft" model fetch demo --cache-dir .cache/models)}
unset WEFT_DEMO_MODEL WEFT_API_EXAMPLES WEFT_API_SEED

WEFT_TEST_BINARIES=$bins "$venv/bin/python" -m pytest -q -p no:cacheprovider tests/object-stores

weft=$bins/weft
. scripts/weft-up.sh
# Of the tenant's own adapter there are two versions, each with an alias. What generated requests clean up is somebody else's.
for tenant in harbour attic; do
    "$weft" tenant create "$tenant" >/dev/null
    for package in pirate sql-writer; do
        "$weft" publish "examples/adapters/$package" --tenant "$tenant" --name pirate >/dev/null
    done
done
"$weft" alias pirate canary 1 --tenant harbour >/dev/null
key=$("$weft" key create --tenant harbour | "$venv/bin/python" -c 'import json, sys; print(json.load(sys.stdin)["secret"])')
unset WEFT_ADMIN_URL WEFT_ADMIN_KEY
"$venv/bin/python" -c 'import sys, urllib.request as web; print(web.urlopen(sys.argv[1]).read().decode())' "$data/openapi.json" >"$work/openapi.json"

WEFT_TEST_DATA=$data WEFT_TEST_ADMIN=$admin WEFT_TEST_KEY=$key WEFT_TEST_ADMIN_KEY=test-admin-key WEFT_TEST_DOCUMENT=$work/openapi.json \
    "$venv/bin/python" -m pytest -q -p no:cacheprovider tests/api

generated() { # url, key, which routes...
    local url=$1 key=$2
    shift 2
    PYTHONPATH=tests/api "$venv/bin/schemathesis" --config-file tests/api/schemathesis.toml run "$work/openapi.json" \
        --url "$url" --header "Authorization: Bearer $key" --max-examples "$examples" --seed "$seed" --request-timeout 60 \
        --continue-on-failure --warnings off "$@"
}
# First the tenant's listener: what operators' requests set may be limits that leave the tenant nothing.
generated "$data" "$key" --exclude-tag admin --exclude-path /metrics
generated "$admin" test-admin-key --include-tag admin --include-path /metrics
