# make demo   set up, run ten devices of which three are faulty, show and verify the result
# make test   set up, run every check and every test

PYTHON ?= python3
BIN := .venv/bin
RUN := runs/demo
# npm's wrapper of forge hides its exit status
FORGE = $$(ls node_modules/@foundry-rs/forge-*/bin/forge)

.PHONY: demo test check contracts test-contracts test-python clean
.DELETE_ON_ERROR:

demo: .venv/done
	rm -rf $(RUN)
	PATH="$(CURDIR)/$(BIN):$$PATH" apps/simulate apps/digits --run-config 'chain.run="$(CURDIR)/$(RUN)" \
	    chain.keys="$(CURDIR)/$(RUN)/keys" faults="7:random-labels 8:flipped-labels 9:noise-images"'
	$(BIN)/flower-chain show $(RUN)
	cd apps/digits && ../../$(BIN)/flower-chain verify ../../$(RUN) \
	    --owner-key ../../$(RUN)/owner.key --examiner digits.server_app:examiner

test: check test-contracts test-python

check: .venv/done contracts/node_modules/done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p flower_chain
	cd contracts && $(FORGE) fmt --check
	cd contracts && FOUNDRY_OUT=out/lint FOUNDRY_CACHE_PATH=cache/lint $(FORGE) lint
	$(MAKE) contracts
	git diff --exit-code -- flower_chain/ledger/contracts

contracts: contracts/node_modules/done
	cd contracts && $(FORGE) build src && node export.js

test-contracts: contracts/node_modules/done
	cd contracts && $(FORGE) test && $(FORGE) test --match-contract Gas -vv

test-python: .venv/done contracts/node_modules/done
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest -m "slow or not slow" --durations=10 \
	    --cov=flower_chain --cov-report=term

.venv/done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

# not `npm ci`: it wants every platform's build, which not every registry has
contracts/node_modules/done: contracts/package-lock.json
	cd contracts && npm install --no-save --ignore-scripts --no-audit --no-fund
	touch $@

clean:
	rm -rf .venv contracts/node_modules contracts/out contracts/cache runs dist
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
