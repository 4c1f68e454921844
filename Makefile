# Everything is set up in .venv; only python3 (3.11 or newer, with venv) and make are needed.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help demo test torture test-floor check stubs contract bench clean

help:
	@echo "make demo    run the seed workload and a recorded Linux guest, and say what was found"
	@echo "make test    run the tests"
	@echo "make torture  cut and kill sessions everywhere; this takes long"
	@echo "make test-floor  run the contract's tests on the oldest libraries allowed"
	@echo "make check   lint, types, import contract, proto lint, what would break a peer of v1"
	@echo "make bench   measure; a table of ratios and build/bench.json"
	@echo "make stubs   make the committed gRPC stubs again"
	@echo "make contract  take additions to the contract into the frozen v1"

.venv/made: pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) install --upgrade 'pip>=25.1'
	$(PIP) install --editable '.[hypervisor]'
	$(BIN)/hypervisor-svc warm
	touch $@

.venv/made-test: .venv/made
	$(PIP) install --group test --group check --group clients
	touch $@

demo: .venv/made
	$(BIN)/guest-svc demo

# As many tests at a time as there are processors.
PYTEST := pytest --numprocesses auto --dist worksteal

test: .venv/made-test
	$(BIN)/$(PYTEST)

torture: .venv/made-test
	$(BIN)/python -m tests.torture

# The contract and both services on the oldest releases that pyproject.toml allows.
.venv-floor/made: pyproject.toml tests/floor.txt
	$(PYTHON) -m venv .venv-floor
	.venv-floor/bin/python -m pip --disable-pip-version-check --quiet install --upgrade 'pip>=25.1'
	.venv-floor/bin/python -m pip --disable-pip-version-check --quiet install --constraint tests/floor.txt \
		--editable '.[hypervisor]' --group test buf-bin
	touch $@

test-floor: .venv-floor/made
	.venv-floor/bin/$(PYTEST) tests/contract tests/hypervisor tests/durable tests/guest/test_stream.py tests/guest/test_cli.py \
		tests/guest/test_tls.py

check: .venv/made-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd protos && ../$(BIN)/buf lint
	cd protos && ../$(BIN)/buf breaking --against ../tests/contract/v1.binpb

bench: .venv/made-test
	$(BIN)/python -m tests.bench

stubs: .venv/made
	$(BIN)/python protos/generate.py

# What would break a deployed peer is named and not taken in.
contract: .venv/made-test
	$(BIN)/python -m tests.contract.renew

clean:
	rm -rf .venv .venv-floor build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
