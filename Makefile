VENV ?= .venv
PYTHON ?= python
BIN = $(VENV)/bin

.PHONY: install format lint type docs test test-slow test-metaworld test-mazes clean

install:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -e ".[dev]"

format:
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type:
	$(BIN)/pyright --pythonpath $(BIN)/python

docs:
	$(BIN)/sphinx-build -W -b html docs docs/_build

test:
	$(BIN)/pytest -n 2

test-slow:
	$(BIN)/pytest -m slow

# Task suites, each in an environment of its own, because of their pins.
test-metaworld:
	$(PYTHON) -m venv .venv-metaworld
	.venv-metaworld/bin/pip install -e ".[metaworld]" pytest
	.venv-metaworld/bin/pytest tests/test_suites.py

test-mazes:
	$(PYTHON) -m venv .venv-mazes
	.venv-mazes/bin/pip install -e ".[robotics,ogbench]" pytest
	.venv-mazes/bin/pytest tests/test_suites.py

clean:
	rm -rf .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
