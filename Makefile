# Needs make and Python 3.11 or newer; everything else is put into .venv.
PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PINS := pyproject.toml constraints.txt
HOOK := $(wildcard tests/env/softlabel_tests_*)
CHROMIUM ?= $(firstword $(foreach name,chromium chromium-browser google-chrome,$(shell command -v $(name) 2>/dev/null)))

.DELETE_ON_ERROR:
.PHONY: help demo test test-all lint check-wheel need-chromium

help:
	@echo "make demo      set up .venv, run the digits pipeline, say where the report is"
	@echo "make test      set up .venv, run the linters and the quick tests"
	@echo "make test-all  also the slow tests and the wheel check; wants the system package chromium"
	@echo "make lint      ruff, mypy and the import directions only"
	@echo "PYTHON=...     the Python (3.11 or newer) that makes .venv; now: $(PYTHON)"

demo: $(VENV)/.demo
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/settle_scm.sh
	PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro
	@echo
	@echo "The report: $(CURDIR)/reports/report.html"

test: lint
	$(BIN)/python -m pytest -m "not slow"

# The wheel check comes first, so that the log ends with what pytest has to say.
test-all: need-chromium lint check-wheel
	CHROMIUM="$(CHROMIUM)" $(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

check-wheel: $(VENV)/.dev
	scripts/check_wheel.sh $(BIN)/python

need-chromium:
	@echo "make test-all wants these system packages: chromium (for the report's page)"
	@test -n "$(CHROMIUM)" || { echo "error: no chromium on the PATH; on Debian: apt-get install chromium; or name one: make test-all CHROMIUM=/path/to/it" >&2; exit 1; }

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is missing or older than Python 3.11; choose another: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(PINS) | $(BIN)/python
	$(PIP) install --quiet -c constraints.txt -e '.[demo]'
	@touch $@

# The hook belongs to the test environment alone: see the module for why it exists.
$(VENV)/.dev: $(PINS) $(HOOK) | $(BIN)/python
	$(PIP) install --quiet -c constraints.txt -e '.[demo,vision,dev]'
	cp $(HOOK) "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	@touch $@ $(VENV)/.demo
