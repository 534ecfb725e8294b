# make demo · make test          everything else is for people who work on hybridqa
export OMP_WAIT_POLICY ?= PASSIVE
PYTHON := .venv/bin/python
WORKERS ?= 2
DOCUMENT ?= examples/corpus/lumen-kettle.md

.PHONY: help install demo test test-slow bench-distillation lint format clean distclean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 20

install: ## make .venv and install hybridqa in it
	@./install.sh

demo: install ## add the example documents, distill their modules, and compare the four ways of answering
	@$(PYTHON) -m hybridqa.models
	@$(PYTHON) examples/demo.py

test: ## install what the tests need, then format check, lint, types and the tests that take seconds; WORKERS=N
	@./install.sh dev
	@$(MAKE) --no-print-directory lint
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m "not slow" -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-slow: ## the tests that take minutes
	@./install.sh dev
	$(PYTHON) -m pytest -m slow

bench-distillation: install ## an hour on a quiet machine: the trainer beside a plain one; DOCUMENT=FILE OPTIONS="..."
	@$(PYTHON) -m hybridqa.models
	$(PYTHON) eval/distillation_speed.py --document $(DOCUMENT) $(OPTIONS)

lint: ## ruff and mypy; needs `./install.sh dev`
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

format: ## let ruff mend what it can
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

clean: ## remove caches and builds
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find hybridqa tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## and the demo's store and .venv
	rm -rf demo-store .venv
