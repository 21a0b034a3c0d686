# The one entry point, for people and CI. `make demo` and `make test` install what is missing.

CARGO ?= cargo
BINARY := $(or $(CARGO_TARGET_DIR),target)/release/roundhouse
MODELS := .roundhouse/models
SMOLLM2 := $(MODELS)/SmolLM2-135M-Instruct.Q4_1.gguf
GEMMA3 := $(MODELS)/gemma-3-270m-q4_k_m.gguf

.DEFAULT_GOAL := help
.PHONY: help setup models test-models tensorrt nvrtc build demo test test-cuda test-tensorrt check bench bench-cuda clean

help: ## What there is to make
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: ## Install the system packages that the build needs
	@scripts/setup.sh

models: $(SMOLLM2) ## Get the small real model (SmolLM2-135M-Instruct, 98 MB)

$(SMOLLM2): scripts/fetch_models.py | setup
	@python3 scripts/fetch_models.py

test-models: models $(GEMMA3)

$(GEMMA3): scripts/fetch_models.py | setup
	@python3 scripts/fetch_models.py gemma3

tensorrt: setup ## Get NVIDIA's TensorRT for RTX (95 MB, proprietary licence)
	@python3 scripts/fetch_tensorrt.py

nvrtc: setup ## Get NVIDIA's NVRTC, which compiles the CUDA backend's kernels (90 MB, proprietary licence)
	@python3 scripts/fetch_nvrtc.py

build: setup ## Build the release binary
	$(CARGO) build --release --locked --bin roundhouse

demo: build models tensorrt nvrtc ## Start both services, compile SmolLM2 and stream an answer
	@scripts/demo.sh $(BINARY)

test: setup test-models tensorrt nvrtc ## Every test but those of test-cuda and test-tensorrt
	$(CARGO) test --workspace --locked

test-cuda: setup nvrtc ## The long tests of the CUDA backend, its kernels emulated on the processor
	$(CARGO) test --locked -p roundhouse-cuda-runtime -- --include-ignored

test-tensorrt: setup tensorrt ## The long tests of TensorRT engines: every family in every precision and cache
	$(CARGO) test --locked -p roundhouse-tests -- --ignored tensorrt_engines

check: setup ## What CI checks beside the tests: format, lints, features, documentation, dependencies
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) check --workspace --no-default-features --locked
	$(CARGO) check -p roundhouse --features tensorrt-enterprise --locked
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked --quiet cargo-deny@0.20.2
	$(CARGO) deny --all-features check bans licenses sources

bench: build models ## Speed against llama.cpp, side by side (installs it by pip)
	@scripts/bench.sh $(BINARY)

bench-cuda: build nvrtc ## The CUDA backend's whole way on this machine's GPU: models of published shapes, random weights
	$(CARGO) build --release --locked -p roundhouse-cuda-runtime --example bench
	@scripts/bench_cuda.sh $(BINARY) $(dir $(BINARY))examples/bench /dev/shm/roundhouse-bench

clean: ## Remove what was built and fetched
	$(CARGO) clean
	rm -rf .roundhouse
