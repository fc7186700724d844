# pyllmc. `make help` lists the targets.
#
#   make demo    all set-up, then train the default model on stories it can check, and read what it writes
#   make test    all set-up, then the whole suite
#   make         the engine alone: libpyllmc.so, ./train_gpt2 and ./chat_gpt2 (gcc and make suffice)

.DEFAULT_GOAL := all
# make uses every core, unless -j says otherwise
CORES := $(shell nproc 2>/dev/null || echo 2)
ifeq ($(filter -j%,$(MAKEFLAGS)),)
MAKEFLAGS += -j$(CORES)
endif
BUILD  ?= build
# `make Q=` shows the commands
Q      ?= @
comma  := ,
PYTHON ?= python3
LIB      := pyllmc/lib/libpyllmc.so
PROGRAMS := train_gpt2 chat_gpt2
ifneq ($(BUILD),build)
LIB      := $(BUILD)/libpyllmc.so
PROGRAMS := $(PROGRAMS:%=$(BUILD)/%)
endif

# -ffp-contract=fast fuses a*b+c; it neither reorders nor drops anything, unlike -ffast-math, which we never use
# (it made llm.c's GELU NaN and puts the whole process into flush-to-zero). -march=native is never used, because the library
# itself chooses an instruction set when it runs.
OPT    ?= -O3
# -g1 is what a backtrace shows; with all of -g the compiler takes twice as long. For a debugger: make DEBUG=-g
DEBUG  ?= -g1
CFLAGS += $(OPT) $(DEBUG) -std=gnu11 -fPIC -fvisibility=hidden -ffp-contract=fast -fno-math-errno -fno-trapping-math
CFLAGS += -Wall -Wextra -Wshadow -Wpointer-arith -Wstrict-prototypes -Wmissing-prototypes -Wundef -Wvla -Werror
CFLAGS += -Icsrc $(EXTRA)
# for a system without threads: make EXTRA=-DNO_THREADS THREADS=
THREADS ?= -pthread
# BLAS is a library for the fp32 products: its name, as in make BLAS=openblas, or a path. BLAS_PREFIX begins the names of its
# functions.
ifneq ($(BLAS),)
CFLAGS  += -DBLAS_SGEMM=$(BLAS_PREFIX)cblas_sgemm -DBLAS_NAME=$(notdir $(BLAS))
LDFLAGS += $(if $(findstring /,$(BLAS)),$(BLAS) -Wl$(comma)-rpath$(comma)$(dir $(BLAS)),-l$(BLAS))
endif
MACHINE := $(shell $(CC) -dumpmachine 2>/dev/null)

# One source is compiled for several instruction sets, which csrc/cpu/isas.def lists. ISAS are those of this machine, best
# first; ISA_avx2 holds the flags of avx2, and so on.
# The parts of a row between quotation marks are its machines (2), elements (4) and flags (6).
ROWS     := sed -n 's/^SET(\([a-z0-9_]*\)[^"]*\(.*\)/\1\2/p' csrc/cpu/isas.def
ISAS     := $(shell $(ROWS) | awk -F'"' -v of=$(firstword $(subst -, ,$(MACHINE)) none) 'index(" "$$2" ", " "of" ") {print $$1}')
ISAS     := $(or $(ISAS),generic)
isa_part  = $(shell $(ROWS) | awk -F'"' '$$1 == "$(1)" {print $$$(2)}')
# The name of another set stands for the flags of that set.
isa_flags = $(foreach flag,$(call isa_part,$(1),6),$(if $(filter -%,$(flag)),$(flag),$(call isa_flags,$(flag))))
# zig writes an architecture as a CPU and its features.
spelled   = $(if $(findstring zig,$(CC)),$(patsubst -march=armv8.2-a+%,-mcpu=generic+v8_2a+%,$(1)),$(1))
$(foreach isa,$(ISAS),$(eval ISA_$(isa) := $(call spelled,$(call isa_flags,$(isa)))))
# A compiler that is too old for a set's flags leaves that set out; gcc 10 has no AMX.
accepted = $(if $(ISA_$(1)),$(shell $(CC) $(ISA_$(1)) -E -x c /dev/null > /dev/null 2>&1 && echo $(1)),$(1))
ISAS := $(foreach isa,$(ISAS),$(call accepted,$(isa)))
# The builds of the kernels: avx2_fp32, avx2_bf16 and so on. The flags of avx2_fp32 are ISA_avx2 and ELEMENT_fp32.
ELEMENTS     := fp32 bf16
ELEMENT_fp32 := -DELEMENT=fp32 -DFLOATX_FP32
ELEMENT_bf16 := -DELEMENT=bf16 -DFLOATX_BF16
ISA_BUILDS   := $(foreach isa,$(ISAS),$(addprefix $(isa)_,$(call isa_part,$(isa),4)))

