# make quickstart: install, fetch the demo model, align it in two directions, show the difference.
# make test: install and run the test suite.  make test-all: the slow tests, which `test` omits.
# make style: lint, formatting, types.  make format: lint and format.
# make docs: docs/recipe.md and the schema of recipes from the options.  make site: the documents as
# a site, in build/site.  make lock: constraints.txt anew.
# make test-latest, make test-lowest: both ends of the ranges.
# make gpu-check: times and memory on one GPU, in ten minutes, without a network.
PYTHON ?= python3
VENV := .venv
LOCKED := --constraint constraints.txt --no-build-isolation

# setuptools warns of every editable installation.
install = PYTHONWARNINGS="ignore:Editable installation" \
  $(1)/bin/pip --quiet --disable-pip-version-check install
# One thread a worker: the test models are so small that more threads only wait for each other.
pytest = OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -q --numprocesses 2 --dist worksteal

# Waiting threads sleep instead of spinning: on a busy machine this is several times faster.
export OMP_WAIT_POLICY := PASSIVE
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: quickstart test test-all gpu-check test-latest test-lowest style format docs site lock compiler clean

# What a recipe needs. Nothing is compiled.
$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -m venv $(VENV)
	@echo "installing torch and the libraries (a few minutes the first time)"
	@$(call install,$(VENV)) --constraint constraints.txt --upgrade pip setuptools wheel
	@$(call install,$(VENV)) $(LOCKED) --editable ".[quickstart]"
	@touch $@

# What the tests need besides: DeepSpeed, the evaluation harness, TRL.
$(VENV)/tested: $(VENV)/installed | compiler
	@echo "installing what the tests need"
	@$(call install,$(VENV)) $(LOCKED) --editable ".[test]"
	@touch $@

compiler:
	@command -v $${CXX:-c++} > /dev/null || { echo "DeepSpeed, which the tests run, needs a C++" \
	  "compiler: install one (Debian, Ubuntu: apt-get install g++) or name it in CXX."; exit 1; }

quickstart: $(VENV)/installed
	$(VENV)/bin/rahf quickstart

test: $(VENV)/tested
	$(call pytest,$(VENV)) -m "not gpu and not slow"

test-all: $(VENV)/tested
	$(call pytest,$(VENV)) -m "not gpu and slow"

# Where nothing has been installed (a machine without a network) with that machine's packages.
gpu-check:
	PYTHONPATH=$(CURDIR) $(if $(wildcard $(VENV)/installed),$(VENV)/bin/python,$(PYTHON)) \
	  scripts/gpu_check.py

style: $(VENV)/tested
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/tested
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(VENV)/installed
	$(VENV)/bin/python -m rahf.recipe.reference > docs/recipe.md
	$(VENV)/bin/python -m rahf.recipe.schema > recipes/recipe.schema.json

# An environment of its own: the site needs none of the packages that it describes.
site:
	@test -d .venv-docs || $(PYTHON) -m venv .venv-docs
	@$(call install,.venv-docs) --constraint constraints.txt "mkdocs<2" "mkdocs-material<10" "mkdocstrings[python]<2" ruff
	.venv-docs/bin/python scripts/docs_site.py
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

# Exact versions of all packages, for Python 3.11 to 3.13 on every platform. torch is the release
# that the figures in the documents were measured with.
TORCH := torch==2.13.0
RESOLVE := .venv-lock/bin/uv pip compile --quiet --all-extras --no-annotate

.venv-lock/bin/uv:
	$(PYTHON) -m venv .venv-lock
	$(call install,.venv-lock) uv

lock: .venv-lock/bin/uv
	printf '%s\n' "$(TORCH)" pip setuptools wheel > .venv-lock/tools.txt
	$(RESOLVE) --universal --python-version 3.11 --upgrade --output-file constraints.txt \
	  --custom-compile-command "make lock" setup.cfg .venv-lock/tools.txt

# The newest releases within the ranges of setup.cfg. Warnings are shown and counted, not errors.
test-latest: | compiler
	rm -rf .venv-latest
	$(PYTHON) -m venv .venv-latest
	$(call install,.venv-latest) --upgrade pip setuptools wheel torch
	$(call install,.venv-latest) --no-build-isolation --editable ".[test]"
	$(call pytest,.venv-latest) -m "not gpu" -W default

# The lowest releases of the ranges. Triton of that time does not import without a GPU; only
# DeepSpeed would use it, so it is left out where there is none.
test-lowest: .venv-lock/bin/uv | compiler
	rm -rf .venv-lowest
	$(PYTHON) -m venv .venv-lowest
	$(RESOLVE) --resolution lowest-direct --python .venv-lowest/bin/python \
	  --output-file .venv-lock/lowest.txt setup.cfg
	command -v nvidia-smi > /dev/null || sed -i '/^triton==/d' .venv-lock/lowest.txt
	$(call install,.venv-lowest) --upgrade pip setuptools wheel
	grep -v '^deepspeed==' .venv-lock/lowest.txt > .venv-lock/first.txt
	$(call install,.venv-lowest) --no-deps --requirement .venv-lock/first.txt
	$(call install,.venv-lowest) --no-deps --no-build-isolation \
	  --requirement .venv-lock/lowest.txt --editable .
	$(call pytest,.venv-lowest) -m "not gpu" -W default

clean:
	rm -rf .venv .venv-docs .venv-lock .venv-latest .venv-lowest outputs build *.egg-info
