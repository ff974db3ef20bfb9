# make demo   set up, run ten devices of which three are faulty, show and verify the result
#             SCHEME=blockflow, SCHEME=data-trust: the same devices judge each other
# make test   set up, run every check and every test
# make exhaustive   attacks by every minority of up to eleven agents, of which `make test` has the largest

PYTHON ?= python3
BIN := .venv/bin
RUN := runs/demo
SCHEME ?= record-and-reward
# what opens what is sealed: the owner judges, or any of those who audit each other
ifeq ($(SCHEME),record-and-reward)
    OPENED := --owner-key ../../$(RUN)/owner.key --examiner digits.server_app:examiner
else
    OPENED := --owner-key ../../$(RUN)/keys/device-0.key
endif
# npm's wrapper of forge hides its exit status
FORGE = $$(ls node_modules/@foundry-rs/forge-*/bin/forge)
SLITHER := 0.11.6
PYTEST := -m pytest -n auto --durations=10
ENV := PATH="$(CURDIR)/$(BIN):$$PATH"
# costs no time; tracing takes more than twice as much as the tests themselves
MEASURED := -m slipcover --source flower_chain --branch --lcov --out .coverage.lcov
# tests of real Flower processes, which run file by file
REAL := tests/apps tests/benchmarks tests/deployment
# of the lines and of the branches, in percent
COVERED := 95

.PHONY: demo test check slither contracts test-contracts test-python exhaustive clean
.DELETE_ON_ERROR:

demo: .venv/done
	rm -rf $(RUN)
	PATH="$(CURDIR)/$(BIN):$$PATH" apps/simulate apps/digits --run-config 'chain.scheme="$(SCHEME)" \
	    chain.run="$(CURDIR)/$(RUN)" chain.keys="$(CURDIR)/$(RUN)/keys" faults="7:random-labels 8:flipped-labels 9:noise-images"'
	$(BIN)/flower-chain show $(RUN)
	cd apps/digits && ../../$(BIN)/flower-chain verify ../../$(RUN) $(OPENED)

# both at once: the Solidity compiler keeps one core busy for longer than anything else
test: check
	$(MAKE) --jobs=2 test-python test-contracts

check: .venv/done contracts/node_modules/done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p flower_chain
	cd contracts && $(FORGE) fmt --check
	cd contracts && FOUNDRY_OUT=out/lint FOUNDRY_CACHE_PATH=cache/lint $(FORGE) lint
	$(MAKE) contracts
	git diff --exit-code -- flower_chain/ledger/contracts

# fails on any finding but the pragmas of libraries; looks for forge on the path; its errors about EIP712.sol are its own
slither: .venv-slither/$(SLITHER) contracts/node_modules/done
	cd contracts && PATH="$$PWD/$$(dirname $(FORGE)):$$PATH" \
	    FOUNDRY_OUT=out/slither FOUNDRY_CACHE_PATH=cache/slither ../.venv-slither/bin/slither .

contracts: contracts/node_modules/done
	cd contracts && $(FORGE) build src && node export.js

test-contracts: slither
	cd contracts && $(FORGE) test && $(FORGE) test --match-contract Gas -vv
	cd contracts && FOUNDRY_OUT=out/coverage FOUNDRY_CACHE_PATH=cache/coverage $(FORGE) coverage \
	    --ir-minimum --exclude-tests --no-match-contract 'Gas|Invariants' \
	    --report lcov --report-file out/coverage.lcov >/dev/null
	$(PYTHON) .ci/coverage.py $(COVERED) contracts/out/coverage.lcov

test-python: .venv/done contracts/node_modules/done tests/ipfs/node_modules/done
	$(ENV) $(BIN)/python $(MEASURED) $(PYTEST) -m "not matrix and not exhaustive" $(addprefix --ignore=,$(REAL))
	$(PYTHON) .ci/coverage.py $(COVERED) .coverage.lcov
	$(ENV) $(BIN)/python $(PYTEST) -m matrix
	$(ENV) $(BIN)/python $(PYTEST) -m "not matrix and not exhaustive" --dist loadfile $(REAL)

exhaustive: .venv/done
	$(ENV) $(BIN)/python $(PYTEST) -m "matrix or exhaustive"

.venv/done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

# on its own: it wants an older web3
.venv-slither/$(SLITHER):
	$(PYTHON) -m venv .venv-slither
	.venv-slither/bin/pip install --quiet slither-analyzer==$(SLITHER)
	touch $@

# not `npm ci`: it wants every platform's build, which not every registry has
contracts/node_modules/done: contracts/package-lock.json
	cd contracts && npm install --no-save --ignore-scripts --no-audit --no-fund
	touch $@

# its native parts come ready-made, or it does without them
tests/ipfs/node_modules/done: tests/ipfs/package-lock.json
	cd tests/ipfs && npm install --no-save --ignore-scripts --no-audit --no-fund
	touch $@

clean:
	rm -rf .venv .venv-slither contracts/node_modules tests/ipfs/node_modules contracts/out contracts/cache runs dist
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage.lcov
