#!/usr/bin/env bash
# The whole path on the small real model: both services as two processes, an object store (a local folder), a compiled
# engine, a streamed answer; and an engine for GPUs, which needs none to be built.
#   scripts/demo.sh BINARY
set -euo pipefail

roundhouse=$1
model=.roundhouse/models/SmolLM2-135M-Instruct.Q4_1.gguf
state=.roundhouse/demo
prompt=${PROMPT:-"What is the capital of France, and what is it known for?"}
mkdir -p "$state"
rm -f "$state"/*.address

pids=()
stop() {
    if [ ${#pids[@]} -gt 0 ]; then
        kill "${pids[@]}" 2>/dev/null || true
        wait "${pids[@]}" 2>/dev/null || true
    fi
}
trap stop EXIT

start() { # NAME ARGUMENTS…
    local name=$1
    shift
    "$roundhouse" "$name" --address 127.0.0.1:0 --address-file "$state/$name.address" --store "$state/store" "$@" \
        2>"$state/$name.log" &
    pids+=($!)
    echo "started the $name service, process $!"
}

await_address() { # NAME
    until [ -s "$state/$1.address" ]; do
        kill -0 "${pids[@]}" 2>/dev/null || { cat "$state/$1.log" >&2; exit 1; }
        sleep 0.05
    done
}

start compiler --work-dir "$state/compiler"
start executor --cache-dir "$state/executor"
await_address compiler
await_address executor

compiler="http://$(cat "$state/compiler.address")"
executor="http://$(cat "$state/executor.address")"

"$roundhouse" run-llm --model "$model" --precision fp16 --cache in_place --num-tokens 96 --prompt "$prompt" \
    --backend cpu --compiler "$compiler" --executor "$executor"

if compgen -G '.roundhouse/tensorrt/*/libtensorrt_rtx.so.1' >/dev/null; then
    echo
    echo "the same model for NVIDIA GPUs of compute capability 8.9, by TensorRT"
    "$roundhouse" compile --model "$model" --precision fp16 --backend tensorrt --target sm_89 --compiler "$compiler"
fi
