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
	@scripts/setup.sh build test
	$(CARGO) nextest run --release --workspace
	$(CARGO) test --release --workspace --doc
	scripts/asan.sh
	scripts/test-clients.sh

.PHONY: asan
asan: ## The kernels' tests under the address sanitizer (part of make test)
	@scripts/setup.sh build test
	scripts/asan.sh

.PHONY: bench
bench: ## The benchmarks: a table, and target/bench/*.json
	@scripts/setup.sh build demo bench
	$(CARGO) build --release --bin weft
	loadtests/peers/run.sh

.PHONY: check
check: ## Formatting and lints
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings

.PHONY: codegen
codegen: ## Rewrites the generated code in proto/src/generated
	@scripts/setup.sh test
	WEFT_CODEGEN=write $(CARGO) nextest run --release -p weft-proto
