VENV ?= .venv
PYTHON ?= python
BIN = $(VENV)/bin

.PHONY: install format lint type test test-slow clean

install:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install torch==2.13.0 -e ".[dev]"

format:
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type:
	$(BIN)/pyright --pythonpath $(BIN)/python

test:
	$(BIN)/pytest

test-slow:
	$(BIN)/pytest -m slow

clean:
	rm -rf .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
