# Everything a person or CI runs. A line `target: ## text` is what `make help` prints.
#
# The tool that does the work is cargo; chores with logic in them live in xtask/, in Rust.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:

CARGO ?= cargo
# Built with the features of the whole workspace, as the tests are: nothing is compiled twice.
XTASK = $(CARGO) build --locked --quiet --workspace --bin xtask && $${CARGO_TARGET_DIR:-target}/debug/xtask
PROOF = $(CARGO) build --locked --release -p landfast -p landfast-judge -p landfast-bench && $(CARGO) xtask proof

.PHONY: help
help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  %-22s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

## -- build and test ---------------------------------------------------------------------------

.PHONY: setup
setup: ## install what the tests need and is missing (Debian packages), saying what
	@sh .ci/setup

.PHONY: build
build: ## the release binary: target/release/landfast
	$(CARGO) build --locked --release -p landfast

.PHONY: image
image: ## Landfast itself as an image, landfast:latest, for docker/compose.yaml (needs Docker and its registry)
	DOCKER_BUILDKIT=1 docker build --file docker/Dockerfile --tag landfast:latest .

.PHONY: test
test: setup check-format check-lints check-tests check-instructions check-documents ## everything that gates a change
	@echo "make test: passed"

.PHONY: check-format
check-format: ## stock rustfmt
	$(CARGO) fmt --all --check

.PHONY: check-lints
check-lints: ## clippy, every warning an error
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

.PHONY: check-tests
check-tests: ## all tests, several programs at a time
	$(XTASK) tests

.PHONY: check-documents
check-documents: ## generated documents are committed as the code makes them; rustdoc without a warning
	@sh .ci/check-requirements
	$(XTASK) docs --check
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --quiet

.PHONY: docs
docs: ## write the generated documents (reference page, schema, OpenAPI) anew
	$(CARGO) xtask docs

.PHONY: audit
audit: ## cargo-deny: bans, licences and sources of every dependency
	@command -v cargo-deny >/dev/null || { echo "installing cargo-deny"; $(CARGO) install --locked cargo-deny; }
	$(CARGO) deny --locked check bans licenses sources

.PHONY: clean-run
clean-run: ## what CI does: .ci/run in a fresh clone of the last commit, cold, timed
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && chmod 755 "$$folder" \
	&& git clone --quiet . "$$folder/landfast" && cd "$$folder/landfast" \
	&& begun=$$(date +%s) && ./.ci/run && echo "clean-run: passed in $$(( $$(date +%s) - begun )) s"

.PHONY: check-instructions
check-instructions: ## instructions of the core's hot paths under callgrind, against the committed baseline
	@if command -v valgrind >/dev/null; then $(XTASK) instructions; \
	else echo "check-instructions: skipped, valgrind is missing (make setup)"; fi

## -- measure ----------------------------------------------------------------------------------

.PHONY: setup-proof
setup-proof: ## install what only some proofs and fuzzing need (Debian packages)
	@sh .ci/setup proof

.PHONY: setup-bench
setup-bench: ## install the peers and load generators of `make bench` (Debian packages)
	@sh .ci/setup bench

.PHONY: bench
bench: setup-bench ## our proxy beside nginx, HAProxy and Caddy: processor time and memory (<= 20 min; SHORT=1: <= 4)
	$(CARGO) build --locked --profile dist -p landfast -p landfast-bench
	$(CARGO) xtask bench

.PHONY: bench-backup
bench-backup: setup-bench ## our backups beside pgBackRest and restic: time, bytes, restore, load on the app (<= 30 min; SHORT=1: <= 6)
	$(CARGO) build --locked --release -p landfast-backup-postgres --examples
	$(CARGO) xtask bench backup

.PHONY: bench-core
bench-core: ## Criterion over routing, manifest, journal and engine
	$(CARGO) bench --locked -p landfast-cases

## -- show it ----------------------------------------------------------------------------------

