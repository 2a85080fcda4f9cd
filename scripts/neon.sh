#!/usr/bin/env bash
# The CPU kernels' tests for 64-bit Arm, without such a machine: cross-compiled, run by QEMU. Usage: scripts/neon.sh
# Needs root or sudo the first time: Debian's compiler (rustup's brings no library for another architecture where it cannot be
# reached), its libraries for arm64, and QEMU. Times mean nothing here.
set -euo pipefail
cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-gnu
if [ "$(uname -m)" = aarch64 ]; then
    exec cargo nextest run --release -p weft-kernels
fi
if ! [ -x /usr/bin/rustc ] || ! [ -d "/usr/lib/rustlib/$target" ] || ! command -v qemu-aarch64 >/dev/null || ! command -v aarch64-linux-gnu-gcc >/dev/null; then
    echo "neon: installing Debian's rustc, its library for arm64, a linker and QEMU" >&2
    sudo=()
    [ "$(id -u)" = 0 ] || sudo=(sudo)
    "${sudo[@]}" dpkg --add-architecture arm64
    "${sudo[@]}" apt-get update -qq
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends \
        rustc-web libstd-rust-web-dev:arm64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user >/dev/null
fi
# QEMU finds arm64's own C library where Debian puts it; the one for cross compilers may be of another build.
env -u RUSTUP_TOOLCHAIN RUSTC=/usr/bin/rustc CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/neon" \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu max" \
    cargo test --release -p weft-kernels --target "$target" --lib --tests