KERNELS := $(filter-out reference memory dispatch,$(patsubst csrc/cpu/%.c,%,$(wildcard csrc/cpu/*.c)))
# The library consists of all rooms of csrc/ except cpu and programs; tests/house/test_house.py has the order of the rooms.
ENGINE  := $(filter-out cpu/% programs/% main chat_,$(patsubst csrc/%.c,%,$(wildcard csrc/*.c csrc/*/*.c)))
# Python reads these files as text. The library carries their checksum, so that a stale build is noticed.
TABLES  := csrc/kernels.h csrc/pyllmc.h csrc/frontends.h csrc/tensors.def csrc/options.def csrc/models.def csrc/devices.def
OBJECTS := $(ENGINE:%=$(BUILD)/%.o) $(BUILD)/cpu/memory.o $(BUILD)/cpu/dispatch.o \
           $(ELEMENTS:%=$(BUILD)/reference_%/reference.o) $(foreach build,$(ISA_BUILDS),$(KERNELS:%=$(BUILD)/$(build)/%.o))
# EACH_BUILD(X) becomes X(avx512_fp32) X(avx512_bf16) X(avx2_fp32) and so on.
each_build  = X($(1))
EACH_BUILD := -D'EACH_BUILD(X)=$(foreach build,$(ISA_BUILDS) $(ELEMENTS:%=reference_%),$(call each_build,$(build)))'

# $(BUILD)/flags holds all flags, so that other flags make a new build: the file is written only if they differ from those in it.
write_flags = @mkdir -p $(@D); echo "$(subst ",\",$(1))" | cmp -s - $@ || echo "$(subst ",\",$(1))" > $@
FLAGS := $(CC) $(CFLAGS) $(THREADS) $(EACH_BUILD) $(LDFLAGS)
NO_CC   = there is no C compiler called $(CC): install one, e.g. apt-get install gcc, or say which: make CC=clang
NO_BLAS = there is no library $(BLAS) with $(BLAS_PREFIX)cblas_sgemm: $(if $(findstring /,$(BLAS)),give another path,apt-get \
	install lib$(BLAS)-dev$(comma) or give its path)
$(BUILD)/flags: FORCE
	@$(if $(MACHINE),:,echo "$(NO_CC)" >&2; exit 2)
	@$(if $(BLAS),echo 'int $(BLAS_PREFIX)cblas_sgemm(void); int main(void) { return $(BLAS_PREFIX)cblas_sgemm(); }' | \
		$(CC) -xc - -xnone -o /dev/null $(LDFLAGS) 2>/dev/null || { echo "$(NO_BLAS)" >&2; exit 2; },:)
	$(call write_flags,$(FLAGS))
FORCE:

all: $(LIB) $(PROGRAMS) ## the engine: the library, ./train_gpt2 and ./chat_gpt2

$(filter %train_gpt2,$(PROGRAMS)): $(BUILD)/programs/train_gpt2.o
$(filter %chat_gpt2,$(PROGRAMS)): $(BUILD)/programs/chat_gpt2.o
$(PROGRAMS): $(BUILD)/programs/terminal.o $(OBJECTS)
	@echo "  ld $@"
	$(Q)$(CC) $(THREADS) -o $@ $^ -lm $(LDFLAGS)

# nodelete: a program that unloads the library must not remove the code of threads that still sleep in it
$(LIB): $(OBJECTS)
	@mkdir -p $(@D)
	@echo "  ld $@"
	$(Q)$(CC) -shared $(THREADS) -o $@ $(OBJECTS) -lm $(LDFLAGS) -Wl,-z,nodelete
	$(Q)cp $(TABLES) $(@D)

$(BUILD)/base/error.o: $(TABLES) pyproject.toml
TABLES_FLAG = -D'TABLES_CKSUM="$(firstword $(shell cat $(TABLES) | cksum))"' \
              -D'VERSION="$(shell sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml)"'
$(BUILD)/base/error.o: CFLAGS += $(TABLES_FLAG)

# WRITE_D (cuda/emu/emu.mk) makes the compiler note the headers of each object in a .d file, which make reads the next time.
-include $(wildcard $(BUILD)/*.d $(BUILD)/*/*.d)

