#!/usr/bin/env bash
# Installs the system packages that the build needs, where they are missing: a C and C++ compiler (for the tokenizer's
# regular expressions, TLS and TensorRT's bindings), libclang (for TensorRT's bindings; a build without the cargo feature
# `tensorrt` does without) and Python 3 with pip (to get the small model and TensorRT).
set -euo pipefail

if ! command -v cargo >/dev/null; then
    echo "cargo is missing: install Rust 1.92 or newer from https://rustup.rs" >&2
    exit 1
fi

missing=()
command -v cc >/dev/null || missing+=(gcc libc6-dev)
command -v c++ >/dev/null || missing+=(g++)
[ -n "${LIBCLANG_PATH:-}" ] || compgen -G '/usr/lib/llvm-*/lib/libclang.so' >/dev/null || missing+=(libclang-dev)
command -v python3 >/dev/null || missing+=(python3)
python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)

if [ ${#missing[@]} -gt 0 ]; then
    echo "installing ${missing[*]}"
    sudo=()
    [ "$(id -u)" -eq 0 ] || sudo=(sudo)
    "${sudo[@]}" apt-get update -qq
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >/dev/null
fi
