# The CUDA sources compiled for the CPU. Included by the Makefile; needs BUILD and Q.
#   EMU_OBJECTS        every cuda/*.cu and the emulator, as they run
#   EMU_CHECK_OBJECTS  the same, with every access to memory watched (races, bounds, uninitialised reads)
# Link with $(CXX) and $(EMU_LIBS); keep the symbol table (no strip): the emulator finds __shared__ variables in it.

CXX ?= g++
# -fvisibility=hidden also keeps two such libraries in one process from sharing their variables
EMU_CXXFLAGS += $(or $(EMU_OPT),-O2) -g -std=c++17 -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno
EMU_CXXFLAGS += -Wall -Wextra -Wpointer-arith -Wno-unknown-pragmas -Werror -Icuda -Icuda/emu -Icsrc
# The compiler's hooks before each access; they are ours (emu_check.cpp), no sanitizer library is linked.
EMU_WATCH := -DEMU_CHECK -fsanitize=thread -fsanitize=alignment,bounds,shift,integer-divide-by-zero
EMU_LIBS  := -pthread

EMU_SOURCES  := $(wildcard cuda/*.cu)
EMU_RUNTIME  := $(filter-out cuda/emu/emu_check%,$(wildcard cuda/emu/emu_*.cpp))
EMU_CHECKER  := $(wildcard cuda/emu/emu_*.cpp)
EMU_HEADERS  := $(wildcard cuda/*.cuh cuda/emu/*.h csrc/*.h)

EMU_OBJECTS       := $(EMU_SOURCES:cuda/%.cu=$(BUILD)/emu/%.o) $(EMU_RUNTIME:cuda/emu/%.cpp=$(BUILD)/emu/%.o)
EMU_CHECK_OBJECTS := $(EMU_SOURCES:cuda/%.cu=$(BUILD)/emu_check/%.o) \
                     $(EMU_CHECKER:cuda/emu/%.cpp=$(BUILD)/emu_check/%.o)

# $(1) directory, $(2) flags of the kernels, $(3) flags of the emulator
define emu_rules
$(BUILD)/$(1)/%.o: cuda/%.cu $(EMU_HEADERS) cuda/emu/emu.mk
	@mkdir -p $$(@D)
	@echo "  c++ $$< ($(1))"
	$$(Q)$$(CXX) $$(EMU_CXXFLAGS) $(2) -x c++ -c $$< -o $$@
$(BUILD)/$(1)/%.o: cuda/emu/%.cpp $(EMU_HEADERS) cuda/emu/emu.mk
	@mkdir -p $$(@D)
	@echo "  c++ $$< ($(1))"
	$$(Q)$$(CXX) $$(EMU_CXXFLAGS) $(3) -c $$< -o $$@
endef
$(eval $(call emu_rules,emu,,))
$(eval $(call emu_rules,emu_check,$(EMU_WATCH),-DEMU_CHECK))
