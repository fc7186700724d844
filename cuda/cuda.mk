# The builds for GPUs, included by the Makefile. The stored element is bfloat16 (the libraries without a suffix) or float.
#   make cuda   libpyllmc_cuda.so, libpyllmc_cuda_fp32.so, ./train_gpt2_cuda     needs nvcc; runs where there is a GPU
#   make emu    libpyllmc_emu.so, libpyllmc_emu_fp32.so                          the same .cu files, run by the CPU
include cuda/emu/emu.mk

NVCC       ?= nvcc
CUDA_ARCHS ?= 80 89 90 100 120
NVCC_FLAGS += -O3 -std=c++17 -lineinfo -Icuda -Icsrc -Xcompiler -fPIC,-fvisibility=hidden -Werror all-warnings
# C++ becomes PTX once, for the oldest GPU, which saves two thirds of the time. The driver compiles it for GPUs not listed.
CUDA_PTX   := compute_$(firstword $(CUDA_ARCHS))
NVCC_FLAGS += $(foreach code,$(CUDA_PTX) $(CUDA_ARCHS:%=sm_%),-gencode arch=$(CUDA_PTX),code=$(code))
# ptxas tells the registers, spills and shared memory of every kernel; dev/cuda_budgets.py reads them beside each object
NVCC_FLAGS += -Xptxas -v

