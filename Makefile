# Every target sets up .venv by itself; PYTHON=/path/to/python chooses the interpreter it is made with.

.DEFAULT_GOAL := help
.PHONY: help bootstrap demo test test-slow lint docs bench clean clean-runs distclean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s  %s\n", $$1, $$2 }' Makefile

bootstrap:
	@scripts/bootstrap

demo: bootstrap  ## a first look: a minute or two, no data needed
	@.venv/bin/metalearn demo

# One thread a worker: the tests' tensors are small, and threads of several workers would fight for the cores.
# One worker more than cores: one of them often waits for a process that its test has started.
# A file's tests go to one worker, which makes the fixtures that they share once; tests/conftest.py has their order.
workers = $$(n=$$(($$(getconf _NPROCESSORS_ONLN) + 1)); echo $$((n < 4 ? n : 4)))
pytest = OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(workers) --dist loadfile --no-loadscope-reorder --durations=60 --durations-min=1

test: bootstrap  ## the tests, without the slow ones
	@$(pytest) -m "not slow"

test-slow: bootstrap  ## the slow tests
	@$(pytest) -m slow

lint: bootstrap  ## style, format, types and prose
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy
	@.venv/bin/python scripts/check_prose.py

# One thread, as for the tests: the tutorials that it runs are small. -W: a warning fails.
docs: bootstrap  ## the documentation site, into build/site/
	@OMP_NUM_THREADS=1 .venv/bin/python -m sphinx -c docs/site -d build/doctrees -W --keep-going -q . build/site
	@echo "open build/site/index.html"

bench: bootstrap  ## the five studies of the gradients, small, into runs/quick/
	@scripts/reproduce_studies memory cg gradient properties speed preset=quick

clean:  ## remove caches, keep runs/, results/ and .venv
	@rm -rf wandb build dist docs/gallery .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

clean-runs:  ## remove all runs with their checkpoints, after a question
	@printf 'Remove every run and checkpoint in runs/ (%s)? Type yes: ' "$$(du -sh runs | cut -f1)"; \
	read -r answer; \
	if [ "$$answer" = yes ]; then find runs -mindepth 1 ! -path runs/README.md -delete; else echo "kept"; fi

distclean: clean  ## remove .venv too
	@rm -rf .venv
