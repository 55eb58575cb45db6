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

# Convert a reference network with its calibration samples: accuracy, size, MACs and latency before and after.
demo: $(VENV)/.installed
	mkdir -p demo
	$(BIN)/onnxdecomp convert models/vgg_cifar.onnx demo/vgg_cifar.onnx --calibration models/calibration/cifar10.npz \
		--eval models/evaluation/cifar10.npz --max-drop 0.02 --report demo/report.json
	$(BIN)/onnxdecomp bench models/vgg_cifar.onnx demo/vgg_cifar.onnx

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
