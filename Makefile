# Everything a newcomer needs. `make help` lists it.

VENV := .venv
PYTHON := $(VENV)/bin/python
DEMO := $(CURDIR)/demo
PYTEST := $(PYTHON) -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup setup-test run test lint unit soak bench lock clean

help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: $(VENV)/run.stamp ## Install what running needs, system packages included; leaves .venv/bin/vna

$(VENV)/run.stamp: requirements.lock pyproject.toml .ci/packages
	@bash .ci/packages run
	@test -x $(PYTHON) || python3 -m venv $(VENV)
	@$(VENV)/bin/uv --version >/dev/null 2>&1 || $(VENV)/bin/pip install --quiet uv
	@$(VENV)/bin/uv pip install --quiet --python $(PYTHON) --require-hashes -r requirements.lock
	@$(VENV)/bin/uv pip install --quiet --python $(PYTHON) --no-deps -e .
	@touch $@

setup-test: $(VENV)/test.stamp ## Install what the tests need: linters, real servers, real images

$(VENV)/test.stamp: $(VENV)/run.stamp requirements-dev.lock
	@bash .ci/packages test
	@$(VENV)/bin/uv pip install --quiet --python $(PYTHON) --require-hashes -r requirements-dev.lock
	@touch $@

run: setup ## Make a demo archive if there is none and serve it until Ctrl-C
	@test -e $(DEMO)/archive/vnafs.toml || $(VENV)/bin/vna init $(DEMO)/archive --mount $(DEMO)/share \
		--target local=file://$(DEMO)/target
	@echo
	@echo "  Write files to    $(DEMO)/share/archive"
	@echo "  Their copies go to $(DEMO)/target"
	@echo
	@echo "  Try in another terminal:"
	@echo "    export VNA_ARCHIVE=$(DEMO)/archive PATH=$(CURDIR)/$(VENV)/bin:\$$PATH"
	@echo "    cp -r /some/study $(DEMO)/share/archive/"
	@echo "    vna wait --copies 1 && vna status"
	@echo "    vna evict $(DEMO)/share/archive && cat $(DEMO)/share/archive/study/* | sha256sum"
	@echo
	@echo "  Stop with Ctrl-C. Start again with make run; nothing is lost."
	@echo
	@exec $(VENV)/bin/vna serve --archive $(DEMO)/archive

test: setup-test lint ## Lint, type check and run every test (the long suites as a seeded sample)
	@$(PYTEST) -n 4 --dist loadgroup --durations 40 -m "not soak"

lint: setup-test ## Lint, format check, strict types
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check --quiet .
	@$(VENV)/bin/mypy

unit: setup-test ## Only the tests that need no mount and no server
	@$(PYTEST) -n 2 -m "not soak" tests/unit tests/model

soak: setup-test ## The long suites in full; resumable, logs under build/soak
	@bash .ci/packages soak
	@mkdir -p build/soak
	@$(PYTHON) -m tests.soak

bench: setup-test ## Side by side with peers; JSON under build/bench
	@bash .ci/packages bench
	@mkdir -p build/bench
	@$(PYTHON) -m tests.bench

lock: ## Resolve dependencies anew
	@$(VENV)/bin/uv pip compile -q --universal --generate-hashes --group dev pyproject.toml -o requirements-dev.lock \
		--no-header --no-annotate --no-emit-index-url --upgrade
	@$(VENV)/bin/uv pip compile -q --universal --generate-hashes pyproject.toml -c requirements-dev.lock \
		-o requirements.lock --no-header --no-annotate --no-emit-index-url

clean: ## Remove what was built; never the demo archive
	@rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
