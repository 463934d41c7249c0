# `make demo` and `make test` need Python 3.11 and a C++ compiler; everything else they install into .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
MINDFORMERS := .venv-mindformers
KERNEL := $(shell find ops/csrc -name '*.cc' -o -name '*.h' -o -name CMakeLists.txt)
CXX_FILES = $$(git ls-files '*.cc' '*.h' '*.cpp')

# cmake and msrun come from .venv
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo demo-sharded test test-rare test-mutations test-aarch64 test-sanitizers \
  test-versions test-mindformers test-torch test-every-float benchmark lint format clean

demo: $(INSTALLED)
	GLOG_v=3 python examples/train_language_model.py

demo-sharded: $(INSTALLED)
	GLOG_v=3 msrun --worker_num=4 --local_worker_num=4 --master_port=8118 --log_dir=demo_output/sharded \
	  --join=True examples/train_sharded.py

test: $(INSTALLED)
	python -m pytest -n 2 --dist loadgroup -m 'not rare'

# What takes minutes and fails only by changes of its own kind. PART=1 takes the first of its parts, which the marks number.
test-rare: $(INSTALLED)
	python -m pytest -n 2 --dist loadgroup -m 'rare$(if $(PART),(part=$(PART)))'

# Faults planted in the Ascend C kernels, each of which a test must notice. PART=2/8 takes the second eighth of them.
test-mutations: $(INSTALLED)
	MS_CE_MUTATION_PART=$(PART) python -m pytest -n 2 --dist load tests/ascend/mutation_run.py

# The same kernel for the processors of Ascend hosts, cross-compiled and run under qemu-user, the longest run first. Calls of
# millions of elements are there for streaming stores, which aarch64 has not; on SVE, which qemu runs several times slower,
# tensors are smaller still, and every operation is there all the same.
test-aarch64: $(INSTALLED)
	cmake -S ops/csrc -B build/aarch64 -DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/ops/csrc/aarch64.cmake \
	  -DMS_CE_TEST_BINARY=ON -DMS_CE_OUTPUT_DIR=$(CURDIR)/build/aarch64
	cmake --build build/aarch64 --target ms_ce_kernel_test -j2
	python -m tests.kernel.replay build/calls
	printf '%s\n' '--isa neon --replay build/calls --at-most 500000' '--isa sve --stride 1000003' \
	  '--isa sve --replay build/calls --at-most 5000' '--isa neon --stride 1000003' | \
	  xargs -P 2 -L 1 qemu-aarch64 -L /usr/aarch64-linux-gnu build/aarch64/ms_ce_kernel_test

# The stand-alone binary, every operation replayed: under ASan with UBSan on every instruction set, and under TSan, for which
# one is enough.
SANITIZERS ?= address,undefined thread
test-sanitizers: $(INSTALLED)
	python -m tests.kernel.replay build/calls
	for sanitizer in $(SANITIZERS); do \
	  build=build/sanitize-$${sanitizer%%,*}; \
	  isa=; test $$sanitizer != thread || isa="--isa best"; \
	  cmake -S ops/csrc -B $$build -DMS_CE_TEST_BINARY=ON -DMS_CE_SANITIZE=$$sanitizer \
	    -DMS_CE_OUTPUT_DIR=$(CURDIR)/$$build && \
	  cmake --build $$build --target ms_ce_kernel_test -j2 && \
	  UBSAN_OPTIONS=halt_on_error=1 $$build/ms_ce_kernel_test --stride 1000003 $$isa && \
	  UBSAN_OPTIONS=halt_on_error=1 $$build/ms_ce_kernel_test --replay build/calls $$isa || exit 1; \
	done

test-every-float: $(INSTALLED)
	cmake -S ops/csrc -B build/kernel -DMS_CE_TEST_BINARY=ON -DMS_CE_OUTPUT_DIR=$(CURDIR)/build/kernel
	cmake --build build/kernel --target ms_ce_kernel_test -j2
	build/kernel/ms_ce_kernel_test --every-float

# Every MindSpore that is supported, each in an environment of its own. VERSION=2.7.0 (or oldest) takes one of them, PART=1/8
# every eighth of the test files. Whole runs write the table of docs/versions.md.
test-versions: $(INSTALLED)
	python -m tests.versions $(if $(VERSION),--version $(VERSION)) $(if $(PART),--part $(PART))

test-mindformers: $(INSTALLED)
	test -d $(MINDFORMERS) || $(PYTHON) -m venv $(MINDFORMERS)
	$(MINDFORMERS)/bin/pip install --quiet mindspore==2.10.0 'numpy<2' .
	$(MINDFORMERS)/bin/pip install --quiet --no-deps -r tests/parallel/mindformers_requirements.txt
	MS_CE_MINDFORMERS_PYTHON=$(CURDIR)/$(MINDFORMERS)/bin/python \
	  python -m pytest tests/parallel/test_mindformers.py

# In the environment of the benchmarks' peers, which is made where it is missing.
test-torch: $(INSTALLED)
	MS_CE_TORCH_PYTHON=$$(PYTHONPATH=benchmarks python -c \
	  'import environment; print(environment.peer_python())' | tail -n 1) \
	  python -m pytest tests/integration/test_torch.py

benchmark: $(INSTALLED)
	python benchmarks/run.py

lint: $(INSTALLED)
	ruff check
	ruff format --check
	mypy
	lint-imports
	clang-format --dry-run --Werror $(CXX_FILES)

format: $(INSTALLED)
	ruff check --fix
	ruff format
	clang-format -i $(CXX_FILES)

$(INSTALLED): setup.py pyproject.toml $(KERNEL)
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	python -m pip install --quiet --upgrade pip
	python -m pip install --quiet --editable '.[demo,test,lint]'
	touch $@

clean:
	rm -rf $(VENV) $(MINDFORMERS) .venv-versions .venv-benchmarks build dist demo_output ops/libms_ce.so *.egg-info