.PHONY: demo
demo: ## a real app, five releases, under load: nothing may be lost
	$(CARGO) build --locked --release -p landfast -p landfast-judge
	$(CARGO) xtask demo

# One target per figure of docs/proof.md. SHORT=1 takes the short form that fits into CI.

.PHONY: proof
proof: ## every figure of docs/proof.md, one after the other (hours)
	$(PROOF) all

.PHONY: proof-deploys
proof-deploys: ## 100 deploys, rollbacks and aborts at 1,000 requests/s: 0 lost, 0 streams cut
	$(PROOF) deploys

.PHONY: proof-docker-deploys
proof-docker-deploys: ## the same 100 on Docker, each release an image built at its deploy: 0 lost, 0 streams cut
	$(PROOF) docker-deploys

.PHONY: proof-podman
proof-podman: setup-proof ## what Landfast asks of Docker, asked of Podman's service instead
	LANDFAST_TEST_ENGINE=podman LANDFAST_TEST_DOCKER=1 $(CARGO) test --locked -p landfast-target-docker --test docker --test networks

.PHONY: proof-docker-overhead
proof-docker-overhead: setup ## 50 containers: the server grows by < 10 MB; 20 of them die: each answered within 1 s
	$(PROOF) docker-overhead

.PHONY: proof-docker-peers
proof-docker-peers: setup ## a rolling update by us, docker-compose behind nginx, and Swarm, under the same load: lost, cut, time
	$(PROOF) docker-peers

.PHONY: proof-controls
proof-controls: ## the same with drain confirmation off, then with the health gate off: the judge must see loss
	$(PROOF) controls

.PHONY: proof-source
proof-source: ## the source folder rebuilt differently between deploy and rollback: the old digest answers
	$(PROOF) source

.PHONY: proof-server-kill
proof-server-kill: ## kill -9 of the server at 50 random moments of rollouts: 0 lost, nothing stuck
	$(PROOF) server-kill

.PHONY: proof-crash
proof-crash: ## the server dies at every record of every strategy's scenario: the same ending each time
	$(PROOF) crash

.PHONY: proof-proxy-kill
proof-proxy-kill: ## kill -9 of the proxy, 20 times, server stopped: 0 refused, next answer < 1 s
	$(PROOF) proxy-kill

.PHONY: proof-handover
proof-handover: ## the proxy moves to a new binary 20 times at 2,500 requests/s: 0 lost, 0 reset, 0 streams cut
	$(PROOF) handover

.PHONY: proof-descriptors
proof-descriptors: ## 18,000 keep-alives on one proxy process while a rollout runs: memory, 0 lost, all usable after
	$(PROOF) descriptors

.PHONY: proof-slow
proof-slow: setup-proof ## slowhttptest's slow heads, bodies and readers on 4,000 connections: P99 of others <= 2 x quiet
	$(PROOF) slow

.PHONY: proof-instance-kill
proof-instance-kill: ## kill -9 of one instance of three, 20 times: 0 idempotent requests lost
	$(PROOF) instance-kill

.PHONY: proof-host-loss
proof-host-loss: ## every process killed, run folder emptied, the server started alone: all serve again
	$(PROOF) host-loss

.PHONY: proof-rollback
proof-rollback: ## blue-green standby: last request routed to the bad release <= 1 s after the command
	$(PROOF) rollback

.PHONY: proof-canary
proof-canary: ## a release that fails half is aborted <= 10 s into its 5 % step, in >= 98 of 100 seeds and once live
	$(PROOF) canary

.PHONY: proof-false-aborts
proof-false-aborts: ## equal releases aborted: <= 1 % of 1,000 in each setting
	$(PROOF) false-aborts

.PHONY: proof-power
proof-power: ## errors 0.5 -> 3 % or P99 doubled: caught within the hold in >= 90 % of 1,000
	$(PROOF) power

.PHONY: proof-exit
proof-exit: ## an instance that exits at start: its step fails < 2 s after the exit
	$(PROOF) exit

