# Requires git, make and Python 3.11 or later. Everything is installed into VENV. To use an existing environment and
# keep its Detectron2:  make test VENV=$CONDA_PREFIX
PYTHON ?= python3
VENV ?= .venv
TEST_WORKERS ?= 2

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -q
CONFIGS := projects/FoundationX/configs
DEMO := output/demo
DEMO_PICTURES := chestx_det_test candid_ptx_test tbx11k_val siim_acr_test

# The stamp records the checkout it was made for: if two checkouts share an environment, the one in use is installed.
STAMP := $(VENV)/.fx_d2-installed
MOVED := $(if $(filter $(CURDIR),$(shell cat $(STAMP) 2>/dev/null)),,FORCE)

.PHONY: help install lint test demo clean FORCE

help:
	@echo "make install  create $(VENV) with Detectron2 and fx_d2"
	@echo "make demo     train and evaluate on synthetic X-rays on a CPU, with visualizations"
	@echo "make test     style, types and tests"
	@echo "make lint     style and types"
	@echo "make clean    remove caches and $(DEMO)"

install: $(STAMP)

$(PY):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fx_d2 needs Python 3.11 or later: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

# pip rejects a wheel tagged for another Python version unless given that version and a target folder.
$(STAMP): setup.py requirements/detectron2.txt $(MOVED) | $(PY)
	$(PIP) install -e '.[dev]'
	@if $(PY) -c 'import importlib.util as u, sys; sys.exit(u.find_spec("detectron2") is None)'; then \
		echo "keeping the Detectron2 of $(VENV)"; \
	else \
		set -x; $(PIP) install --no-deps --require-hashes --only-binary=:all: --python-version 3.10 \
			--implementation cp --target "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
			-r requirements/detectron2.txt; \
	fi
	@echo $(CURDIR) > $@

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check -q .
	$(PY) -m mypy

# One thread per process: tensors are small here, and synchronising threads costs more than it saves.
test demo: export OMP_NUM_THREADS = 1

test: lint
	$(PY) -m pytest -q -n $(TEST_WORKERS) --dist loadfile

demo: export DETECTRON2_DATASETS = $(DEMO)/datasets
# fvcore and detectron2 call torch.jit.script at import.
demo: export PYTHONWARNINGS = ignore::FutureWarning:torch.jit._script
demo: install
	rm -rf $(DEMO)
	$(PY) datasets/prepare_synthetic.py --output $(DEMO)/datasets --seed 0 --train 48 --val 16
	$(PY) tools/check_datasets.py --read
	$(PY) tools/train_net.py --config-file $(CONFIGS)/smoke/synthetic_cpu.yaml OUTPUT_DIR $(DEMO)/run
	$(PY) tools/train_net.py --config-file $(CONFIGS)/smoke/synthetic_cpu.yaml --eval-only \
		MODEL.WEIGHTS $(DEMO)/run/model_final.pth OUTPUT_DIR $(DEMO)/test
	for name in $(DEMO_PICTURES); do \
		$(PY) tools/visualize_predictions.py --config-file $(CONFIGS)/smoke/synthetic_cpu.yaml \
			--predictions $(DEMO)/test/inference/predictions_student.json --which student \
			--dataset $$name --num 8 --output $(DEMO)/pictures/$$name || exit 1; \
	done
	$(PY) tools/report.py synthetic=$(DEMO)/test --output $(DEMO)/report --gallery 1
	@sed '/^## Per class/,$$d' $(DEMO)/test/results.md
	@echo "checkpoint  $(DEMO)/run/model_final.pth"
	@echo "results     $(DEMO)/test/results.md"
	@echo "report      $(DEMO)/report/report.html"
	@echo "pictures    $(DEMO)/pictures"

clean:
	rm -rf $(DEMO) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
