# Every target sets up what it needs: a fresh clone and one of these is enough.
#
#   make train    train a small model on the Python library's own source text, and let it write
#   make test     build everything, check layers and sizes, run all tests
#   make bench    the benchmarks
#   make soak     programs of Hugging Face's libraries, of several versions, under sherd (fetches them; an hour)
#   make build    the command: build/sherd
#   make lint     ruff on the Python sources, clang-format and clang-tidy on changed C++ ones (LINT=all for all of them)
#   make format   clang-format, in place
#   make asan     the C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer; ubsan: under the latter alone;
#                 tsan: those of the transports (not Gloo) under ThreadSanitizer
#   make matrix   the Python package built and tested beside each version of torch that it is for (MATRIX="2.11 2.15": these)
#   make clean    remove what was built (.venv stays)
.PHONY: train test bench soak build format lint asan ubsan tsan matrix clean setup
.DEFAULT_GOAL := build
.DELETE_ON_ERROR:

PYTHON = .venv/bin/python
TRAIN_RANKS = 2
RUN = runs/stdlib

setup:
	@scripts/setup.sh

build/build.ninja: CMakePresets.json CMakeLists.txt cmake/SherdTorch.cmake cmake/SherdLibraries.cmake cmake/SherdTargets.cmake | setup
	@cmake --preset default

build: setup build/build.ninja
	@cmake --build build --target sherd_cli example_shard_your_own

train: build
	build/sherd train examples/train_stdlib.json --ranks $(TRAIN_RANKS) --set output=$(RUN) \
	  --set "data.text=$$($(PYTHON) scripts/stdlib_sources.py)"
	@echo
	@echo "What the model writes after 'def ':"
	@build/sherd sample $(RUN) --prompt "$$(printf '\ndef ')" --max-tokens 400
	@echo
	@echo "The run folder is $(RUN)/: config.json, metrics.jsonl, loss.svg and the weights in model/"

test: setup build/build.ninja
	@cmake --build build
	@scripts/check_layers.py
	@scripts/check_size.py
	@scripts/check_architecture.py
	@$(PYTHON) -m pytest tests/python

# The kernels beside torch's, reduce-scatter against its bound, a step against compute alone, growth, and sherd beside its
# peers, about 15 minutes in all; BENCH="--engines all --models small,base --rounds 5" for more of the last. The others
# say at their heads how they measure more.
bench: setup
	@cmake --preset bench
	@cmake --build build --target sherd_cli sherd_python bench_kernels bench_reduce bench_step
	@benchmarks/peers/setup.sh
	@build/bench_kernels --benchmark_min_time=0.05
	@build/bench_reduce
	@build/bench_step --strategies zero3
	@$(PYTHON) benchmarks/optimizers.py --millions 4 --rounds 3
	@$(PYTHON) benchmarks/growth.py --quick
	@$(PYTHON) benchmarks/compare.py $(BENCH)

# SOAK: arguments of pytest, as SOAK="-k sft".
soak: setup
	@cmake --preset default
	@cmake --build build --target sherd_python
	@scripts/soak.sh $(SOAK)

# libtorch is not instrumented: leaks and races inside of it are suppressed, ours are not.
# Tests look at how a process ends by SIGSEGV.
asan: export ASAN_OPTIONS = detect_leaks=1:detect_stack_use_after_return=1:handle_segv=0
asan: export LSAN_OPTIONS = suppressions=$(CURDIR)/scripts/sanitizers/lsan.supp:print_suppressions=0
asan ubsan: export UBSAN_OPTIONS = halt_on_error=1:print_stacktrace=1
tsan: export TSAN_OPTIONS = halt_on_error=1:second_deadlock_stack=1:suppressions=$(CURDIR)/scripts/sanitizers/tsan.supp
tsan: export OMP_NUM_THREADS = 1
SANITIZED = # what to build and run, as asan SANITIZED="comm shard"; empty: all
asan ubsan: setup
	@cmake --preset $@
	@cmake --build build-$@ $(if $(SANITIZED),--target $(SANITIZED:%=test_%))
	@$(if $(SANITIZED),set -e; for name in $(SANITIZED); do build-$@/test_$$name; done,SHERD_BUILD=build-$@ $(PYTHON) -m pytest tests/python/test_cpp.py)
# ThreadSanitizer does not see how Gloo's threads, in a library without it, wait for each other.
tsan: setup
	@cmake --preset $@
	@cmake --build build-$@ --target test_comm
	@build-$@/test_comm '--gtest_filter=-*loo*:*C10d*:Ranks.*'

matrix: setup
	@scripts/matrix.sh

lint:
	@scripts/setup.sh clang-format-14 clang-tidy-14
	@cmake --preset lint >/dev/null
	@scripts/lint.sh $(LINT)

format:
	@scripts/setup.sh clang-format-14
	@git ls-files '*.h' '*.cpp' | xargs clang-format-14 -i

clean:
	rm -rf build build-asan build-ubsan build-tsan build-lint
