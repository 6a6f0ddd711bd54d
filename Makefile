# make demo   try everything on a laptop: environment, built-in sample, nine steps, figure
# make test   the test suite in the same environment
# make lint   ruff check and format
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint

demo: $(STAMP)
	$(BIN)/python run_sample.py --preset demo

test: $(STAMP)
	$(BIN)/python -m pytest -q tests

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The stamp is written last, so that an interrupted installation is repeated.
$(STAMP): requirements.txt
	@echo "installing requirements.txt into $(VENV) (once, a few GB)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $(STAMP)

