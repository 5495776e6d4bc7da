VENV ?= .venv
PYTHON ?= python
BIN = $(VENV)/bin

.PHONY: install format lint type docs test test-processes test-slow test-metaworld test-mazes clean
.PHONY: results-search results-depth results-ant results-beliefs results-default

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

test-processes: # what starts whole programs, workers and benchmarks; minutes
	$(BIN)/pytest -n 2 -m "processes and not slow"

test-slow:
	$(BIN)/pytest -m slow

# Task suites, each in an environment of its own, because of their pins.
test-metaworld:
	$(PYTHON) -m venv .venv-metaworld
	.venv-metaworld/bin/pip install -e ".[metaworld]" pytest
	.venv-metaworld/bin/pytest -m "" tests/test_suites.py

test-mazes:
	$(PYTHON) -m venv .venv-mazes
	.venv-mazes/bin/pip install -e ".[robotics,ogbench]" pytest
	.venv-mazes/bin/pytest -m "" tests/test_suites.py

# The runs behind docs/results.md, into runs/. Each takes hours on one core; called again, it goes on where it stopped.
SEARCH = point FullCircle HalfCircleV SquareArena HalfCircleB SparsePointRobot Wind TreasureHunt
PLACES = point FullCircle HalfCircleV SquareArena HalfCircleB SparsePointRobot
FRESH = seeds=10 env.task_seed=1 resume=auto
PEACH = $(BIN)/python recipes/peach.py
ANT = $(PEACH) seeds=5 env.task_seed=1 resume=auto env=AntHalfCircle

results-search:
	for env in $(SEARCH); do $(PEACH) $(FRESH) env=$$env hydra.run.dir=runs/search/$$env || exit 1; done
	$(BIN)/python benchmarks/search.py $(foreach env,$(SEARCH),'$(env)=runs/search/$(env)/seed_*') --csv runs/search/table.csv

results-depth: # beside depth 2, of results-search
	$(PEACH) --config-name flat $(FRESH) env=HalfCircleV hierarchy.top_random_hold=5 hydra.run.dir=runs/depth/1
	$(PEACH) $(FRESH) env=HalfCircleV hierarchy.depth=3 hierarchy.decision_steps=4 hydra.run.dir=runs/depth/3
	$(BIN)/python benchmarks/search.py 'depth 1=runs/depth/1/seed_*' 'depth 3=runs/depth/3/seed_*' --csv runs/depth/table.csv

results-ant: # depth 2 and 3 on AntHalfCircle
	$(ANT) hydra.run.dir=runs/ant/depth_2
	$(ANT) hierarchy.depth=3 "hierarchy.steps=[10,2]" hierarchy.subgoal_reach=0.045 hydra.run.dir=runs/ant/depth_3
	$(BIN)/python benchmarks/results.py 'depth 2=runs/ant/depth_2/seed_*' 'depth 3=runs/ant/depth_3/seed_*' \
		--over "whole seeds and tasks" --csv runs/ant/table.csv

results-beliefs: # of the agents of results-search
	$(BIN)/python benchmarks/probe.py $(foreach env,$(PLACES),'$(env)=runs/search/$(env)/seed_*') \
		--csv runs/search/beliefs.csv --figure runs/search/beliefs.png

results-default: # the baselines of the default task, beside PEACH of results-search
	$(PEACH) $(FRESH) hierarchy.depth=3 hydra.run.dir=runs/default/depth_3
	$(PEACH) --config-name flat $(FRESH) hydra.run.dir=runs/default/flat
	$(BIN)/python recipes/source.py $(FRESH) hydra.run.dir=runs/default/source
	$(BIN)/python recipes/pearl.py $(FRESH) hydra.run.dir=runs/default/pearl
	$(BIN)/python recipes/hac.py $(FRESH) hydra.run.dir=runs/default/hac
	$(BIN)/python recipes/hac.py $(FRESH) top.observe_goal=true hydra.run.dir=runs/default/oracle
	$(BIN)/python benchmarks/results.py 'PEACH=runs/search/point/seed_*' --over "whole seeds and tasks" \
		$(foreach name,depth_3 source pearl flat hac oracle,'$(name)=runs/default/$(name)/seed_*') --csv runs/default/table.csv

clean:
	rm -rf .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
