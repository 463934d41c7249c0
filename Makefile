# `make demo` and `make test` need Python 3.11 and a C++ compiler; everything else they install into .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RELEASE := .venv-release
DOCS := .venv-docs
MINDFORMERS := .venv-mindformers
MODELS := .venv-models
KERNEL := $(shell find ops/csrc -name '*.cc' -o -name '*.h' -o -name CMakeLists.txt)
# The oldest tags that wheels keep to: docs/wheels.md says what of.
WHEELS := manylinux_2_24_x86_64 manylinux_2_24_aarch64
PACKAGE := setup.py pyproject.toml $(KERNEL) $(shell find -L ms_ce -name '*.py') $(wildcard custom_aicore/*/*)
CXX_FILES = $$(git ls-files '*.cc' '*.h' '*.cpp')

# cmake and msrun come from .venv, what builds wheels from .venv-release
export PATH := $(abspath $(BIN)):$(abspath $(RELEASE))/bin:$(PATH)
# Archives are dated by their commit: the same sources give the same bytes.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)

.PHONY: demo demo-sharded test fuzz soak test-valgrind test-rare test-mutations check-ascend test-aarch64 test-without-avx test-sanitizers \
  test-versions test-mindformers test-models test-torch test-every-float test-wheels \
  test-aarch64-mindspore wheels archives dist docs notebooks benchmark lint format clean

demo: $(INSTALLED)
	GLOG_v=3 python examples/train_language_model.py

demo-sharded: $(INSTALLED)
	GLOG_v=3 msrun --worker_num=4 --local_worker_num=4 --master_port=8118 --log_dir=demo_output/sharded \
	  --join=True examples/train_sharded.py

test: $(INSTALLED) $(RELEASE)/.installed
	python -m pytest -n 2 --dist loadgroup -m 'not rare'

# What takes minutes and fails only by changes of its own kind. PART=1 takes the first of its parts, which the marks number.
test-rare: $(INSTALLED)
	python -m pytest -n 2 --dist loadgroup -m 'rare$(if $(PART),(part=$(PART)))'

# Faults planted in the Ascend C kernels, each of which a test must notice. PART=2/8 takes the second eighth of them.
test-mutations: $(INSTALLED)
	MS_CE_MUTATION_PART=$(PART) python -m pytest -n 2 --dist load tests/ascend/mutation_run.py

# What pip installs without a compiler, for both processors, by Debian's g++ and g++-aarch64-linux-gnu: into dist/, checked.
wheels: $(WHEELS:%=build/%.built)
	cd dist && twine check --strict *.whl && check-wheel-contents *.whl
	python tests/packaging/describe_wheels.py dist

# Next to the wheel stays the folder in which its kernel was compiled, build/TAG.
build/%.built: $(RELEASE)/.installed $(PACKAGE)
	rm -f dist/*-$*.whl
	umask 022 && $(RELEASE)/bin/python -m build --no-isolation --wheel --outdir dist \
	  --config-setting=--build-option=--plat-name=$* .
	touch $@

archives: wheels
	rm -f dist/*.tar.gz
	$(RELEASE)/bin/python -m build --no-isolation --sdist --outdir dist .
	cd dist && twine check --strict *.tar.gz

# What a release publishes, of the commit that is checked out: made twice, in two folders, to the same bytes.
dist: $(RELEASE)/.installed
	rm -rf build/first build/second
	for copy in first second; do \
	  mkdir -p build/$$copy && git archive HEAD | tar -x -C build/$$copy && \
	  $(MAKE) -C build/$$copy archives RELEASE=$(abspath $(RELEASE)) || exit 1; \
	done
	rm -rf dist build/*.built
	cp -r build/first/dist dist
	cd dist && sha256sum * | tee ../build/sums
	cd build/second/dist && sha256sum --check --strict ../../sums

# The x86-64 wheel in a fresh environment, with MINDSPORE=2.7.0 on another MindSpore and with PYTHON=python3.10 on another Python.
test-wheels: $(INSTALLED) wheels
	MS_CE_MINDSPORE=$(MINDSPORE) MS_CE_PYTHON=$(shell command -v $(PYTHON)) \
	  $(BIN)/python -m pytest tests/packaging/wheel_run.py

# The Ascend operators against CANN's public sources: ASC_DEVKIT=<checkout of asc-devkit>, beside which lie those of metadef,
# ge, runtime and asc-tools.
check-ascend: $(INSTALLED)
	ASC_DEVKIT=$(ASC_DEVKIT) python -m tests.ascend.check_toolchain

# The library of the aarch64 wheel, for the processors of Ascend hosts, run under qemu-user, the longest run first; what
# belongs to no library is linked in. Calls of millions of elements are there for streaming stores, which aarch64 has not; on
# SVE, which qemu runs several times slower, tensors are smaller still, and every operation is there all the same.
AARCH64 := build/$(filter %aarch64,$(WHEELS))
REPLAY := --library build/aarch64-wheel/ms_ce/ops/libms_ce.so --replay build/calls --at-most
test-aarch64: $(INSTALLED) $(AARCH64).built
	python -m zipfile -e dist/*-$(notdir $(AARCH64)).whl build/aarch64-wheel
	cmake -S ops/csrc -B $(AARCH64) -DMS_CE_TEST_BINARY=ON
	cmake --build $(AARCH64) --target ms_ce_kernel_test -j2
	python -m tests.kernel.replay build/calls
	printf '%s\n' '--isa neon $(REPLAY) 500000' '--isa sve --stride 1000003' \
	  '--isa sve $(REPLAY) 5000' '--isa neon --stride 1000003' | \
	  xargs -P 2 -L 1 qemu-aarch64 -L /usr/aarch64-linux-gnu $(AARCH64)/ms_ce_kernel_test

# The kernel on x86-64 processors without AVX, and below the oldest instruction set, of which a call is told; qemu-user's.
test-without-avx: $(INSTALLED)
	cmake -S ops/csrc -B build/kernel -DMS_CE_TEST_BINARY=ON -DMS_CE_OUTPUT_DIR=$(CURDIR)/build/kernel
	cmake --build build/kernel --target ms_ce_kernel_test -j2
	python -m tests.kernel.replay build/calls
	qemu-x86_64 -cpu Nehalem build/kernel/ms_ce_kernel_test --stride 1000003
	qemu-x86_64 -cpu Nehalem build/kernel/ms_ce_kernel_test --replay build/calls --at-most 5000
	qemu-x86_64 -cpu core2duo build/kernel/ms_ce_kernel_test --refused

# The aarch64 wheel under Debian's Python and MindSpore's own wheel, all of them under qemu-user: minutes.
test-aarch64-mindspore: $(AARCH64).built
	bash tests/packaging/aarch64_mindspore.sh build/aarch64-mindspore dist/*-$(notdir $(AARCH64)).whl

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

# Losses drawn at random against the float64 reference; stops at the first that is wrong and says how to repeat it.
# PUBLIC=pynative or compiled draws calls of the functions instead of the C operations; ONEDNN=1 has oneDNN loaded.
SECONDS ?= 600
fuzz: $(INSTALLED)
	python -m tests.fuzz --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(if $(PUBLIC),--public $(PUBLIC)) \
	  $(if $(ONEDNN),--onednn)

# 100,000 training steps of a tiny model in each mode, logits and the linear loss, in shapes from a set of 20. STEPS= sets
# another number; after its first 2,000 a process may grow by 16 MiB.
STEPS ?= 100000
soak: $(INSTALLED)
	GLOG_v=3 python -m tests.soak --steps $(STEPS)

# Once a release: every operation replayed under valgrind, which knows no AVX-512.
test-valgrind: $(INSTALLED)
	cmake -S ops/csrc -B build/kernel -DMS_CE_TEST_BINARY=ON -DMS_CE_OUTPUT_DIR=$(CURDIR)/build/kernel
	cmake --build build/kernel --target ms_ce_kernel_test -j2
	python -m tests.kernel.replay build/calls
	valgrind --quiet --error-exitcode=1 --leak-check=full build/kernel/ms_ce_kernel_test --isa x86-64-v3 \
	  --replay build/calls --at-most 2000

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
	  python -m pytest tests/parallel/mindformers_run.py

# Training steps of model libraries, each in an environment of its own, with and without ms_ce.patch; writes the tables
# of docs/model_libraries.md. ONLY=mindcv runs one library.
test-models: $(INSTALLED)
	python -m tests.models.libraries $(MODELS) $(ONLY)
	MS_CE_MODELS=$(MODELS) MS_CE_MODELS_TABLE=1 $(if $(ONLY),MS_CE_MODELS_ONLY="$(ONLY)") \
	  python -m pytest -s tests/models

# In the environment of the benchmarks' peers, which is made where it is missing.
test-torch: $(INSTALLED)
	MS_CE_TORCH_PYTHON=$$(PYTHONPATH=benchmarks python -c \
	  'import environment; print(environment.peer_python())' | tail -n 1) \
	  python -m pytest tests/integration/torch*_run.py

# The site, into build/site: open build/site/index.html. A warning is an error.
docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build

# Runs the notebooks of examples/ and writes their outputs and plots into them.
notebooks: $(INSTALLED)
	python -m pip install --quiet --group notebooks
	GLOG_v=3 python -m nbconvert --execute --to notebook --inplace examples/*.ipynb

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

$(INSTALLED): setup.py pyproject.toml ms_ce/_version.py $(KERNEL)
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	python -m pip install --quiet --upgrade pip
	python -m pip install --quiet --editable '.[demo,test,lint]'
	touch $@

$(DOCS)/.installed: pyproject.toml
	test -d $(DOCS) || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(DOCS)/bin/python -m pip install --quiet --group docs
	touch $@

$(RELEASE)/.installed: pyproject.toml
	test -d $(RELEASE) || $(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(RELEASE)/bin/python -m pip install --quiet --group release
	touch $@

clean:
	rm -rf $(VENV) $(RELEASE) $(DOCS) $(MINDFORMERS) $(MODELS) .venv-versions .venv-benchmarks build dist demo_output ops/libms_ce.so *.egg-info
