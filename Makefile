# `make demo` and `make test` need Python 3.11 or newer, git and make; the first one installs everything else.
SHELL := /bin/sh
BIN := .venv/bin
DOCS ?= python:docs

.PHONY: help setup demo test lint format bench bench-quick clean

help:            ## list the targets
	@sed -n 's/^\([a-z-]*\): .*## /\1\t/p' Makefile

.venv/.installed: pyproject.toml constraints.txt scripts/setup
	@sh scripts/setup

setup: .venv/.installed   ## make .venv and install everything

demo: .venv/.installed    ## the whole wheel on real documents (DOCS=folder for your own), then API and console on port 8420
	@MAINSPRING_HOME="$${MAINSPRING_HOME:-$(CURDIR)/.mainspring}" $(BIN)/python examples/handbook/demo.py --docs "$(DOCS)"

test: .venv/.installed    ## the whole test suite
	@$(BIN)/python -m pytest -n 2 --dist loadfile --durations=15 -m "not bench"

lint: .venv/.installed    ## formatting, rules, floors, types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python scripts/house.py src tests scripts benchmarks examples
	@$(BIN)/pyright

format: .venv/.installed  ## rewrite files the way lint wants them
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: .venv/.installed   ## every benchmark, tables into docs/benchmarks
	@$(BIN)/python scripts/bench.py

bench-quick: .venv/.installed   ## does every benchmark still run, and say about what it said? writes nothing
	@$(BIN)/python -m pytest tests/contract/test_benchmarks.py --durations=5 -m bench

clean:           ## remove what setup and the demo made
	rm -rf .venv .mainspring
