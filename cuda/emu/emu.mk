# The CUDA sources compiled for the CPU. Included by the Makefile; needs BUILD and Q.
#   EMU_OBJECTS        every cuda/*.cu and the emulator, as they run
#   EMU_CHECK_OBJECTS  the same, with every access to memory watched (races, bounds, uninitialised reads)
# Link with $(CXX) and $(EMU_LIBS); keep the symbol table (no strip): the emulator finds __shared__ variables in it.

CXX ?= g++
# -fvisibility=hidden also keeps two such libraries in one process from sharing their variables
EMU_CXXFLAGS += $(or $(EMU_OPT),-O2) -g -std=c++17 -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno
EMU_CXXFLAGS += -Wall -Wextra -Wpointer-arith -Werror -Icuda -Icuda/emu -Icsrc
# The compiler's hooks before each access; they are ours (emu_check.cpp), no sanitizer library is linked.
EMU_WATCH := -DEMU_CHECK -fsanitize=thread -fsanitize=alignment,bounds,shift,integer-divide-by-zero
EMU_LIBS  := -pthread

EMU_SOURCES  := $(wildcard cuda/*.cu)
EMU_RUNTIME  := $(filter-out cuda/emu/emu_check%,$(wildcard cuda/emu/emu_*.cpp))
EMU_CHECKER  := $(wildcard cuda/emu/emu_*.cpp)
EMU_HEADERS  := $(wildcard cuda/*.cuh cuda/emu/*.h csrc/*.h)

EMU_RUNTIME_OBJECTS := $(EMU_RUNTIME:cuda/emu/%.cpp=$(BUILD)/emu/%.o)
EMU_CHECKER_OBJECTS := $(EMU_CHECKER:cuda/emu/%.cpp=$(BUILD)/emu_check/%.o)
EMU_OBJECTS         := $(EMU_SOURCES:cuda/%.cu=$(BUILD)/emu/%.o) $(EMU_RUNTIME_OBJECTS)
EMU_CHECK_OBJECTS   := $(EMU_SOURCES:cuda/%.cu=$(BUILD)/emu_check/%.o) $(EMU_CHECKER_OBJECTS)

# In the checked build every function's own variable is followed by 64 bytes that are no variable's, so that running
# from one __shared__ array into the next is seen: after the label _ZZ..., ".zero 256" becomes ".zero 256+64".
EMU_APART := sed '/^_ZZ.*:$$/{n;s/\(\.zero[[:space:]][0-9]*\)$$/\1+64/;}'

# how a .cu becomes an object
emu_compile         = $(CXX) $(EMU_CXXFLAGS) -x c++ -c $< -o $@
emu_compile_checked = $(CXX) $(EMU_CXXFLAGS) $(EMU_WATCH) -x c++ -S $< -o $(@:.o=.s) && \
                      $(EMU_APART) $(@:.o=.s) | $(CXX) -x assembler -c - -o $@

$(BUILD)/emu/%.o: cuda/%.cu $(EMU_HEADERS) cuda/emu/emu.mk
	@mkdir -p $(@D)
	@echo "  c++ $< (emu)"
	$(Q)$(emu_compile)
$(BUILD)/emu_check/%.o: cuda/%.cu $(EMU_HEADERS) cuda/emu/emu.mk
	@mkdir -p $(@D)
	@echo "  c++ $< (emu_check)"
	$(Q)$(emu_compile_checked)
$(BUILD)/emu/%.o: cuda/emu/%.cpp $(EMU_HEADERS) cuda/emu/emu.mk
	@mkdir -p $(@D)
	@echo "  c++ $< (emu)"
	$(Q)$(CXX) $(EMU_CXXFLAGS) -c $< -o $@
$(BUILD)/emu_check/%.o: cuda/emu/%.cpp $(EMU_HEADERS) cuda/emu/emu.mk
	@mkdir -p $(@D)
	@echo "  c++ $< (emu_check)"
	$(Q)$(CXX) $(EMU_CXXFLAGS) -DEMU_CHECK -c $< -o $@