$(BUILD)/%.o: csrc/%.c $(BUILD)/flags Makefile
	@mkdir -p $(@D)
	@echo "  cc $<"
	$(Q)$(CC) $(CFLAGS) $(THREADS) $(EACH_BUILD) $(WRITE_D) -c $< -o $@

define rule_for_build
$(BUILD)/$(1)_$(2)/%.o: csrc/cpu/%.c $(BUILD)/flags Makefile
	@mkdir -p $$(@D)
	@echo "  cc $$< ($(1), $(2))"
	$$(Q)$$(CC) $$(CFLAGS) $$(THREADS) $$(ISA_$(1)) -DISA=$(1) $$(ELEMENT_$(2)) $$(WRITE_D) -c $$< -o $$@
endef
$(foreach isa,$(ISAS) reference,$(foreach element,$(ELEMENTS),$(eval $(call rule_for_build,$(isa),$(element)))))

include cuda/cuda.mk

# ---- Python: .venv holds the package and what it needs; the demo needs far less than the tests ----

VENV := .venv/bin

$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 9))' || \
		{ echo "pyllmc needs Python >= 3.9; say which: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -m venv .venv || \
		{ rm -rf .venv; echo "no virtual environment could be made: apt-get install python3-venv" >&2; exit 2; }
	@touch $@

.venv/demo.done: pyproject.toml | $(VENV)/python
	PYLLMC_DEVICES= $(VENV)/pip install --quiet --editable '.[plot]'
	@touch $@

# torch is installed first and pinned, because the figures were made with this version (it needs Python >= 3.10)
.venv/setup.done: pyproject.toml | $(VENV)/python
	@$(VENV)/python -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "the tests' PyTorch needs Python >= 3.10: rm -r .venv, then make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	$(VENV)/pip install --quiet torch==2.13.0
	PYLLMC_DEVICES= $(VENV)/pip install --quiet --editable '.[dev]'
	@touch $@ .venv/demo.done

setup: .venv/setup.done all ## .venv with the package and its development extras

RUN := runs/demo
demo: .venv/demo.done all ## train the default model on stories, draw the curve, let it write, and grade what it wrote
	$(VENV)/python -m pyllmc.train --out=$(RUN) --overwrite
	$(VENV)/python -m pyllmc.grade $(RUN)

test: setup emu lint ## the whole suite, on every instruction set this machine has
	$(PYTEST_RUN) -n $(CORES) --dist loadfile $(PYTEST)
# Tests run make themselves and must not inherit the variables of this one. They start Python hundreds of times, which is quicker
# if it keeps what it compiles.
PYTEST_RUN := env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL -u PYTHONDONTWRITEBYTECODE OMP_WAIT_POLICY=passive $(VENV)/python -m pytest

paths: setup emu ## the parity tests with PyTorch on other CPUs' code paths, and with the most exact one there could be
	env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL $(VENV)/python tests/paths.py

lint: .venv/setup.done ## style and types: ruff, mypy, clang-format
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy
	$(VENV)/clang-format --dry-run -Werror $(C_FILES)

fmt: .venv/setup.done ## format every file
	$(VENV)/ruff check --fix --quiet .
	$(VENV)/ruff format .
	$(VENV)/clang-format -i $(C_FILES)
