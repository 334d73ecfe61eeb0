# Two commands for people: `make run` shows the product at work, `make test` checks everything. Both bring what they need.
SHELL := /bin/bash
CARGO ?= cargo

.PHONY: run build test lint readme unit seeds sim chaos figures fuzz bench-quick cluster clean help

run: build ## Build, start a node in a temporary directory, stream real data through it, kill it, prove nothing is lost
	target/release/corelog demo

build: ## Build the release binary target/release/corelog
	@scripts/setup.sh build
	$(CARGO) build --release --locked -p corelog-server

test: setup lint readme unit ## Everything: format, lints, the commands of README.md, all tests

.PHONY: setup
setup:
	@scripts/setup.sh

lint:
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

readme: ## Every command in README.md runs
	scripts/check-readme.sh

bench-quick: ## A small set of measurements against a node of its own; RUNS=5 for medians
	scripts/bench-quick.sh

seeds: ## Run the simulated tests of the log under many seeds: SEEDS=FROM..TO (default 1000..4000)
	CORELOG_SEEDS=$(or $(SEEDS),1000..4000) $(CARGO) test --locked -p corelog-engine --test random_ops_vs_model \
	  --test logs_together --test recycled_space --test epochs_and_cuts --test damage --test reads

cluster: build ## Three nodes, a ZooKeeper, a load and a live view: kill a node and watch it heal
	@scripts/setup.sh
	scripts/cluster.sh target/release/corelog

sim: ## Run the simulated cluster under many seeds: SEEDS=FROM..TO (default 0..2000)
	$(CARGO) run --release --locked -p corelog-sim -- --seeds $(or $(SEEDS),0..2000)

chaos: setup ## Three real nodes and a ZooKeeper under faults, as root: SECONDS=1800 SEED=(fresh)
	CHAOS_SECONDS=$(SECONDS) CHAOS_SEED=$(SEED) $(CARGO) test --release --locked -p corelog-server --test cluster -- \
	  --ignored --exact chaos --nocapture

figures: setup ## How long producers wait when leaders die, stop, or fall silent, as root: ROUNDS=10, JSON=1
	FIGURES_ROUNDS=$(ROUNDS) FIGURES_JSON=$(JSON) $(CARGO) test --release --locked -p corelog-server --test cluster -- \
	  --ignored --exact figures --nocapture

fuzz: ## Look for bytes that break a decoder, for SECONDS (default 60)
	$(CARGO) run --locked -p corelog-net --example fuzz -- --seconds $(or $(SECONDS),60)

unit:
	$(CARGO) test --workspace --locked

clean:
	$(CARGO) clean

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16
