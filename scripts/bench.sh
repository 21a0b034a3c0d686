#!/usr/bin/env bash
# Speed of one session on the CPU against llama.cpp's F16, built for this machine, in turns in one run.
#   scripts/bench.sh BINARY
set -euo pipefail

roundhouse=$1
model=.roundhouse/models/SmolLM2-135M-Instruct.Q4_1.gguf
peers=.roundhouse/peers
f16=$peers/SmolLM2-135M-Instruct.F16.gguf

if [ ! -x "$peers/venv/bin/python" ]; then
    mkdir -p "$peers"
    python3 -m venv "$peers/venv" || { echo "install python3-venv first" >&2; exit 1; }
    # About five minutes on two cores: it is compiled for this machine's processor.
    CMAKE_ARGS="-DGGML_NATIVE=ON" "$peers/venv/bin/pip" install -q llama-cpp-python==0.3.36 gguf==0.19.0
fi
[ -s "$f16" ] || "$peers/venv/bin/python" scripts/gguf_to_f16.py "$model" "$f16"

"$roundhouse" bench cpu --model "$model" --precision fp16 --home .roundhouse/bench "${@:2}" \
    --peer "$peers/venv/bin/python scripts/peers/llama_cpp_peer.py --model $f16 --threads $(nproc)"
