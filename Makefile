# Every target that needs Python calls `setup`, and `setup` does nothing when nothing changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UV_VERSION := 0.13.9

export NO_ALBUMENTATIONS_UPDATE := 1
export HF_HUB_OFFLINE := 1
export DO_NOT_TRACK := true
# Threads of several torch processes must not spin for a core that another one needs.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help setup demo test check format benchmark-data benchmark-evaluation benchmark-norm \
	benchmark-preflight benchmark-quality benchmark-serve clean

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(STAMP)  ## Build .venv with the pinned dependencies.

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]'
	@touch $@
	@echo "Installed in $(VENV): $$(du -sh $(VENV) | cut -f1)"

demo: setup  ## Draw frames, start the service, train, predict; pass flags in ARGS (ARGS=--keep).
	$(BIN)/hairline demo $(ARGS)

test: setup  ## Run the tests, two at a time; pass flags in ARGS (ARGS="-k norm", ARGS="-n 0").
	$(BIN)/pytest -n 2 --dist worksteal $(ARGS)

check: setup  ## Format, lint, types, import rules.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## Rewrite the sources in the house format.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

benchmark-data: setup  ## Import, decoding and listing, as ratios (minutes; ARGS="decode --quick").
	$(BIN)/python -m benchmarks.data $(or $(ARGS),all)

benchmark-norm: setup  ## Accuracy and cost of each normalization (hours on a CPU; ARGS="cost --quick").
	$(BIN)/python -m benchmarks.norm $(or $(ARGS),all)

benchmark-quality: setup  ## Train on the real sets under each normalization and resolution (hours on a CPU; resumable; ARGS="--profile native" for a GPU).
	$(BIN)/python -m benchmarks.quality $(ARGS)

benchmark-preflight: setup  ## Estimated against measured memory (tens of minutes; ARGS=ladder).
	$(BIN)/python -m benchmarks.preflight $(or $(ARGS),runs)

benchmark-serve: setup  ## Latency beside a plain endpoint (minutes on a CPU; ARGS=load swaps models for ten minutes).
	$(BIN)/python -m benchmarks.serve $(or $(ARGS),latency)

benchmark-evaluation: setup  ## What judging a test frame costs beside asking the model (a minute on a CPU).
	$(BIN)/python -m benchmarks.evaluation $(ARGS)

clean:  ## Remove the environment and the tools' caches.
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