.PHONY: proof-rotation
proof-rotation: setup-proof ## a managed PostgreSQL's password changed 6 times under load: 0 lost, no old password opens anything
	$(PROOF) rotation

.PHONY: proof-secrets
proof-secrets: setup-proof ## values planted through every way in, searched in every log, event, answer, process and file
	cargo xtask proof secrets

.PHONY: proof-rename
proof-rename: setup ## a column renamed, deployed, rolled back and sealed under load, both releases writing: 0 lost, 0 mismatched, pause <= 100 ms
	$(PROOF) rename

.PHONY: proof-long-transaction
proof-long-transaction: setup ## a migration behind a long transaction: named, given up, others' P99 <= 2.5 s
	$(PROOF) long-transaction

.PHONY: proof-lint-truth
proof-lint-truth: setup ## each finding of the corpus on a real PostgreSQL with 100,000 rows: 0 false alarms
	$(CARGO) xtask proof lint-truth

.PHONY: proof-migrations
proof-migrations: setup ## runners of migrations killed at every kind of step (5 seeds), two at once (20 times), contracts beside older releases
	LANDFAST_LONG=1 $(CARGO) test --locked -p landfast-migrator --test kills -- --nocapture
	$(CARGO) test --locked -p landfast-rollout --test migrations
	$(CARGO) test --locked -p landfast-migrator --test postgres --test mariadb --test rename

.PHONY: proof-jail
proof-jail: setup-proof ## instances try to leave their jail, here and under Debian's kernel with cgroup v2 in a virtual machine
	$(CARGO) xtask proof jail

.PHONY: proof-planted
proof-planted: ## eight planted bugs, each found by the simulator within 500 seeds
	$(PROOF) planted

.PHONY: proof-deploy-latency
proof-deploy-latency: setup-bench ## P99 during a rolling deploy / steady, at half of saturation: <= 1.2
	$(PROOF) deploy-latency

.PHONY: proof-sim-long
proof-sim-long: ## the simulator over 10,000 seeds and at least 1,000,000 engine steps: no invariant broken
	$(PROOF) sim-long

.PHONY: proof-scopes
proof-scopes: ## two apps and two environments on one host; a second claim of a route is refused
	$(PROOF) scopes

.PHONY: proof-idle
proof-idle: ## memory and processor of server, proxy and three shims at rest
	$(PROOF) idle

.PHONY: proof-plan
proof-plan: ## plan for 200 services in < 200 ms
	$(PROOF) plan

.PHONY: proof-acme
proof-acme: ## pebble with bad nonces, slow orders, failing validations: obtained in all that can succeed, the old one serves in the rest
	$(CARGO) xtask proof acme

.PHONY: proof-tls
proof-tls: setup-proof ## testssl.sh and sslyze against the proxy: no finding of medium or worse
	$(CARGO) xtask proof tls

.PHONY: faults
faults: setup-proof ## backups under 13 faults, 5 seeds each, 20 of a lost host; goes on where it was (MINUTES=120 for a piece)
	$(CARGO) build --locked -p landfast-faults
	$(CARGO) xtask faults --minutes $(or $(MINUTES),120) $(ARGUMENTS)

.PHONY: proof-dockerfile
proof-dockerfile: setup ## an exported Dockerfile for Rust: docker build with this host's toolchain, run, stopped
	$(CARGO) test --locked --workspace --test compose -- --ignored --nocapture

.PHONY: proof-demo
proof-demo: ## make demo, after the build, in < 120 s
	$(PROOF) demo

.PHONY: proof-probes
proof-probes: setup-proof ## the same hostile bytes to us, nginx and HAProxy: nowhere laxer than the strictest
	$(CARGO) build --locked --release -p landfast && $(CARGO) xtask proof probes

## -- fuzz ------------------------------------------------------------------------------------------

.PHONY: fuzz
fuzz: setup-proof ## every fuzz target for MINUTES (10) each, on its committed corpus; needs a C++ compiler
	@sh fuzz/run $(or $(MINUTES),10)
