# `make demo` and `make test` work on a fresh machine with Rust, Python 3 with pip, gcc and g++; both do their own set-up.

SHELL = bash

.PHONY: setup build release demo test test-faults test-servers lint conformance bench clean

# What is set up beside libtorch: a Python with transformers, real servers.
SETUP =

setup:
	@python3 scripts/setup.py $(SETUP)

build: setup
	cargo build --workspace --bins

# What a host installs (docs/gpu-hosts.md): stripped, without the bucket server of demonstrations; ten minutes on two cores.
release: setup
	cargo build --release --no-default-features --package grail-supervisor --package grail-gen-launcher --package grail-proof-worker
	@ls -lh target/release/grail-supervisor target/release/grail-gen-launcher target/release/grail-proof-worker

# ENVIRONMENT=math mines the same problems in the form of MATH.
demo: build
	@ENVIRONMENT=$(ENVIRONMENT) demo/run.sh

# Seconds that the installation of SGLang may take here; without it the tests that need it are left out, and say so.
test: export GRAIL_SERVERS_LIMIT ?= 900
# libtorch first; then a Python with transformers and the real SGLang are made beside lint and build, which need neither.
# What failed, what took longest and what was skipped is printed again at the end, where it is looked for; CI fails on a skip that
# tests/expected-skips.txt does not have.
test:
	@python3 scripts/setup.py --reference --sglang --beside $(MAKE) --no-print-directory lint build
	@mkdir -p target
	@set -o pipefail; code=0; cargo test --workspace --no-fail-fast 2>&1 | tee target/test.log || \
		{ code=1; awk '/^---- /{on=1} /^(failures:|test result:|[0-9]+ of [0-9]+ )/{on=0} on' target/test.log; }; \
		python3 scripts/slowest.py target/test.log; python3 scripts/skips.py target/test.log && exit $$code

# The whole kill matrix (144 cells), the soak (24 windows) and fifty windows on a node: about half an hour. `make test` plays the
# short forms.
test-faults: build
	GRAIL_FAULTS=whole cargo test --workspace --test kill_matrix
	GRAIL_FAULTS=whole cargo test --workspace --test soak
	GRAIL_FAULTS=whole cargo test --workspace --test windows

# The real SGLang 0.5.23 and vLLM 0.23.0 on the CPU: windows, updates, refusals and deaths with each; about half an hour.
test-servers: SETUP = --sglang --vllm
test-servers: build
	GRAIL_SERVERS=whole cargo test --workspace --test servers

lint: setup
	cargo fmt --all --check
	python3 scripts/circles.py --circles 1 --lines 600
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --workspace --features grail-supervisor/failpoints -- -D warnings

conformance: setup
	cargo test --workspace --test conformance

# The arithmetic in the release profile; memory and idle CPU on the programs that `make demo` runs; the proof worker beside
# transformers.
bench: SETUP = --reference
bench: build
	cargo build --release --package grail-proof-worker
	target/release/grail-proof-worker bench
	cargo bench --package grail-mining --bench window
	cargo bench --package grail-workers --bench client
	cargo test --package grail-tests --bench footprint

clean:
	cargo clean
	rm -rf demo/.run state
