# make demo: scenario A, end to end.   make test: every test.   make conformance: what the draft asks for, and its proof.
# make bench: how fast it is, beside others.
# All install what they need first.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
COMMANDS := iptables nft ip iperf3 tcpdump tshark conntrack ping ethtool setpriv
PACKAGES := iptables nftables iproute2 iperf3 tcpdump tshark conntrack iputils-ping ethtool util-linux python3-venv
PEERS := strongswan-charon strongswan-libcharon strongswan-swanctl libstrongswan libstrongswan-standard-plugins libcharon-extra-plugins
# Other people's programs that some tests need, COMMAND or COMMAND:PACKAGE; the tests are skipped where they are missing.
WITNESSES := ike-scan xl2tpd ssh:openssh-client sshd:openssh-server turnutils_natdiscovery:coturn

PIP := --quiet --disable-pip-version-check --no-compile -c harness/constraints.txt

.PHONY: help
help: ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

# More than processors, since many tests wait for a NAT to forget or a peer to be given up; cells of the matrix wait less.
WORKERS ?= $(shell echo $$(( $$(nproc) * 2 )))
CELLS ?= $(shell echo $$(( ($$(nproc) * 3 + 1) / 2 )))
# Some tests take half a minute, most a hundredth of a second: who has nothing left takes over what waits for others.
PARALLEL := -n $(WORKERS) --dist worksteal
# What the tests run of the matrix: every scenario in every mode, without figures, which tests beside them would spoil.
SMOKE := --natbed-matrix smoke --natbed-seconds 0 topologies impl/tests harness/tests

.PHONY: demo
demo: setup device ## scenario A end to end: verdict, figures, and where the evidence lies
	@$(BIN)/natbed run A

# Bytecode is made while mypy, which needs none, has the other processor.
.PHONY: test
test: system device witnesses .venv/.installed ## all checks and tests, and the smoke matrix
	@$(MAKE) --no-print-directory -j 2 setup lint
	@$(BIN)/pytest $(PARALLEL) $(SMOKE)

.PHONY: matrix
matrix: setup device ## scenarios in every pair of their variations; natbed matrix --help has more
	@$(BIN)/natbed matrix -n $(CELLS)

.PHONY: bench
bench: setup device ## throughput through a NAT beside the path without IPsec, and beside strongSwan after make peers
	@$(BIN)/natbed bench throughput

.PHONY: bench-integrity
bench-integrity: setup device ## a gigabyte each way over links that lose, reorder and damage packets
	@$(BIN)/natbed bench integrity

.PHONY: bench-timeouts
bench-timeouts: setup device ## how long NATs remember, what silence tunnels survive, and what keepalives cost
	@$(BIN)/natbed bench timeouts

.PHONY: peers
peers: setup .venv/peers ## strongSwan for natbed bench: unpacked, not installed, so that no service of it ever starts

.venv/peers:
	@for command in apt-get dpkg-deb; do command -v $$command >/dev/null || { \
	    echo "missing: $$command; natbed also takes strongSwan from where it is installed"; exit 1; }; done
	@[ "$$(id -u)" != 0 ] || apt-get update -qq
	@rm -rf $@.new; mkdir -p $@.new/packages
	@cd $@.new/packages; apt-get download -qq -o APT::Sandbox::User="$$(id -un)" $(PEERS)
	@for package in $@.new/packages/*.deb; do dpkg-deb -x $$package $@.new; done
	@rm -r $@.new/packages; mv $@.new $@

# The table is shown even where a test failed; a failure of either counts.
.PHONY: conformance
conformance: setup device witnesses ## every requirement of the draft with its tests and their results
	@code=0; $(BIN)/pytest -m draft $(PARALLEL) $(SMOKE) || code=$$?; \
	$(BIN)/natbed conformance --markdown results/conformance.md || { verdict=$$?; [ $$code != 0 ] || code=$$verdict; }; \
	exit $$code

.PHONY: lint
lint: system .venv/.installed
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary

.PHONY: setup
setup: system .venv/.compiled ## system packages and the virtual environment
	@$(BIN)/python -m compileall -q harness impl topologies

# Users other than root need the mode that most distributions give it; to open it grants nothing by itself.
.PHONY: device
device:
	@[ -r /dev/net/tun -a -w /dev/net/tun ] || { \
	    echo "$$(id -un 2>/dev/null || id -u) may not open /dev/net/tun: run as root, or once: sudo chmod 0666 /dev/net/tun"; exit 1; }

# Tried by name, so that a machine that has the programs from elsewhere needs no package manager.
.PHONY: system
system:
	@missing=; for command in $(COMMANDS); do \
	    PATH="$$PATH:/usr/sbin:/sbin" command -v $$command >/dev/null || missing="$$missing $$command"; done; \
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
	if [ -n "$$missing" ]; then \
	    echo "missing:$$missing"; \
	    command -v apt-get >/dev/null || { echo "install these programs, then run make again"; exit 1; }; \
	    [ "$$(id -u)" = 0 ] || { echo "run as root once, to install them: sudo make system"; exit 1; }; \
	    export DEBIAN_FRONTEND=noninteractive; \
	    apt-get update -qq; apt-get install -y -qq --no-install-recommends $(PACKAGES) >/dev/null; \
	fi

# Tests start these programs themselves: no service may come with a package, neither now (policy-rc.d) nor at the next boot.
.PHONY: witnesses
witnesses:
	@missing=; for program in $(WITNESSES); do \
	    PATH="$$PATH:/usr/sbin:/sbin" command -v $${program%:*} >/dev/null || missing="$$missing $${program#*:}"; done; \
	if [ -n "$$missing" ]; then \
	    export DEBIAN_FRONTEND=noninteractive; policy=/usr/sbin/policy-rc.d; \
	    { [ "$$(id -u)" = 0 ] && { [ -e $$policy ] || { trap "rm $$policy" EXIT; install -m 755 <(printf '#!/bin/sh\nexit 101\n') $$policy; }; } \
	    && apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing \
	    && { [[ ! -d /run/systemd/system || $$missing != *openssh-server* ]] || systemctl disable ssh ssh.socket || true; } \
	    && { [[ $$missing != *xl2tpd* ]] || update-rc.d xl2tpd disable || true; } \
	    && { [[ $$missing != *coturn* ]] || { update-rc.d coturn disable; deb-systemd-helper disable coturn.service; } || true; }; } >/dev/null 2>&1 \
	    || echo "missing:$$missing; the tests that need them are skipped"; \
	fi

.venv/.installed: pyproject.toml harness/constraints.txt
	@echo "making the virtual environment from pinned versions"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "natbed needs Python 3.11 or later: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install $(PIP) hatchling setuptools
	@$(BIN)/pip install $(PIP) --no-build-isolation -e '.[dev]'
	@touch $@

# On all processors, where pip takes one; what no Python can compile, some packages bring as data.
.venv/.compiled: .venv/.installed
	@$(BIN)/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || true
	@touch $@

.PHONY: clean
clean: ## remove the virtual environment, caches and the evidence of runs
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find harness impl topologies -name __pycache__ -prune -exec rm -rf {} +
	@find results -mindepth 1 -maxdepth 1 ! -name README.md ! -name baseline.json -exec rm -rf {} +
