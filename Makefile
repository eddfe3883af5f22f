# Tidings: `make` by itself says what there is.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
# More for a target's command: make bench ARGS="append --rounds 1", make test ARGS="positions".
ARGS ?=

CONSOLE_SOURCES := $(shell find console -type f -not -path '*/node_modules/*' -not -path '*/dist/*' 2>/dev/null)

.PHONY: help run console setup test check schema bench soak

help: ## say what there is
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1|\2/' | column -t -s '|' 2>/dev/null \
		|| grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST)

run: ## build everything and start the server on tidings.db, at http://127.0.0.1:8080
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory console; \
		else echo "npm is not installed: the server runs without its playground"; fi
	$(CARGO) run --release -- serve $(ARGS)

console: console/dist/index.html.gz ## build the playground that the binary carries

console/dist/index.html.gz: $(CONSOLE_SOURCES)
	@scripts/setup console
	cd console && npm run build
	@touch $@

setup: ## install what is missing for tests
	@scripts/setup

test: setup console ## run every test (installs what is missing first)
	$(CARGO) test --workspace --doc --quiet
	$(CARGO) nextest run --workspace $(ARGS)

check: ## formatting, clippy, rustdoc, and schema.graphql
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --quiet
	@$(CARGO) run --quiet -- schema | diff -u schema.graphql - \
		|| { echo "schema.graphql is not what the server serves: run make schema, and look at the difference"; exit 1; }

schema: ## write schema.graphql from the code
	$(CARGO) run --quiet -- schema > schema.graphql.new
	mv schema.graphql.new schema.graphql

bench: ## the server beside pgbench on this machine, about ten minutes
	@scripts/setup postgres
	$(CARGO) bench --bench load -- $(ARGS)

soak: ## ten times the rounds of the fault tests, then the load of the benchmark for an hour: SECONDS_EACH=3600
	@scripts/setup postgres
	TIDINGS_LONG=1 $(CARGO) nextest run --test it faults::
	$(CARGO) bench --bench load -- soak --seconds $${SECONDS_EACH:-3600} --rounds 1 $(ARGS)
