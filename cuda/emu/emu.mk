# The CUDA sources compiled for the CPU. Included by other makefiles, which set BUILD and Q.
#   $(eval $(call emu_rules,directory,flags of kernels,flags of the emulator))
#                   rules for $(BUILD)/directory/*.o, from cuda/*.cu and cuda/emu/*.cpp
#   EMU_RUNTIME     the emulator's files; EMU_CHECKER those of the checked build, in which every access to memory is
#                   watched (races, bounds, uninitialised reads): its flags are $(EMU_WATCH) and -DEMU_CHECK
# Link with $(CXX) and $(EMU_LIBS); keep the symbol table (no strip): the emulator finds __shared__ variables in it.

CXX ?= g++
# -fvisibility=hidden also keeps two such libraries in one process from sharing their variables
EMU_CXXFLAGS += $(or $(EMU_OPT),-O2) $(or $(DEBUG),-g1) -std=c++17 -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno
EMU_CXXFLAGS += -Wall -Wextra -Wpointer-arith -Wno-unknown-pragmas -Werror -Icuda -Icuda/emu -Icsrc
# The compiler's hooks before each access; they are ours (emu_check.cpp), no sanitizer library is linked.
EMU_WATCH := -DEMU_CHECK $(addprefix -fsanitize=,thread alignment bounds shift integer-divide-by-zero)
EMU_LIBS  := -pthread -Wl,-z,defs

EMU_RUNTIME := $(filter-out cuda/emu/emu_check%,$(wildcard cuda/emu/emu_*.cpp))
EMU_CHECKER := $(wildcard cuda/emu/emu_*.cpp)
# each object's .d names the headers that it was made of
WRITE_D = -MMD -MP -MF $(basename $@).d -MT $@

# In the checked build every variable of a function is followed by 64 bytes that are no variable's, so that running from
# one __shared__ array into the next is seen: after the label _ZZ..., ".zero 256" becomes ".zero 256+64".
EMU_APART := sed '/^_ZZ.*:$$/{n;s/\(\.zero[[:space:]][0-9]*\)$$/\1+64/;}'

# how a .cu becomes an object: $(1) its flags
emu_compile = $(CXX) $(EMU_CXXFLAGS) $(1) $(WRITE_D) -x c++ $(if $(findstring EMU_CHECK,$(1)),$(emu_apart),-c $< -o $@)
emu_apart   = -S $< -o $(@:.o=.s) && $(EMU_APART) $(@:.o=.s) | $(CXX) -x assembler -c - -o $@

define emu_rules
-include $(wildcard $(BUILD)/$(1)/*.d)
$(BUILD)/$(1)/%.o: cuda/%.cu cuda/emu/emu.mk
	@mkdir -p $$(@D)
	@echo "  c++ $$< ($(1))"
	$$(Q)$$(call emu_compile,$(2))
$(BUILD)/$(1)/%.o: cuda/emu/%.cpp cuda/emu/emu.mk
	@mkdir -p $$(@D)
	@echo "  c++ $$< ($(1))"
	$$(Q)$$(CXX) $$(EMU_CXXFLAGS) $(3) $$(WRITE_D) -c $$< -o $$@
endef
