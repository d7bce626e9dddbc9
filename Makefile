# Two commands on a fresh machine: `make demo` steers a model, `make test` checks everything.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What `make demo` runs, for example `make demo MODEL=shapes REWARD=clip-score PRESET=adaptive PARTICLES=8`.
MODEL ?= shapes-xl
REWARD ?= llava-reward
PRESET ?= finish
BUDGET ?= 100
PARTICLES ?=
LMBDA ?=
# A folder holds one run: what is not as above gets one of its own.
SPACE := $(subst ,, )
OTHER := $(filter-out shapes-xl,$(MODEL)) $(filter-out llava-reward,$(REWARD)) $(filter-out finish,$(PRESET)) \
	$(if $(PARTICLES),$(PARTICLES)-particles,$(patsubst %,budget-%,$(filter-out 100,$(BUDGET)))) $(patsubst %,lambda-%,$(LMBDA))
OUT := out/demo$(subst $(SPACE),,$(addprefix -,$(subst /,-,$(OTHER))))

.PHONY: demo test lint slow docs clean

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'fk-steer needs Python 3.11 or newer, but \
	$(PYTHON) is ' + sys.version.split()[0] + '. Choose another: make ... PYTHON=python3.12')"
	@echo "Installing into $(VENV): minutes, most of them PyTorch's."
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

# The first eight held-out prompts of three hard tasks. Of the fourth, position, the guides know little.
demo: $(VENV)/.installed
	$(BIN)/fk-steer generate --model $(MODEL) --reward $(REWARD) --preset $(PRESET) \
		$(if $(PARTICLES),--particles $(PARTICLES),--budget $(BUDGET)) $(if $(LMBDA),--lmbda $(LMBDA)) --compare --prompts-file examples/demo.txt --out $(OUT)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# In random order; the seed that pytest prints repeats it: `pytest --randomly-seed=...`, or `-p no:randomly` for none.
test: lint docs
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
