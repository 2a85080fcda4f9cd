#!/usr/bin/env bash
# Installs what a fresh Debian 12 with Rust lacks, and says so. Usage: scripts/setup.sh PART...
#   build   what compiling needs: a C compiler
#   demo    what fetching the demo model needs: python3 with venv and pip
#   test    what the tests need: g++, protoc, nats-server, redis-server, faketime, openssl, cargo-nextest, the real clients from PyPI
#   api     what the tests of the HTTP API and of another S3 server need: schemathesis and moto from PyPI
#   deploy  what the tests of the chart, SkyPilot's files and the alerts need: Helm, Kubernetes' schemas and SkyPilot from PyPI, promtool
#   cuda    what compiling the CUDA kernels needs: g++, and nvcc from PyPI
#   compose what the test of compose.yaml needs beside that: Docker, docker-compose and debootstrap
#   bench   what building and running the other engines of the comparison needs; loadtests/peers/install.sh installs them
# Nothing that is present already is touched.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${PYTHON_VENV:-$PWD/.cache/venv}
# SkyPilot brings half of PyPI, and versions of its own.
deploy_venv=${PYTHON_DEPLOY_VENV:-$PWD/.cache/venv-deploy}
# The same goes for schemathesis and moto.
api_venv=${PYTHON_API_VENV:-$PWD/.cache/venv-api}
cuda_venv=${PYTHON_CUDA_VENV:-$PWD/.cache/venv-cuda}
nextest_version=0.9.143

say() { printf 'setup: %s\n' "$*" >&2; }

missing_packages=()
need_package() { # command package
    command -v "$1" >/dev/null 2>&1 || missing_packages+=("$2")
}

install_packages() {
    [ ${#missing_packages[@]} -gt 0 ] || return 0
    say "installing Debian packages: ${missing_packages[*]}"
    local sudo=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || { say "not root and no sudo: please install ${missing_packages[*]}"; exit 1; }
        sudo=(sudo)
    fi
    "${sudo[@]}" apt-get update -qq
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing_packages[@]}" >/dev/null
}

need_venv_module() {
    python3 -c 'import venv, ensurepip' >/dev/null 2>&1 || missing_packages+=(python3-venv)
}

python_packages() { # requirements file, environment
    local venv=${2:-$venv} stamp sum
    # One environment may be of several files of the same name.
    stamp="$venv/.${1//\//-}.sha256"
    sum=$(sha256sum "$1" | cut -d' ' -f1)
    [ "$(cat "$stamp" 2>/dev/null || true)" = "$sum" ] && return 0
    [ -x "$venv/bin/python" ] || { say "creating a private Python environment in $venv"; python3 -m venv "$venv"; }
    say "installing Python packages of $1 into $venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$1"
    echo "$sum" >"$stamp"
}

command -v cargo >/dev/null || { say "Rust is missing: install it with rustup (https://rustup.rs), version 1.95 or newer"; exit 1; }

for part in "$@"; do
    case $part in
        build) need_package cc gcc; need_package make make ;;
        demo | api) need_package python3 python3; need_venv_module ;;
        test)
            # It lies in /usr/sbin, which is not in everybody's PATH.
            PATH=$PATH:/usr/sbin need_package nats-server nats-server
            # The CUDA kernels' shim is C++.
            need_package g++ g++
            need_package protoc protobuf-compiler
            need_package redis-server redis-server
            need_package faketime faketime
            need_package openssl openssl
            need_package python3 python3
            need_venv_module
            ;;
        cuda) need_package g++ g++; need_package python3 python3; need_venv_module ;;
        deploy)
            need_package promtool prometheus
            need_package openssl openssl
            need_package python3 python3
            need_venv_module
            ;;
        compose)
            # Whoever has a Docker may have docker-compose alone to install.
            PATH=$PATH:/usr/sbin need_package dockerd docker.io
            PATH=$PATH:/usr/sbin need_package iptables iptables
            PATH=$PATH:/usr/sbin need_package debootstrap debootstrap
            need_package docker-compose docker-compose
            ;;
        # llama.cpp is built from source; its package brings its own cmake.
        bench) need_package g++ g++; need_package make make; need_package python3 python3; need_venv_module ;;
        *) say "unknown part $part"; exit 2 ;;
    esac
done
install_packages

for part in "$@"; do
    case $part in
        test)
            if ! cargo nextest --version >/dev/null 2>&1; then
                say "installing cargo-nextest $nextest_version with cargo (some minutes)"
                cargo install --quiet --locked --version "$nextest_version" cargo-nextest
            fi
            python_packages tests/clients/requirements.txt
            ;;
        api)
            for of in api object-stores; do
                python_packages "tests/$of/requirements.txt" "$api_venv"
            done
            ;;
        # Whoever has a toolkit may name it.
        cuda) [ -n "${CUDA_HOME:-}" ] || python_packages kernels/cuda/requirements.txt "$cuda_venv" ;;
        deploy) python_packages tests/deploy/requirements.txt "$deploy_venv" ;;
        *) ;;
    esac
done
