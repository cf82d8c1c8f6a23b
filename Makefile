# `make demo` and `make test` start from a fresh machine; everything lives in .venv and .cache.
PYTHON ?= python3
VENV   := .venv
SHELL  := bash
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
SUITES ?= tests
PROCESSES ?= 2

.PHONY: help setup demo serve check format tables test test-unit test-long test-comfyui postgresql proxies bench docs clean

help:           ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

setup: $(READY) ## make the environment

$(READY): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (PyTorch takes a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY)  ## start a server and generate two images through its HTTP API
	@BIN=$(BIN) bash examples/demo.sh

serve: $(READY) ## the HTTP API, until interrupted
	@$(BIN)/hidream serve

check: $(READY) ## linter, formatter, types, the import contract
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(READY) ## put the code into shape
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

tables: $(READY) ## write the computed parts of docs/API.md, MEMORY.md and COMMANDS.md
	$(BIN)/python tests/parameter_tables.py docs/API.md
	$(BIN)/python tests/model/memory_tables.py docs/MEMORY.md
	$(BIN)/python tests/commands/commands_page.py docs/COMMANDS.md

docs: $(READY)  ## build the documents as a site, which the server serves at /docs and the wheel contains
	$(BIN)/python docs/site/build.py

test: $(READY) postgresql proxies ## every suite in its short form
	$(BIN)/pytest -n $(PROCESSES) -m "not long"

test-unit: $(READY) ## what starts no process and opens no socket, for the daily loop
	$(BIN)/pytest -n $(PROCESSES) -m "not long and not integration"

test-long: $(READY) postgresql proxies ## every suite in its full form, or SUITES; a dated summary under tests/results
	@mkdir -p tests/results
	@set -o pipefail; commit=$$(git describe --always --dirty); { echo "$$commit: $(SUITES)"; \
		$(BIN)/pytest $(SUITES) --hypothesis-profile=long --durations=10; } 2>&1 \
		| tee -a /dev/stderr | sed -n '1p;/slowest/,$$p' >> tests/results/$$(date -u +%F).txt

test-comfyui: $(READY) ## the nodes in a real ComfyUI, whose checkout COMFYUI names; a dated summary under tests/results
	@test -f "$(COMFYUI)/main.py" || { echo "COMFYUI is '$(COMFYUI)'; accepted: a checkout of ComfyUI" >&2; exit 1; }
	@mkdir -p tests/results
	@set -o pipefail; python=$$($(BIN)/python tests/comfyui/comfyui_environment.py "$(COMFYUI)") || exit 1; \
		commit=$$(git describe --always --dirty); { echo "$$commit: tests/comfyui"; \
		COMFYUI="$(COMFYUI)" SERVER_PYTHON=$(BIN)/python $$python -m pytest tests/comfyui --durations=10; } 2>&1 \
		| tee -a /dev/stderr | sed -n '1p;/slowest/,$$p' >> tests/results/$$(date -u +%F).txt

postgresql:
	@command -v pg_ctl >/dev/null || ls /usr/lib/postgresql/*/bin/pg_ctl >/dev/null 2>&1 || { \
		test $$(id -u) = 0 || { echo "the tests start a PostgreSQL server; sudo apt-get install postgresql" >&2; exit 1; }; \
		echo "installing PostgreSQL, for the tests"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y postgresql >/dev/null; }

# Debian starts what it installs; a policy that is there for the moment only says no. An existing one is left alone.
proxies:
	@{ PATH=$$PATH:/usr/sbin; command -v nginx && command -v caddy && command -v sqlite3; } >/dev/null || { \
		test $$(id -u) = 0 || { echo "the tests start nginx and Caddy, and sqlite3; sudo apt-get install nginx-light caddy sqlite3" >&2; exit 1; }; \
		echo "installing nginx, Caddy and sqlite3, for the tests"; policy=/usr/sbin/policy-rc.d; \
		test -e $$policy || { printf '#!/bin/sh\nexit 101\n' > $$policy && chmod +x $$policy && made=$$policy; }; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y nginx-light caddy sqlite3 >/dev/null; \
		status=$$?; rm -f $$made; exit $$status; }

bench: $(READY) ## all benchmarks; dated results under benchmarks/results
	@BIN=$(BIN) bash benchmarks/run.sh

nano: $(READY)  ## make the embedded model again, from the images to the scores (hours; goes on where it was)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[training]'
	@BIN=$(BIN) bash training/run.sh

clean:          ## remove what the targets above made
	rm -rf $(VENV) src/hidream/server/site .cache .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
