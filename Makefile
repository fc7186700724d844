# pyllmc. `make help` lists the targets.
#
#   make demo    all set-up, then train the default model on stories it can check, and read what it writes
#   make test    all set-up, then the whole suite
#   make         the engine alone: libpyllmc.so and ./train_gpt2 (gcc and make suffice)

.DEFAULT_GOAL := all
BUILD  ?= build
# make Q= shows the commands
Q      ?= @
PYTHON ?= python3
LIB    := pyllmc/lib/libpyllmc.so
ifneq ($(BUILD),build)
LIB    := $(BUILD)/libpyllmc.so
endif

# -ffp-contract=fast fuses a*b+c; it neither reorders nor drops anything, unlike -ffast-math, which we never use
# (it made llm.c's GELU NaN and puts the whole process into flush-to-zero). -march=native never: the library picks.
OPT    ?= -O3
CFLAGS += $(OPT) -g -std=gnu11 -fPIC -fvisibility=hidden -ffp-contract=fast -fno-math-errno -fno-trapping-math
CFLAGS += -Wall -Wextra -Wshadow -Wpointer-arith -Wstrict-prototypes -Wmissing-prototypes -Wundef -Wvla -Werror
CFLAGS += $(EXTRA)
OPENMP ?= $(shell echo 'int main(void){return 0;}' | $(CC) -fopenmp -xc - -o /dev/null 2>/dev/null && echo -fopenmp)
ifeq ($(OPENMP),)
CFLAGS += -Wno-unknown-pragmas
endif
MACHINE := $(shell $(CC) -dumpmachine)

# one source, several instruction sets; best first
ifneq ($(filter x86_64%,$(MACHINE)),)
ISAS := avx512 avx2 generic
else ifneq ($(filter aarch64% arm64%,$(MACHINE)),)
ISAS := neon
else
ISAS := generic
endif
ISA_avx512 := -march=x86-64-v4 -mprefer-vector-width=512
ISA_avx2   := -mavx2 -mfma

KERNELS := $(filter-out reference memory dispatch,$(patsubst csrc/cpu/%.c,%,$(wildcard csrc/cpu/*.c)))
ENGINE  := $(filter-out main,$(patsubst csrc/%.c,%,$(wildcard csrc/*.c)))
HEADERS := $(wildcard csrc/*.h csrc/*.def csrc/cpu/*.h)
OBJECTS := $(ENGINE:%=$(BUILD)/%.o) $(BUILD)/cpu/reference.o $(BUILD)/cpu/memory.o $(BUILD)/cpu/dispatch.o \
           $(foreach isa,$(ISAS),$(KERNELS:%=$(BUILD)/$(isa)/%.o))
# EACH_ISA(X): X(avx512) X(avx2) X(generic) X(reference)
each_isa  = X($(1))
EACH_ISA := -D'EACH_ISA(X)=$(foreach isa,$(ISAS) reference,$(call each_isa,$(isa)))'

all: $(LIB) ## the engine: the library and ./train_gpt2
ifneq ($(wildcard csrc/main.c),)
all: train_gpt2
train_gpt2: $(BUILD)/main.o $(LIB)
	@echo "  ld $@"
	$(Q)$(CC) $(OPENMP) -o $@ $(BUILD)/main.o $(OBJECTS) -lm $(LDFLAGS)
endif

$(LIB): $(OBJECTS)
	@mkdir -p $(@D)
	@echo "  ld $@"
	$(Q)$(CC) -shared $(OPENMP) -o $@ $(OBJECTS) -lm $(LDFLAGS)

$(BUILD)/%.o: csrc/%.c $(HEADERS) Makefile
	@mkdir -p $(@D)
	@echo "  cc $<"
	$(Q)$(CC) $(CFLAGS) $(OPENMP) $(EACH_ISA) -c $< -o $@

define rule_for_isa
$(BUILD)/$(1)/%.o: csrc/cpu/%.c $(HEADERS) Makefile
	@mkdir -p $$(@D)
	@echo "  cc $$< ($(1))"
	$$(Q)$$(CC) $$(CFLAGS) $$(OPENMP) $$(ISA_$(1)) -DISA=$(1) -c $$< -o $$@
endef
$(foreach isa,$(ISAS),$(eval $(call rule_for_isa,$(isa))))

clean: ## everything built, but not .venv, data or runs
	rm -rf $(BUILD) pyllmc/lib train_gpt2

help: ## this list
	@sed -n 's/^\([a-z_]*\):.*## /  make \1	/p' $(MAKEFILE_LIST)

.PHONY: all clean help
