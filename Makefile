# make demo   make the environment, edit a picture with the built-in model, say where the pictures are
# make test   run the tests (the quick ones: neither slow nor gpu)
# Others:     test-slow, test-service, lint, format, bench, gpu, pictures, train, clean

PYTHON ?= python3
# URL of an index of torch's CPU build: looked at where there is no nvidia-smi. May stay in the environment for good.
TORCH_INDEX ?=
# TORCH=any takes whatever build of torch pip finds, CUDA's too.
TORCH ?=
PIP_FLAGS ?=
OUT ?= out/demo
# Processes that share the tests.
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(BIN)/adapedit

GPU := $(shell command -v nvidia-smi 2>/dev/null)
ifeq ($(GPU),)
ifneq ($(TORCH_INDEX),)
PIP_FLAGS += --extra-index-url $(TORCH_INDEX)
endif
endif

# CLIP's vocabulary is a file in it, which tests read; it is not installed. Without it they are skipped, but for CI.
CLIP := out/clip_anytorch-2.6.0-py3-none-any.whl

.PHONY: demo test test-slow test-service lint format bench gpu pictures train clean $(VENV)

demo: $(INSTALLED)
	$(BIN)/adapedit edit "a red dog standing on the grass" "a red dog sitting on the grass" --seed 0 --out $(OUT)
	@echo "The pictures are in $(OUT): source.png, target.png and the attention maps in maps.png"

test: $(INSTALLED) $(CLIP)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-slow: $(INSTALLED)
	@$(BIN)/python -m pytest -m "slow and not gpu"

# The service under load, killed, and against made-up requests: minutes.
test-service: $(INSTALLED)
	@$(BIN)/python -m pytest -m service

lint: $(INSTALLED)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(INSTALLED)
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.latency
	$(BIN)/python -m benchmarks.serving

# Everything that only a CUDA device can say; without make and an environment: python3 -m benchmarks.gpu
gpu: $(INSTALLED)
	$(BIN)/python -m benchmarks.gpu

# Those of the README and docs, in docs/pictures.
pictures: $(INSTALLED)
	$(BIN)/adapedit edit "a red dog standing on the grass" "a red dog sitting on the grass" --seed 0 --out out/pictures
	cp out/pictures/maps.png docs/pictures/edit.png

train: $(INSTALLED)
	$(BIN)/python -m benchmarks.scenes train

# The console script is the last thing that pip writes: where it stands the environment is whole and is left alone,
# where it does not the environment is made or finished. To make it anew: rm -rf .venv
$(VENV): $(INSTALLED)

$(INSTALLED):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python %d.%d found, 3.10 or later wanted: make PYTHON=python3.12" % sys.version_info[:2])'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
ifeq ($(GPU)$(TORCH),)
	@! $(BIN)/python -m pip install --dry-run --ignore-installed --quiet --report - -c constraints.txt $(PIP_FLAGS) torch \
		| grep -q '"name": "nvidia-' \
		|| { echo "pip would fetch torch's CUDA build, gigabytes, and there is no nvidia-smi:" \
			"make $(MAKECMDGOALS) TORCH_INDEX=URL with the CPU index of PyTorch's install page, or TORCH=any" >&2; exit 1; }
endif
	$(BIN)/python -m pip install --quiet -c constraints.txt $(PIP_FLAGS) -e ".[dev]"

$(CLIP): | $(INSTALLED)
	@$(BIN)/python -m pip download --quiet --no-deps --dest out clip-anytorch==2.6.0 \
		|| echo "clip-anytorch can't be fetched: tests by CLIP's own tokenizer are skipped" >&2

# What the training stages have written stays: it is hours of work. To begin anew: rm -rf out/training
clean:
	test ! -d out || find out -mindepth 1 -maxdepth 1 ! -name training -exec rm -rf {} +
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find adapedit kernels engine export benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
