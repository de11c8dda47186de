# One command each. `make demo` and `make test` each work as the first command on a fresh clone; a second run installs nothing.
PYTHON ?= python3
VENV   ?= .venv
MODEL  ?= pocket
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --no-compile -c constraints.txt
INSTALLED_BY := settings.ini constraints.txt setup.py pyproject.toml
# what is imported is compiled then, once: not all 415 MB while they are installed, and not by each of some hundred processes
unexport PYTHONDONTWRITEBYTECODE

SHELL  := bash
.SHELLFLAGS := -o pipefail -c

export TOKENIZERS_PARALLELISM = false
.DEFAULT_GOAL := help
.PHONY: help demo test book gpu results clean
.DELETE_ON_ERROR:

help: ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/make \1\t\2/' | expand -t 16

demo: $(VENV)/demo-stamp ## the whole way, checkpoint to perplexity; MODEL=folder, default: the model in the package
	$(BIN)/python -m alphaq.lab.demo demo --model '$(MODEL)'

test: export OMP_NUM_THREADS ?= 1
test: export HF_HUB_OFFLINE = 1
test: $(VENV)/test-stamp ## every chapter, every law that crosses chapters, the book
	$(BIN)/nbdev_test --n_workers 2 --timing | tee $(VENV)/chapters
	$(BIN)/python -m pytest --durations=10 -n 2 --dist loadfile --no-loadscope-reorder tests

book: $(VENV)/test-stamp ## the book, in _build/html/index.html; a warning is an error
	$(BIN)/jupyter-book build . -W --keep-going -q 2>&1 | { grep -v '^.IPKernelApp' || true; }  # its kernels' remark on local sockets
	@echo "open _build/html/index.html"

gpu: ## on a GPU machine: every benchmark whose rows are missing, with PYTHON=... as it is; installs nothing
	PYTHONPATH=. $(PYTHON) -m alphaq.lab.gpu

results: $(VENV)/demo-stamp ## everything in results/ that needs neither a GPU nor a training run; ALPHAQ_DATA names the texts
	$(PIP) -e '.[eval]'
	$(BIN)/python -m alphaq.lab.demo results --model '$(MODEL)'
	$(BIN)/python -m alphaq.lab.card quality --model '$(MODEL)'
	$(BIN)/python -m alphaq.lab.rivals --model '$(MODEL)'
	$(BIN)/python -m alphaq.lab.rivals --model '$(MODEL)' --quantizer gptq --bits 1.5 2 2.5 3 3.5
	$(BIN)/python -m alphaq.lab.rivals --model '$(MODEL)' --fusion --bits 1.5 2 2.5 3 3.5
	$(BIN)/python -m alphaq.lab.solvers agreement
	$(BIN)/python -m alphaq.lab.solvers speed
	$(BIN)/python -m alphaq.lab.footprint
	$(BIN)/python -m alphaq.lab.claims

clean: ## remove what was built; keeps $(VENV) and results/
	rm -rf _build _vendor build dist *.egg-info .pytest_cache .hypothesis
	find alphaq tests -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "alphaq needs Python 3.11 or later; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# torch goes first and alone, so that nothing that follows can choose another build of it
$(VENV)/torch-stamp: $(INSTALLED_BY) | $(BIN)/python
	@echo 'installing into $(VENV); a minute or two, once'
	$(PIP) torch
	@touch $@

$(VENV)/demo-stamp: $(VENV)/torch-stamp
	$(PIP) -e .
	@touch $@

# triton for its interpreter and compiler, which need no GPU; not lm-eval: what needs it is skipped with a reason
$(VENV)/test-stamp: $(VENV)/torch-stamp
	$(PIP) -e '.[dev,book,gpu]'
	@touch $@ $(VENV)/demo-stamp
