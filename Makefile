# make quickstart: install, fetch the demo model, align it in two directions, show the difference.
# make test: install and run the test suite.  make style: format and lint checks.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
MODEL := models/SmolLM2-135M-Instruct

# Waiting threads sleep instead of spinning: on a busy machine this is several times faster.
export OMP_WAIT_POLICY := PASSIVE
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: quickstart test style format docs clean

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	echo "$(TORCH)" > $(VENV)/constraints.txt
	@echo "installing torch and the libraries (a few minutes the first time)"
	$(BIN)/pip install --quiet "$(TORCH)" setuptools wheel
	# DeepSpeed's build looks for the installed torch, which an isolated build would not see.
	$(BIN)/pip install --quiet --constraint $(VENV)/constraints.txt --no-build-isolation "deepspeed>=0.19.4"
	$(BIN)/pip install --quiet --constraint $(VENV)/constraints.txt --editable ".[test,judges,gguf]"
	touch $@

$(MODEL)/config.json: | $(VENV)/installed
	$(BIN)/python scripts/fetch_demo_model.py --output $(MODEL)

quickstart: $(VENV)/installed $(MODEL)/config.json
	$(BIN)/python scripts/quickstart.py

# One thread: the test models are so small that more of them only wait for each other.
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

style: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/installed
	$(BIN)/python -m rahf.config > docs/recipe.md

clean:
	rm -rf $(VENV) outputs build *.egg-info
