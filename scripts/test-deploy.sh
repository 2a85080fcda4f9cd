#!/usr/bin/env bash
# What Weft is deployed with, tested against the release binaries. Usage: scripts/test-deploy.sh PART...
#   files    the chart, SkyPilot's files, compose.yaml, the alerts: rendered, validated, their settings checked by the services
#   compose  compose.yaml with real containers; needs root, or a Docker daemon that answers
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${PYTHON_DEPLOY_VENV:-$PWD/.cache/venv-deploy}
files=(chart lorax_defects sky alerts compose_file)
tests=()
for part in "$@"; do
    case $part in
        files) tests+=("${files[@]/#/tests/deploy/test_}") ;;
        compose) tests+=(tests/deploy/test_compose) ;;
        *) echo "unknown part $part: files, compose" >&2; exit 2 ;;
    esac
done
[ ${#tests[@]} -gt 0 ] || { echo "which part? files, compose" >&2; exit 2; }
exec "$venv/bin/python" -m pytest -q -p no:cacheprovider --disable-warnings "${tests[@]/%/.py}"
