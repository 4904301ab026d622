# Everything is done in .venv, which the first target that needs it makes. Nothing is installed outside of this folder,
# but for Debian's packages that tests use, and these only for root.
PYTHON ?= python3

VENV := .venv
PY := $(VENV)/bin/python
SETTINGS := setup.cfg setup.py pyproject.toml
C_SOURCES := $(wildcard ipc/*.[ch] ipc/core/*.[ch])
# program:package or file:package, for what tests use and Python's packages don't bring
DEBIAN_TOOLS := spin:spin gdb:gdb ffmpeg:ffmpeg zsh:zsh valgrind:valgrind clang:clang \
        /usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a:libclang-rt-dev
AARCH64_TOOLS := aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu /usr/aarch64-linux-gnu/include/stdio.h:libc6-dev-arm64-cross \
        qemu-aarch64:qemu-user

# What leans on the interpreter: forks, threads, warnings, finalisers, imports, pickles, event loops, and what is like the
# standard library's. Half a minute a version; so of what is the same for two event loops or start methods, one.
CORE := $(patsubst %,tests/test_%.py,asyncio compat_multiprocessing errors exit functions futures imports inline map pool \
        start_methods) -k 'not uvloop and not forkserver'

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:  # two pips at once would spoil the venv
.PHONY: help run test suite core test-all core-all conformance lint bench micro guard build model tsan asan fuzz aarch64 \
        chaos faults soak proof peers clean debian-packages force

help: ## this list
	@sed -n 's/^\([a-z0-9.%-]*\):.*## \(.*\)/\1 \2/p' $(MAKEFILE_LIST) | while read -r name text; do printf '  %-11s %s\n' "$$name" "$$text"; done

run: $(VENV)/.extra-examples ## make thumbnails of real photographs with the pool
	$(PY) examples/thumbnails.py

test: $(VENV)/.extra-test $(VENV)/.extra-examples debian-packages lint suite ## lint, then all tests

suite: $(VENV)/.extra-test $(VENV)/.extra-examples debian-packages ## all tests
	$(PY) -m pytest

core: $(VENV)/.extra-core ## the tests of what may differ between versions of Python
	$(PY) -m pytest $(CORE)

test-3.%: build/3.% ## all tests on another Python that is installed: make test-3.12
	$(MAKE) -C $< suite PYTHON="$$($(PYTHON) tests/interpreters.py 3.$*)"

core-3.%: build/3.% ## the same of core
	$(MAKE) -C $< core PYTHON="$$($(PYTHON) tests/interpreters.py 3.$*)"

test-all: test ## test, then test-3.x for all others that are installed and supported
	@$(call ON_OTHERS,test)

core-all: ## core-3.x for all others that are installed and supported
	@$(call ON_OTHERS,core)

conformance: $(VENV)/.extra-test debian-packages ## the tests of multiprocessing and of ProcessPoolExecutor against ours
	$(PY) tests/conformance.py

lint: $(VENV)/.extra-lint ## ruff, mypy and the floors of the imports
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy --strict pool ipc
	$(VENV)/bin/lint-imports

bench: $(VENV)/.extra-bench ## compare with other pools (ARGS=--quick: three minutes; ARGS=--save: into benchmarks/results)
	@$(MAKE) -s $(VENV)/.extra-bench-large || echo 'dask and ray do not install here: compared without them' >&2
	$(PY) -m benchmarks $(ARGS)

micro: $(VENV)/.extra-bench debian-packages ## count the instructions of each step (callgrind)
	$(PY) -m benchmarks micro

guard: $(VENV)/.extra-bench debian-packages ## has something become slower? by instructions, and by ratios within a run
	$(PY) -m benchmarks guard

build: $(VENV)/.built ## the extension and an editable install (POOL_DEBUG=1, POOL_WERROR=1, POOL_SANITIZE=...: see setup.py)

model: debian-packages ## explore the orders of memory in the core, check the models of the protocol with spin
	$(PYTHON) ipc/model/orders.py
	$(PYTHON) ipc/model/run.py

tsan: ## C tests under the thread sanitizer
	$(MAKE) -C tests/c run-tsan

asan: ## C tests under the address and undefined behaviour sanitizers
	$(MAKE) -C tests/c run-asan

fuzz: $(VENV)/.built debian-packages ## readers of shared memory under libFuzzer and sanitizers (SECONDS=60)
	$(MAKE) -C tests/c run-fuzz PYTHON=$(abspath $(PY)) SECONDS=$(or $(SECONDS),60)

aarch64: DEBIAN_TOOLS := $(AARCH64_TOOLS)
proof: DEBIAN_TOOLS += $(AARCH64_TOOLS)
aarch64: debian-packages ## C tests as an aarch64 build under qemu: logic and layout, not the order of memory
	$(MAKE) -C tests/c run-aarch64

chaos: $(VENV)/.extra-test ## random faults, judged from outside (SEED=... SECONDS=60 SUMS=file that goes on growing; REPLAY=...)
	PYTHONPATH=tests $(PY) -m chaos $(if $(REPLAY),--replay $(REPLAY)) $(if $(SEED),--seed $(SEED)) --seconds $(or $(SECONDS),60) $(if $(SUMS),--sums $(SUMS))

faults: $(VENV)/.extra-test debian-packages ## the tests that docs/reliability.md names, many times longer, and all planted bugs
	CI=true POOL_LONG=1 $(PY) -m pytest -o faulthandler_timeout=1190 $(addprefix tests/,$(shell grep -o 'test_[a-z_]*\.py::[a-z0-9_]*' docs/reliability.md | sort -u))
	PYTHONPATH=tests $(PY) -m chaos.planted

soak: $(VENV)/.extra-test ## one pool under load and kills for SECONDS=600: does anything grow?
	PYTHONPATH=tests $(PY) -m chaos.soak --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED))

proof: $(VENV)/.extra-test $(VENV)/.extra-bench debian-packages ## all of that, and the table in docs/reliability.md (ARGS=--help: how much, which parts)
	PYTHONPATH=tests $(PY) -m chaos.proof $(if $(SEED),--seed $(SEED)) $(ARGS)

peers: $(VENV)/.extra-bench ## what other pools make of killed workers (KILLS=1000)
	PYTHONPATH=tests $(PY) -m chaos.peers --kills $(or $(KILLS),1000)

clean: ## remove all that make has made
	rm -rf $(VENV) build dist *.egg-info ipc/*.so .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	if [ -f tests/c/Makefile ]; then $(MAKE) -C tests/c clean; fi

# A copy of all this, with a .venv and an extension of its own: so no version disturbs another one.
.PRECIOUS: build/3.%
build/3.%: force
	@$(PYTHON) tests/interpreters.py 3.$* >/dev/null
	@mkdir -p $@
	@find $@ -type f ! -path '$@/.venv/*' ! -path '$@/build/*' ! -name '*.so' -delete
	@tar -c --exclude-vcs --exclude='./.venv' --exclude='./build' --exclude='*.so' --exclude=__pycache__ . | tar -x -C $@

# One after the other, all of them even if one fails; the table of what was found comes last, where it is read.
define ON_OTHERS
failed=; for version in $$($(PYTHON) tests/interpreters.py --others); do \
    $(MAKE) $(1)-$$version || failed="$$failed $$version"; done; \
$(PYTHON) tests/interpreters.py; \
if [ -n "$$failed" ]; then echo "failed with:$$failed" >&2; exit 1; fi
endef

# The checks come first, so that what is missing is said in one line, not in a page of somebody else's errors.
$(VENV)/.made:
	@"$(PYTHON)" -c '' 2>/dev/null || { echo "$(PYTHON) is not there or does not run; choose with make PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $(PYTHON) is $$("$(PYTHON)" -V); choose with make PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "the venv module of $(PYTHON) is missing (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@cc=$${CC:-$$("$(PYTHON)" -c 'import sysconfig; print(sysconfig.get_config_var("CC") or "cc")')}; \
	  command -v "$${cc%% *}" >/dev/null || \
	  { echo "no C compiler: $${cc%% *} not found (Debian: apt-get install gcc libc6-dev; or set CC)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || \
	  { echo "Python.h of $(PYTHON) is missing (Debian: apt-get install python3-dev)" >&2; exit 1; }
	"$(PYTHON)" -m venv --clear $(VENV)
	$(PY) -m pip install -qq --upgrade pip 'setuptools>=80'
	@touch $@

# --no-build-isolation: the setuptools of the venv builds, not a fresh download for each change of a C file.
# -qq: setuptools prints a page about editable installs otherwise; errors are still shown.
$(VENV)/.built: $(VENV)/.made $(VENV)/.flags $(SETTINGS) $(C_SOURCES)
	$(PY) -m pip install -qq --no-build-isolation --editable .
	@touch $@

$(VENV)/.extra-%: $(SETTINGS) | $(VENV)/.built
	$(PY) -m pip install -qq --no-build-isolation --editable '.[$*]'
	@touch $@

# Written only when they differ from last time, which makes the extension out of date.
$(VENV)/.flags: $(VENV)/.made force
	@flags="$(POOL_DEBUG)/$(POOL_SANITIZE)/$(POOL_WERROR)"; [ "$$flags" = "$$(cat $@ 2>/dev/null)" ] || echo "$$flags" >$@

# Tests that miss a program are skipped, and fail in CI; so this target only says what to do, and never fails itself.
debian-packages:
	@missing=; for tool in $(DEBIAN_TOOLS); do program=$${tool%%:*}; \
	  case $$program in /*) ls $$program;; *) command -v $$program;; esac >/dev/null 2>&1 || missing="$$missing $${tool##*:}"; done; \
	missing="$$missing $$("$(PYTHON)" -c "$$TESTS_OF_PYTHON")"; missing=$$(echo $$missing); \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -q; \
	  for package in $$missing; do \
	    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$package || \
	    echo "could not install: $$package" >&2; done; \
	else echo "missing, so tests are skipped (in CI they fail); install as root: apt-get install $$missing" >&2; fi

# Prints the package that has the tests of Python, if this Python came without them. They are looked for as conformance.py
# does.
define TESTS_OF_PYTHON
import importlib.util, sysconfig, test
version = sysconfig.get_python_version()
test.__path__.append(f"/usr/lib/python{version}/test")
if not importlib.util.find_spec("test.test_concurrent_futures"):
    print(f"libpython{version}-testsuite")
endef
export TESTS_OF_PYTHON
