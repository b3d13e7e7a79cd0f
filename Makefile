# `make` lists the targets. Each one installs what it needs first (tools/setup does nothing when all is there).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup build demo demo-page test lint rules bench bench-mirror bench-shadow drivers chaos shadow-soak fuzz

help:    ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:   ## install Postgres, libclang and the like where they are missing (root or sudo)
	tools/setup

build:   ## optimised binary: target/release/crossfade
	tools/setup
	cargo build --release --locked --bin crossfade

demo:    ## two databases, an application: reads shifted, writes mirrored, the target killed, then found wrong and slow (DEMO="--seconds 40")
	tools/setup
	tools/demo $(DEMO)

demo-page: ## the same, longer, with a new docs/page.png (for maintainers)
	tools/setup browser
	tools/demo --compare-seconds 30 --page docs/page.png

test:    ## unit and integration tests on real servers, then real drivers in short form
	tools/setup drivers browser rules
	cargo build --locked --bin crossfade
	cargo test --locked
	tests/drivers/run --seconds 2 --mode session
	tests/drivers/run --seconds 2 --mode transaction --mirror atomic
	cargo test --locked --features otlp --test it -- otlp

lint:    ## formatting and clippy; warnings are errors
	tools/setup
	cargo fmt --check
	cargo clippy --locked --all-targets --all-features -- -D warnings

rules:   ## alert rules, by promtool
	tools/setup rules
	export PATH="$$PATH:$${CROSSFADE_CACHE:-/var/tmp/crossfade-cache-$$(id -u)}"; \
	promtool check rules deploy/alerts.yml && promtool test rules deploy/alerts_test.yml

bench:   ## direct, pgbouncer and crossfade side by side (BENCH="--quick")
	tools/setup bench
	tools/bench $(BENCH)

bench-mirror: ## what dual writes cost, beside pgpool's native replication (BENCH="--rounds 1")
	tools/setup bench
	tools/bench_mirror $(BENCH)

bench-shadow: ## what shadow reads cost: latency and CPU at several shares (BENCH="--rounds 1")
	tools/setup bench
	tools/bench_shadow $(BENCH)

drivers: ## real client libraries through the proxy, the long form
	tools/setup drivers
	cargo build --locked --bin crossfade
	tests/drivers/run --seconds 20
	tests/drivers/run --seconds 10 --mirror journaled

chaos:   ## clients write while proxies, servers and connections die: CHAOS_SECONDS (120) a mode, CHAOS_MODE (all)
	tools/setup
	CHAOS_SECONDS=$${CHAOS_SECONDS:-120} cargo test --locked --test sim -- --nocapture --test-threads=1

shadow-soak: ## SHADOW_COMPARISONS (100000) beside hot writes, SHADOW_PLANTED (1000) differences, one result of SHADOW_ROWS (10000000)
	tools/setup
	cargo build --release --locked --bin crossfade
	SHADOW_COMPARISONS=$${SHADOW_COMPARISONS:-100000} SHADOW_PLANTED=$${SHADOW_PLANTED:-1000} SHADOW_ROWS=$${SHADOW_ROWS:-10000000} \
	CROSSFADE_BIN="$$PWD/target/release/crossfade" cargo test --locked --test it shadow_soak:: -- --nocapture --test-threads=1

fuzz:    ## every fuzz target for FUZZ_SECONDS (60) each; guided by coverage where cargo-fuzz and a nightly toolchain are
	tools/setup
	mkdir -p fuzz/artifacts; \
	limits="-artifact_prefix=fuzz/artifacts/ -max_total_time=$${FUZZ_SECONDS:-60} -timeout=10 -rss_limit_mb=2048"; \
	for target in $$(ls fuzz/corpus); do \
	  if cargo +nightly fuzz --version >/dev/null 2>&1; then \
	    cargo +nightly fuzz run "$$target" -- $$limits; \
	  else \
	    work=$$(mktemp -d) && cp fuzz/corpus/"$$target"/* "$$work"; \
	    cargo run --quiet --locked --manifest-path fuzz/Cargo.toml --bin "$$target" -- "$$work" $$limits; \
	    rm -rf "$$work"; \
	  fi; \
	done
