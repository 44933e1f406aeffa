# Every target does all it needs on a fresh machine and is quick when nothing changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The tests start many processes: each would compile the project anew where bytecode is not written.
TESTS := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder
CODE := app.py core ui benchmarks docs presets tests

.PHONY: setup run demo export test test-programs test-stories test-slow lint check format clean

setup: $(VENV)/.users
run: $(VENV)/.users
	$(BIN)/python app.py
demo: $(VENV)/.users
	$(BIN)/python app.py train --demo
export: $(VENV)/.users
	$(BIN)/python app.py export --install
test: $(VENV)/.developers
	$(TESTS) -m "not slow and not browser and not training"
test-programs: $(VENV)/.developers
	$(TESTS) -m "not slow and (browser or training)"
test-stories: $(VENV)/.developers
	$(TESTS) -m "slow and browser and not monkey"
test-slow: $(VENV)/.developers
	$(TESTS)
lint: $(VENV)/.developers
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy core ui app.py
check: lint test
format: $(VENV)/.developers
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)
clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

# Says what is needed before anything is downloaded.
$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Tailor needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1)." \
	    "Install one and name it: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@echo "Setting up .venv: several gigabytes to download, 6 GB on the disk, some minutes. Only once."
	@df -Pk . | awk 'NR == 2 && $$4 < 6000000 { \
	  printf "Only %.1f GB are free here; 6 are needed.\n", $$4 / 1e6; exit 2 }'
	$(PYTHON) -m venv $(VENV)
# torch first: the pinned build must be chosen before anything else asks for "some torch".
$(VENV)/.users: requirements.txt | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@
$(VENV)/.developers: requirements-dev.txt requirements-optuna.txt $(VENV)/.users
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements-optuna.txt
	touch $@
