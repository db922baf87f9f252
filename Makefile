# make round   one round of self-learning with its report (installs what it needs first)
# make test    lint, types, import contract, tests
# make compare SELU beside other methods, over several seeds (twenty hours; goes on where it was stopped)
# make ui      Prefect's UI on the same runs
# make serve   server, UI and scheduled runs on this machine, without containers
#
# SETTINGS="seed=7 data_dir=/big/disk"   settings for round, compare, ui and serve
# PYTHON=python3.12                      another interpreter
# TORCH_INDEX=...                        a package index to take torch from; on Linux the default index carries builds
#                                        for CUDA of several gigabytes, an index of CPU builds makes that 200 MB

PYTHON ?= python3
SETTINGS ?=
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH := $(shell grep '^torch==' requirements.lock)

.PHONY: round compare test check ui serve clean install
.DEFAULT_GOAL := round

round: $(READY)
	@$(BIN)/selu round $(SETTINGS)

test: check
	@$(BIN)/python -m pytest

check: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

compare: $(READY)
	@$(BIN)/selu compare $(SETTINGS)

ui: $(READY)
	@$(BIN)/selu ui $(SETTINGS)

serve: $(READY)
	@$(BIN)/selu serve $(SETTINGS)

install: $(READY)

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "Python's venv is missing; on Debian and Ubuntu: apt install python3-venv"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev]'
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps virtualhome==2.3.0
	@touch $@

# Artifacts (.selu) are yours and stay; delete that folder yourself to start anew.
clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
