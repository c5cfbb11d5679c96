# The front door. Everything a developer or CI does is a target here.
#
#   make demo        three clusters serve one global service over encrypted tunnels (KEEP=1 leaves it up, ETCD=1 on real etcd)
#   make test        everything that must hold: format, lints, docs, tests, lab scenarios, an older kernel in QEMU
#
# Both set up what is missing first, as root, on Debian 12 with rustup.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export PATH := $(HOME)/.cargo/bin:$(PATH)

# bpf-linker must read the bitcode of exactly the compiler in rust-toolchain.toml (LLVM 22): move both together.
BPF_LINKER_VERSION := 0.10.4

APT_PACKAGES := bpftool build-essential busybox-static ca-certificates conntrack curl etcd-client etcd-server ethtool frr iproute2 iptables \
	iperf3 iputils-ping jq nftables openssl procps qemu-system-x86 socat tcpdump wireguard-go wireguard-tools

.PHONY: help setup build release demo bench-lb bench-failover bench-tunnel bench-store soak test test-vm in-vm vm-kernel check fmt lint doc unit layers clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

setup: ## install what is missing: Debian packages, rust-src, bpf-linker
	@installed=$$(dpkg-query -W -f='$${Package} $${Status}\n' $(APT_PACKAGES) 2>/dev/null | awk '/ok installed/ {print $$1}' || true); \
	missing=$$(comm -13 <(sort <<<"$$installed") <(printf '%s\n' $(APT_PACKAGES) | sort)); \
	command -v kubectl >/dev/null || missing="$$missing kubernetes-client"; \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" != 0 ]; then echo "setup: missing packages:" $$missing; echo "fix: run 'make setup' as root"; exit 1; fi; \
		echo "setup: apt-get install" $$missing; \
		apt-get update -qq; \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi
	@command -v rustup >/dev/null || { echo "setup: rustup is missing"; echo "fix: install it from https://rustup.rs"; exit 1; }
	@rustup component list --installed | grep -qx rust-src || rustup component add rust-src rustfmt clippy
	@bpf-linker --version 2>/dev/null | grep -qF ' $(BPF_LINKER_VERSION)' || { \
		echo "setup: building bpf-linker $(BPF_LINKER_VERSION) (about a minute)"; \
		CARGO_PROFILE_RELEASE_DEBUG=0 cargo install --quiet --locked --force bpf-linker --version $(BPF_LINKER_VERSION); }

build: setup ## the binaries, with the kernel programs in them
	cargo build --locked --workspace --bins

demo: build ## the main job, in a lab of namespaces on this machine
	@target/debug/hawser-lab demo $(if $(KEEP),--keep) $(if $(ETCD),--etcd)

bench-lb: release ## connections by the number of services: no service, Hawser, kube-proxy as iptables and as nftables (QUICK=1: only that it runs)
	@QUICK=$(QUICK) target/release/hawser-lab bench lb

bench-failover: release ## a cluster, then a node, cut off under load, 20 times each (QUICK=1: only that it runs)
	@QUICK=$(QUICK) target/release/hawser-lab bench failover
	@QUICK=$(QUICK) target/release/hawser-lab bench probes

bench-tunnel: release ## TCP, UDP, round trips: our engine, wireguard-go, boringtun-cli if it is on the PATH, no tunnel (QUICK=1)
	@QUICK=$(QUICK) target/release/hawser-lab bench tunnel

bench-store: release ## the mesh store beside a real etcd: first sync, propagation, fan-out, durable writes (QUICK=1: only that it runs)
	@QUICK=$(QUICK) target/release/hawser-lab bench store $(if $(ONLY),--only $(ONLY))

release: setup ## the binaries that are measured, optimised
	cargo build --locked --release -p hawser-e2e -p clustermesh-apiserver -p hawser-node-agent -p hawser-cli --bins

soak: build ## faults against the real processes: every acknowledged write seen once and in order? (SEED=, MINUTES=10, STORE=embedded|etcd)
	@target/debug/hawser-lab soak --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED)) $(if $(STORE),--store $(STORE))

vm-kernel: setup ## Debian's own kernel, unpacked for `hawser-lab vm`
	@[ -d target/vm/kernel/boot ] || { \
		mkdir -p target/vm; cd target/vm; rm -rf kernel *.deb; \
		apt-get update -qq; \
		image=$$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ {print $$2}'); \
		echo "vm-kernel: downloading $$image"; \
		apt-get -qq -o APT::Sandbox::User=root download "$$image"; \
		dpkg-deb -x "$$image"_*.deb unpacked; mv unpacked kernel; }

test-vm: build in-vm ## WireGuard and IPsec in the kernel, and acts 1 to 3, on Debian 12's own kernel (6.1: clsact), in QEMU

in-vm: vm-kernel # the same, with the binaries that are there: `unit` has just built them
	@tests=$$(cargo test --locked --workspace --test vm --no-run --message-format=json | jq -r 'select(.executable and .target.name == "vm") | .executable'); \
	target/debug/hawser-lab vm --minutes 6 --with "$$tests" -- "$$tests" --test-threads=2
	@target/debug/hawser-lab vm --minutes 7 -- hawser-lab demo --acts 3 --fast --lose-agents

test: setup ## everything that must hold
	@for part in fmt lint layers doc unit in-vm; do \
		$(MAKE) --no-print-directory $$part; \
		echo "test: $$part is done after $$SECONDS s"; \
	done

check: fmt lint layers ## the quick half of test

fmt: ## formatting
	cargo fmt --all --check

lint: ## clippy, warnings are errors
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked -p hawser-tunnels-linux --test vm -- -D warnings

doc: ## rustdoc of everything, private items too, warnings are errors; the book's links
	RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' cargo doc --locked --workspace --no-deps --document-private-items
	cargo xtask book

layers: ## the crate graph, the shape of files
	cargo xtask layers
	cargo xtask tidy

unit: setup ## every test, the lab's scenarios with the real binaries among them
	cargo test --locked --workspace --no-fail-fast

clean: ## what was built here
	cargo clean