C_FILES = $(wildcard csrc/*.[ch] csrc/*/*.[ch] cuda/*.cu cuda/*.cuh cuda/emu/*.cu cuda/emu/*.h cuda/emu/*.cpp dev/*.cu tests/fuzz/*.[ch] tests/*.c)

bench: setup ## measure this engine, its peers and the machine's limits in one run, e.g. make bench BENCH="--rows steps"
	$(VENV)/python dev/bench.py $(BENCH)

# Leaks are not looked for, because Python itself holds memory at exit.
asan: .venv/setup.done ## the engine's tests under AddressSanitizer and UndefinedBehaviorSanitizer
	$(MAKE) BUILD=build/asan OPT=-O1 EXTRA='-fsanitize=address,undefined -fno-sanitize-recover=undefined' \
		LDFLAGS='-fsanitize=address,undefined'
	ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" \
		PYLLMC_LIB=$(CURDIR)/build/asan/libpyllmc.so $(PYTEST_RUN) $(PYTEST)

# threads.c finds races in the pool, and Python with the library finds them in the whole engine. -R is there because some
# kernels place memory at addresses that gcc's ThreadSanitizer does not expect.
TSAN_TESTS ?= tests/model/test_model.py tests/model/test_model_steps.py tests/train/test_trainer.py tests/train/test_resume.py tests/model/test_generate.py tests/kernels/test_attention.py tests/kernels/test_matmul.py
TSAN_RUN   := setarch -R env TSAN_OPTIONS="halt_on_error=1 ignore_noninstrumented_modules=1 $(TSAN_OPTIONS)"
tsan: .venv/setup.done ## the engine's threads under ThreadSanitizer: loops, models side by side, then tests of the engine
	$(MAKE) BUILD=build/tsan OPT=-O1 EXTRA=-fsanitize=thread LDFLAGS=-fsanitize=thread all build/tsan/threads
	for what in pool model "refused 2"; do $(TSAN_RUN) build/tsan/threads $$what || exit; done
	LD_PRELOAD="$$($(CC) -print-file-name=libtsan.so)" PYLLMC_LIB=$(CURDIR)/build/tsan/libpyllmc.so \
		$(TSAN_RUN) $(PYTEST_RUN) $(TSAN_TESTS) $(PYTEST)

# This program of the tests runs the engine's threads without Python.
$(BUILD)/threads: tests/threads.c $(OBJECTS)
	@echo "  ld $@"
	$(Q)$(CC) $(CFLAGS) $(THREADS) -o $@ $^ -lm $(LDFLAGS) -Wl,--wrap=pthread_create

# This one compares instruction sets, those of another machine under an emulator.
$(BUILD)/sets: tests/sets.c $(OBJECTS)
	@echo "  ld $@"
	$(Q)$(CC) $(CFLAGS) $(THREADS) -o $@ $^ -lm $(LDFLAGS)

# The same with a race detector in the threads alone, because that is quick to build.
TSAN_ALONE := tests/threads.c csrc/base/pool.c csrc/base/cores.c
$(BUILD)/threads_tsan: $(TSAN_ALONE) $(filter-out $(BUILD)/base/pool.o $(BUILD)/base/cores.o,$(OBJECTS))
	@echo "  ld $@"
	$(Q)$(CC) $(CFLAGS) $(THREADS) -fsanitize=thread -o $@ $^ -lm $(LDFLAGS) -Wl,--wrap=pthread_create

# ---- fuzzing: a program per parser, linked to libFuzzer or, in the suite, to $(BUILD)/driver.o ----

FUZZ_SECONDS ?= 60
FUZZ_MAIN    ?= -fsanitize=fuzzer
# Compared numbers guide a fuzzer if a format has numbers to guess; elsewhere they only cost time. Files that compute cost
# most, so one sanitizer watches them (an id beyond a table, a text beyond its room) instead of both.
FORMATS  := base/binfile model/config data/dataloader files/formats files/llmcfile files/load files/modelfile train/schedule files/tfbundle files/tfindex text/tokenizer base/utf8 text/vocabbpe data/windows
COMPUTES := reference_fp32/reference model/decode write/generate model/gpt2 model/batch model/layers write/sampler
$(filter-out $(FORMATS:%=$(BUILD)/%.o),$(OBJECTS)) $(BUILD)/fuzz%.o: CFLAGS += $(UNGUIDED)
$(COMPUTES:%=$(BUILD)/%.o): CFLAGS += $(COMPUTING)
$(BUILD)/%.o: tests/fuzz/%.c $(BUILD)/flags Makefile
	@mkdir -p $(@D)
	@echo "  cc $<"
	$(Q)$(CC) $(CFLAGS) $(WRITE_D) -c $< -o $@

.PRECIOUS: $(BUILD)/%.o
$(BUILD)/fuzz_%: $(BUILD)/fuzz_%.o $(BUILD)/fuzz.o $(filter %.o,$(FUZZ_MAIN)) $(OBJECTS)
	@echo "  ld $@"
	$(Q)$(CC) $(THREADS) -o $@ $^ -lm $(LDFLAGS) $(filter-out %.o,$(FUZZ_MAIN))

fuzz: ## every parser on FUZZ_SECONDS=60 of inputs each that libFuzzer makes up, or FUZZ_RUNS=1000000; needs clang
	env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL $(PYTHON) tests/fuzz/run.py \
		$(if $(FUZZ_RUNS),--executions=$(FUZZ_RUNS),--seconds=$(FUZZ_SECONDS)) $(FUZZ)

clean: ## everything built, but not .venv, data or runs
	rm -rf $(BUILD) pyllmc/lib train_gpt2 chat_gpt2 train_gpt2_cuda

help: ## this list
	@sed -n 's/^\([a-z_-]*\):.*## /  make \1	/p' Makefile cuda/cuda.mk

.PHONY: FORCE all setup demo test paths lint fmt bench asan tsan fuzz clean help
