# Two commands on a fresh machine: `make demo` steers a model, `make test` checks everything.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What `make demo` steers with, for example `make demo PRESET=best-of-n PARTICLES=8`.
PRESET ?= adaptive
PARTICLES ?= 4

.PHONY: demo test lint slow clean

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

# The first two held-out prompts of the three hard tasks.
demo: $(VENV)/.installed
	$(BIN)/fk-steer generate --model shapes --preset $(PRESET) --particles $(PARTICLES) --compare --out out/demo \
		"a photo of three hearts" \
		"a photo of four triangles" \
		"a photo of a star left of a square" \
		"a photo of a moon left of a cross" \
		"a photo of an orange moon and a yellow square" \
		"a photo of a blue triangle and a purple star"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf $(VENV) out