CUDA_SOURCES := $(wildcard cuda/*.cu)
LIBS         := $(dir $(LIB))

# the engine, which is the same for every device and element
ENGINE_OBJECTS := $(ENGINE:%=$(BUILD)/%.o)

# ---- the kernels, for either device and either element ----

# so that other flags, such as those of other GPUs, make a new build
$(BUILD)/nvcc_flags: FORCE
	$(call write_flags,$(NVCC) $(NVCC_FLAGS))

FLAGS_fp32 := -DFLOATX_FP32
FLAGS_bf16 := -DFLOATX_BF16
# $(1) element
define nvcc_rule
$(BUILD)/cuda_$(1)/%.o: cuda/%.cu cuda/cuda.mk $(BUILD)/nvcc_flags
	@mkdir -p $$(@D)
	@echo "  nvcc $$< ($(1))"
	$$(Q)$$(NVCC) $$(NVCC_FLAGS) $(FLAGS_$(1)) -DBACKEND='"cuda"' $$(WRITE_D) -c $$< -o $$@ 2>$$(@:.o=.ptxas) \
		|| { grep -v '^ptxas info' $$(@:.o=.ptxas) >&2; exit 1; }
endef
$(foreach e,fp32 bf16,$(eval $(call nvcc_rule,$(e))))
$(foreach e,fp32 bf16,$(eval $(call emu_rules,emu_$(e),$(FLAGS_$(e)) -DBACKEND='"emu"',)))
$(foreach e,fp32 bf16,$(eval $(call emu_rules,check_$(e),$(EMU_WATCH) $(FLAGS_$(e)) -DBACKEND='"emu"',-DEMU_CHECK)))

CUDA_fp32  := $(CUDA_SOURCES:cuda/%.cu=$(BUILD)/cuda_fp32/%.o)
CUDA_bf16  := $(CUDA_SOURCES:cuda/%.cu=$(BUILD)/cuda_bf16/%.o)
# $(1) emu or check, $(2) element, $(3) the emulator's own files, which are the same for either
emu_objects = $(CUDA_SOURCES:cuda/%.cu=$(BUILD)/$(1)_$(2)/%.o) $(3:cuda/emu/%.cpp=$(BUILD)/$(1)_fp32/%.o)

# ---- libraries and programs ----

$(LIBS)libpyllmc_cuda.so: $(ENGINE_OBJECTS) $(CUDA_bf16)
$(LIBS)libpyllmc_cuda_fp32.so: $(ENGINE_OBJECTS) $(CUDA_fp32)
$(LIBS)libpyllmc_cuda.so $(LIBS)libpyllmc_cuda_fp32.so:
	@mkdir -p $(@D)
	@echo "  ld $@"
	$(Q)$(NVCC) -shared -cudart static -o $@ $^ -Xcompiler "$(THREADS)" -lm $(LDFLAGS)
	$(Q)cp $(TABLES) $(@D)

train_gpt2_cuda: $(BUILD)/programs/train_gpt2.o $(BUILD)/programs/terminal.o $(ENGINE_OBJECTS) $(CUDA_bf16)
	@echo "  ld $@"
	$(Q)$(NVCC) -cudart static -o $@ $^ -Xcompiler "$(THREADS)" -lm $(LDFLAGS)

$(LIBS)libpyllmc_emu.so: $(ENGINE_OBJECTS) $(call emu_objects,emu,bf16,$(EMU_RUNTIME))
$(LIBS)libpyllmc_emu_fp32.so: $(ENGINE_OBJECTS) $(call emu_objects,emu,fp32,$(EMU_RUNTIME))
$(LIBS)check/libpyllmc_emu.so: $(ENGINE_OBJECTS) $(call emu_objects,check,bf16,$(EMU_CHECKER))
$(LIBS)check/libpyllmc_emu_fp32.so: $(ENGINE_OBJECTS) $(call emu_objects,check,fp32,$(EMU_CHECKER))
EMULATED := $(foreach name,libpyllmc_emu.so libpyllmc_emu_fp32.so,$(LIBS)$(name) $(LIBS)check/$(name))
$(EMULATED):
	@mkdir -p $(@D)
	@echo "  ld $@"
	$(Q)$(CXX) -shared $(THREADS) -o $@ $^ -lm $(EMU_LIBS) $(LDFLAGS)
	$(Q)cp $(TABLES) $(LIBS)

# The second gate runs some kernels as nvcc's PTX of them: products, attention (cuda/emu/attention_ptx.cu), GELU and AdamW.
PTX_adamw         := [0-9](adamw|scale|store)_kernel
PTX_attention_ptx := mma(7forward|8backward)
PTX_gelu          := gelu_kernel
PTX_gemm_mma      := gemm_mma_kernel
PTX_OBJECTS       := $(patsubst %,$(BUILD)/ptx/%.o,adamw attention_ptx gelu gemm_mma)
vpath %.cu cuda cuda/emu
$(BUILD)/ptx/%.ptx: %.cu cuda/cuda.mk
	@mkdir -p $(@D)
	@echo "  nvcc -ptx $<"
	$(Q)$(NVCC) -O3 -std=c++17 -Icuda -Icsrc -arch=$(CUDA_PTX) $(FLAGS_bf16) -DBACKEND='"cuda"' \
		$(WRITE_D) -ptx $< -o $@
$(BUILD)/ptx/%.cpp: $(BUILD)/ptx/%.ptx cuda/emu/ptx.py cuda/emu/ptx_isa.py cuda/emu/ptx_instead.py
	$(Q)$(PYTHON) cuda/emu/ptx_instead.py $< $@ '$(PTX_$*)'
$(BUILD)/ptx/%.o: $(BUILD)/ptx/%.cpp cuda/emu/ptx_run.h cuda/emu/emu.mk
	@echo "  c++ $<"
	$(Q)$(CXX) $(EMU_CXXFLAGS) -O1 -g0 -Wno-unused-variable -c $< -o $@
$(BUILD)/libpyllmc_ptx.so: $(PTX_OBJECTS) $(ENGINE_OBJECTS) $(call emu_objects,emu,bf16,$(EMU_RUNTIME))
	@echo "  ld $@"
	$(Q)$(CXX) -shared $(THREADS) -o $@ $^ -lm $(EMU_LIBS) $(LDFLAGS)
.SECONDARY: $(PTX_OBJECTS:.o=.ptx) $(PTX_OBJECTS:.o=.cpp)

cuda: $(LIBS)libpyllmc_cuda.so $(LIBS)libpyllmc_cuda_fp32.so train_gpt2_cuda ## the GPU build, with nvcc: libraries and ./train_gpt2_cuda
emu: $(EMULATED) ## the CUDA kernels as the CPU runs them, to test them without a GPU
.PHONY: cuda emu

# ---- on a real GPU ----

# dev/gpu_mma.py compares the bits of the tensor core with those of its emulation
$(BUILD)/libmma_cuda.so: dev/gpu_mma.cu cuda/ptx.cuh
	@mkdir -p $(@D)
	$(Q)$(NVCC) $(NVCC_FLAGS) -shared -cudart static -o $@ $<
$(BUILD)/mma_emu.o: dev/gpu_mma.cu cuda/emu/emu.mk
	@mkdir -p $(@D)
	$(Q)$(call emu_compile,)
$(BUILD)/libmma_emu.so: $(BUILD)/mma_emu.o $(EMU_RUNTIME:cuda/emu/%.cpp=$(BUILD)/emu_fp32/%.o)
	$(Q)$(CXX) -shared -o $@ $^ $(EMU_LIBS)

# PYTHON must be one that has torch; e.g. make gpu-check GPU_CHECK="--commit abc --out results"
gpu-check: ## on a machine with a GPU: build, parity, sanitizers, speed beside PyTorch, in 8 minutes; a report of all of it
	$(PYTHON) dev/gpu_check.py $(GPU_CHECK)
.PHONY: gpu-check
