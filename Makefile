# The verbs of this repository. Each installs what it needs first and says what it does.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
# Third-party Python (real clients, peers of the benchmarks) lives in a private venv.
export PYTHON_VENV ?= $(CURDIR)/.cache/venv
export CARGO_INCREMENTAL ?= 0
# Where cargo puts what it builds.
TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help
help: ## Lists the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

.PHONY: demo
demo: ## Three tenants, three adapters, one base model, then serves on 127.0.0.1:8080 until Ctrl-C (DEMO_ONCE=1: stops after the transcript)
	@scripts/setup.sh build demo
	$(CARGO) build --release --bin weft
	@exec $(TARGET)/release/weft demo $(if $(filter 1,$(DEMO_ONCE)),--once)

.PHONY: test
test: ## Every test there is on a machine without a GPU
	@scripts/setup.sh build test api deploy cuda
	$(CARGO) nextest run --release --workspace
	scripts/gpu-check.sh 80
	scripts/asan.sh cpu
	scripts/test-clients.sh
	scripts/test-api.sh
	scripts/test-chaos.sh
	scripts/lifecycle.sh short
	scripts/test-deploy.sh files

.PHONY: test-deploy
test-deploy: ## The chart, SkyPilot's files and the alerts (part of make test), and compose.yaml with real containers (needs root)
	@scripts/setup.sh build deploy compose
	$(CARGO) build --release --workspace --bins
	scripts/test-deploy.sh files compose

.PHONY: test-api
test-api: ## The HTTP API against its own description, and a mesh over another S3 server (part of make test; WEFT_API_EXAMPLES=N: longer)
	@scripts/setup.sh build demo api
	$(CARGO) build --release --workspace --bins
	scripts/test-api.sh

.PHONY: asan
asan: ## The kernels' tests under the address sanitizer: the CPU's (part of make test), and CUDA's on this processor (part of make gpu-check)
	@scripts/setup.sh build test
	scripts/asan.sh cpu cuda

.PHONY: neon-check
neon-check: ## The CPU kernels' tests for 64-bit Arm, cross-compiled and run by QEMU (installs Debian packages of arm64)
	@scripts/setup.sh build
	scripts/neon.sh

.PHONY: gpu-check
gpu-check: ## The CUDA kernels without a device: compiled for every architecture, run on this processor, their ceiling predicted (WEFT_GOLDEN=write: the table)
	@scripts/setup.sh build test cuda
	@scripts/gpu-check.sh

# CHECK=1: a figure that is not what it should be ends the run with status 1, after everything has been measured.
check_flag = $(if $(filter 1,$(CHECK)),--check)
loadtest = $(TARGET)/release/weft-loadtest

.PHONY: chaos
chaos: ## Real processes under kill -9 and rolling restarts for two minutes, with an independent client (CHAOS_FLAGS: see loadtests/chaos/chaos.py)
	@scripts/setup.sh build demo test
	$(CARGO) build --release --workspace --bins
	@$(PYTHON_VENV)/bin/python loadtests/chaos/chaos.py --model "$${WEFT_DEMO_MODEL:-$$($(TARGET)/release/weft model fetch demo)}" $(CHAOS_FLAGS)

.PHONY: lifecycle
lifecycle: ## The life of a release: a story with a client that asks all the while, racing registries under kills, false alarms of experiments
	@scripts/setup.sh build demo
	$(CARGO) build --release --workspace --bins
	@WEFT_DEMO_MODEL="$${WEFT_DEMO_MODEL:-$$($(TARGET)/release/weft model fetch demo)}" scripts/lifecycle.sh

.PHONY: simulate
simulate: ## The mesh in simulated time, under faults drawn from seeds: SEEDS=N of them (1000), or SEED=N alone with all that happens in it
	@scripts/setup.sh build
	$(CARGO) build --release --bin weft-simulation
	@$(TARGET)/release/weft-simulation $(if $(SEED),seed $(SEED),seeds --count $(or $(SEEDS),1000))

.PHONY: bench
bench: bench-build ## The benchmarks: tables with floors, and target/bench/*.{json,svg} (CHECK=1: status 1 if a figure falls short)
	@scripts/setup.sh bench
	@failed=0; run() { echo; echo "== $$*"; "$$@" || failed=1; }; \
	run $(CARGO) bench -q -p weft-kernels --bench kernels; \
	run $(CARGO) bench -q -p weft-engine --bench step; \
	run $(CARGO) bench -q -p weft-cache-daemon --bench cold; \
	run $(CARGO) run -q --release -p weft-placement-simulator -- --seeds 10; \
	run $(CARGO) run -q --release -p weft-placement-simulator -- --routing-cost; \
	run loadtests/peers/run.sh $(check_flag); \
	run $(loadtest) scenario start $(check_flag); \
	run $(loadtest) scenario many --seconds 20 --rounds 2 --prompt-tokens 8-128 --output-tokens 8-128 $(check_flag); \
	run $(loadtest) scenario cliff --seconds 12 --rate 5 $(check_flag); \
	run $(loadtest) scenario long-prompt --seconds 15 --every 5 $(check_flag); \
	run $(loadtest) scenario fairness --seconds 12 --rounds 2 $(check_flag); \
	run $(loadtest) scenario cold $(check_flag); \
	exit $$failed

.PHONY: bench-quick
bench-quick: bench-build ## The benchmarks without other engines, as short as they can be: shows that they run
	@mkdir -p target/bench
	$(TARGET)/release/weft bench --rounds 1 $(check_flag)
	$(loadtest) scenario start --rounds 2 $(check_flag)
	$(loadtest) scenario many --many 200 --seconds 5 --rounds 1 --prompt-tokens 8-64 --output-tokens 8-32 $(check_flag)
	$(loadtest) scenario cliff --slots 4 --seconds 5 --rate 5 $(check_flag)
	$(loadtest) scenario long-prompt --seconds 6 --every 3 --rounds 1 $(check_flag)
	$(loadtest) scenario fairness --seconds 5 --rounds 1 --cold-adapters 100 $(check_flag)
	$(loadtest) scenario cold --megabytes 1,10 --adapters 20,10 $(check_flag)

.PHONY: bench-build
bench-build:
	@scripts/setup.sh build demo
	$(CARGO) build --release --bin weft --bin weft-loadtest

.PHONY: check
check: ## Formatting and lints
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings
	$(CARGO) clippy --release -p weft-cuda-device --all-targets --features cuda -- -D warnings
	$(CARGO) clippy --release -p weft-worker -p weft --features weft-worker/cuda -- -D warnings

.PHONY: codegen
codegen: ## Rewrites the generated code in proto/src/generated
	@scripts/setup.sh test
	WEFT_CODEGEN=write $(CARGO) nextest run --release -p weft-proto
