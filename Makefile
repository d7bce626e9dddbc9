# Two commands on a fresh machine: `make demo` steers a model, `make test` checks everything.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What `make demo` runs, for example `make demo MODEL=shapes PRESET=best-of-n PARTICLES=8 LMBDA=20`.
MODEL ?= shapes-xl
PRESET ?= finish
PARTICLES ?= 4
LMBDA ?=
# A folder holds one run: what is not as above gets one of its own.
SPACE := $(subst ,, )
OTHER := $(filter-out shapes-xl,$(MODEL)) $(filter-out adaptive,$(PRESET)) \
	$(patsubst %,%-particles,$(filter-out 4,$(PARTICLES))) $(patsubst %,lambda-%,$(LMBDA))
OUT := out/demo$(subst $(SPACE),,$(addprefix -,$(subst /,-,$(OTHER))))

.PHONY: demo test lint slow docs clean

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'fk-steer needs Python 3.11 or newer, but \
	$(PYTHON) is ' + sys.version.split()[0] + '. Choose another: make ... PYTHON=python3.12')"
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

# The first three held-out prompts of three hard tasks. Of the fourth, position, the guide knows little.
demo: $(VENV)/.installed
	$(BIN)/fk-steer generate --model $(MODEL) --preset $(PRESET) --particles $(PARTICLES) $(if $(LMBDA),--lmbda $(LMBDA)) \
		--compare --out $(OUT) \
		"a photo of a heart and a moon" \
		"a photo of a cross and a diamond" \
		"a photo of a circle and a star" \
		"a photo of three hearts" \
		"a photo of four triangles" \
		"a photo of three squares" \
		"a photo of an orange moon and a yellow square" \
		"a photo of a blue triangle and a purple star" \
		"a photo of a green triangle and a yellow moon"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# In random order; the seed that pytest prints repeats it: `pytest --randomly-seed=...`, or `-p no:randomly` for none.
test: lint
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

# The site of docs/, in out/site. Its pages ask no other host for anything.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) out
