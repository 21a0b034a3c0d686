#!/usr/bin/env bash
# The whole way of tokens through the CUDA backend on this machine's GPU: models of published shapes with random weights, by
# the compiler and an executor, over gRPC; then clients that all leave, and the GPU's memory before and after.
#
#   scripts/bench_cuda.sh ROUNDHOUSE BENCH FOLDER [MODEL…]
#
# ROUNDHOUSE is the program, BENCH the example `bench` of roundhouse-cuda-runtime, FOLDER a place for checkpoints and engines
# (/dev/shm: an 8B model takes 50 GB). BACKEND=cpu tries the script where there is no GPU.
set -euo pipefail

roundhouse=$1 bench=$2 folder=$3
shift 3
mkdir -p "$folder"
models=("$@")
[ ${#models[@]} -gt 0 ] || models=(gpt2 qwen2.5-0.5b gemma-3-1b llama-3.2-1b llama-3.1-8b)
backend=${BACKEND:-cuda}
services=(--home "$folder/home" --store "$folder/store")

used_mib() {
    nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits 2>/dev/null || echo 0
}

for model in "${models[@]}"; do
    "$bench" checkpoint "$folder" "$model" >/dev/null
    "$roundhouse" bench decode --model "$folder/$model" --backend "$backend" "${services[@]}" ${DECODE_FLAGS:-} 2>"$folder/log" ||
        { tail -n 20 "$folder/log"; exit 1; }
    [ "$model" = "${models[0]}" ] || rm -rf "${folder:?}/$model"
    rm -rf "$folder/store" "$folder/home"
done

# One process for the services, so that the memory is that of one executor before and after.
port=${PORT:-50151}
"$roundhouse" up --address "127.0.0.1:$port" --store "$folder/store" --work-dir "$folder/home/compiler" \
    --cache-dir "$folder/home/executor" --drain-seconds 0 2>"$folder/log" &
up=$!
trap 'kill "$up" 2>/dev/null || true' EXIT
url="http://127.0.0.1:$port"
leave() {
    "$roundhouse" bench serve --only-leaving --model "$folder/${models[0]}" --backend "$backend" --max-batch-size 64 \
        --compiler "$url" --executor "$url" --streams "$1" --seconds "$2" --seed "$3" --bound-seconds 30
}
until "$roundhouse" engines list --compiler "$url" >/dev/null 2>&1; do sleep 0.1; done
# The first streams make everything as large as it gets.
leave 256 5 1 >/dev/null 2>&1 || true
before=$(used_mib)
leave 256 "${LEAVE_SECONDS:-20}" 2 || true
echo "MiB of the GPU in use before and after: $before $(used_mib)"
