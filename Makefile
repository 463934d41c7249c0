# `make demo` and `make test` need Python 3.11 and a C++ compiler; everything else they install into .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
KERNEL := $(shell find ops/csrc -name '*.cc' -o -name '*.h' -o -name CMakeLists.txt)

.PHONY: demo test lint format clean

demo: $(INSTALLED)
	$(BIN)/python examples/train_language_model.py

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadgroup

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cc' '*.h' '*.cpp')

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $$(git ls-files '*.cc' '*.h' '*.cpp')

$(INSTALLED): setup.py pyproject.toml $(KERNEL)
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[demo,test]'
	touch $@

clean:
	rm -rf $(VENV) build dist demo_output ops/libms_ce.so *.egg-info
