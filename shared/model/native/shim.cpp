// What tch does not expose of libtorch: the numerics switches of the global context, facts about the device, its memory.
//
// Every function catches what libtorch throws: an exception must not unwind into Rust. A function that can fail returns 0 for
// success and otherwise puts a text that ends with a zero into `error`. Where there is no CUDA half the switches are kept by
// the context all the same, so every setter succeeds as a no-op.
#include <ATen/Context.h>
#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <malloc.h>

#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <string>
#include <utility>

namespace {

void put(const std::string& text, char* out, size_t size) {
  const size_t kept = text.size() < size ? text.size() : size - 1;
  std::memcpy(out, text.data(), kept);
  out[kept] = 0;
}

template <typename Work>
int guarded(char* error, size_t size, Work work) {
  try {
    work();
    return 0;
  } catch (const std::exception& thrown) {
    put(thrown.what(), error, size);
  } catch (...) {
    put("an exception of unknown type", error, size);
  }
  return -1;
}

uint8_t precision_code(at::Float32MatmulPrecision precision) {
  switch (precision) {
    case at::Float32MatmulPrecision::HIGHEST: return 0;
    case at::Float32MatmulPrecision::HIGH: return 1;
    default: return 2;
  }
}

// 0 full precision without split-K, 1 full precision with split-K, 2 reduced precision with split-K.
uint8_t reduction_code(at::CuBLASReductionOption option) {
  switch (option) {
    case at::CuBLASReductionOption::DisallowReducedPrecisionDisallowSplitK: return 0;
    case at::CuBLASReductionOption::DisallowReducedPrecisionAllowSplitK: return 1;
    default: return 2;
  }
}

}  // namespace

extern "C" {

// The layout is repeated in src/native.rs.
struct GrailNumerics {
  uint8_t tf32_matmul;
  uint8_t tf32_cudnn;
  uint8_t matmul_precision;
  uint8_t bf16_reduction;
  uint8_t fp16_reduction;
  uint8_t deterministic_cudnn;
  uint8_t benchmark_cudnn;
  uint8_t deterministic_algorithms;
  uint8_t sdp_flash;
  uint8_t sdp_memory_efficient;
  uint8_t sdp_cudnn;
  uint8_t sdp_math;
  uint8_t sdp_math_reduction;
};

// Levels 1 and 2: full precision and one fixed cuDNN algorithm. Split-K stays allowed: cuBLAS, through which libtorch multiplies
// by default, cannot be told to leave it out, and every bf16 product would throw.
int grail_shim_full_precision(char* error, size_t size) {
  return guarded(error, size, [] {
    auto& context = at::globalContext();
    context.setAllowTF32CuBLAS(false);
    context.setAllowTF32CuDNN(false);
    context.setFloat32MatmulPrecision("highest");
    context.setAllowBF16ReductionCuBLAS(false, /*allow_splitk=*/true);
    context.setAllowFP16ReductionCuBLAS(false, /*allow_splitk=*/true);
    context.setDeterministicCuDNN(true);
    context.setBenchmarkCuDNN(false);
  });
}

// Level 2: an operation without a deterministic form is an error.
int grail_shim_deterministic(char* error, size_t size) {
  return guarded(error, size, [] { at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false); });
}

// cuDNN's attention keeps a plan for every size and stride it was ever asked for, and builds each on the host.
int grail_shim_without_cudnn_attention(char* error, size_t size) {
  return guarded(error, size, [] { at::globalContext().setSDPUseCuDNN(false); });
}

// Eager attention: of the fused kernels only the plain arithmetic remains, for whoever calls them.
int grail_shim_math_attention_only(char* error, size_t size) {
  return guarded(error, size, [] {
    auto& context = at::globalContext();
    context.setSDPUseFlash(false);
    context.setSDPUseMemEfficient(false);
    context.setSDPUseCuDNN(false);
    context.setSDPUseMath(true);
    context.setAllowFP16BF16ReductionMathSDP(false);
  });
}

int grail_shim_numerics(GrailNumerics* out, char* error, size_t size) {
  return guarded(error, size, [out] {
    const auto& context = at::globalContext();
    out->tf32_matmul = context.allowTF32CuBLAS();
    out->tf32_cudnn = context.allowTF32CuDNN();
    out->matmul_precision = precision_code(context.float32MatmulPrecision());
    out->bf16_reduction = reduction_code(context.allowBF16ReductionCuBLAS());
    out->fp16_reduction = reduction_code(context.allowFP16ReductionCuBLAS());
    out->deterministic_cudnn = context.deterministicCuDNN();
    out->benchmark_cudnn = context.benchmarkCuDNN();
    out->deterministic_algorithms = context.deterministicAlgorithms() && !context.deterministicAlgorithmsWarnOnly();
    out->sdp_flash = context.userEnabledFlashSDP();
    out->sdp_memory_efficient = context.userEnabledMemEfficientSDP();
    out->sdp_cudnn = context.userEnabledCuDNNSDP();
    out->sdp_math = context.userEnabledMathSDP();
    out->sdp_math_reduction = context.allowFP16BF16ReductionMathSDP();
  });
}

// libtorch's description of its own build, at run time.
int grail_shim_configuration(char* out, size_t length, char* error, size_t size) {
  return guarded(error, size, [=] { put(at::show_config(), out, length); });
}

// The instruction set that the CPU kernels were dispatched to, such as AVX512.
int grail_shim_cpu_capability(char* out, size_t length, char* error, size_t size) {
  return guarded(error, size, [=] { put(at::get_cpu_capability(), out, length); });
}

// Brings CUDA up; throws what keeps it from being used: no driver, an old one, no device, a device that is busy.
int grail_shim_cuda_ready(char* error, size_t size) {
  return guarded(error, size, [] { at::globalContext().lazyInitDevice(c10::DeviceType::CUDA); });
}

// Bytes the driver has free on a CUDA device.
int grail_shim_cuda_free(int device, uint64_t* free_bytes, char* error, size_t size) {
  return guarded(error, size, [=] {
    auto* allocator = c10::getDeviceAllocator(c10::kCUDA);
    *free_bytes = allocator->getMemoryInfo(static_cast<c10::DeviceIndex>(device)).first;
  });
}

// The most bytes that tensors took on a CUDA device since the last call.
int grail_shim_cuda_take_peak(int device, uint64_t* peak_bytes, char* error, size_t size) {
  return guarded(error, size, [=] {
    auto* allocator = c10::getDeviceAllocator(c10::kCUDA);
    const auto index = static_cast<c10::DeviceIndex>(device);
    const auto whole = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *peak_bytes = allocator->getDeviceStats(index).allocated_bytes[whole].peak;
    allocator->resetPeakStats(index);
  });
}

// Gives the blocks that libtorch holds without using them back to the driver.
int grail_shim_cuda_empty_cache(char* error, size_t size) {
  return guarded(error, size, [] { c10::getDeviceAllocator(c10::kCUDA)->emptyCache(); });
}

// Enqueues a copy between tensors of one shape; with pinned host memory it runs beside the caller.
int grail_shim_copy_non_blocking(at::Tensor* to, const at::Tensor* from, char* error, size_t size) {
  return guarded(error, size, [=] { to->copy_(*from, /*non_blocking=*/true); });
}

// A copy in pinned host memory of a tensor on a CUDA device, enqueued on its current stream: to be read when an event that was
// recorded after it has come. Null with a text in `error`.
at::Tensor* grail_shim_to_pinned(const at::Tensor* from, char* error, size_t size) {
  at::Tensor* copied = nullptr;
  guarded(error, size, [&] {
    auto host = at::empty(from->sizes(), at::TensorOptions().dtype(from->scalar_type()).device(c10::kCPU).pinned_memory(true));
    host.copy_(*from, /*non_blocking=*/true);
    copied = new at::Tensor(std::move(host));
  });
  return copied;
}

// Marks the place that the current stream of a CUDA device has been enqueued up to. Null with a text in `error`.
c10::Event* grail_shim_event_record(int device, char* error, size_t size) {
  c10::Event* recorded = nullptr;
  guarded(error, size, [&] {
    const c10::impl::VirtualGuardImpl guard(c10::kCUDA);
    auto event = std::make_unique<c10::Event>(c10::kCUDA);
    event->record(guard.getStream(c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(device))));
    recorded = event.release();
  });
  return recorded;
}

// Waits until the device has come to the place of an event.
int grail_shim_event_wait(const c10::Event* event, char* error, size_t size) {
  return guarded(error, size, [=] { event->synchronize(); });
}

void grail_shim_event_free(c10::Event* event) { delete event; }

// Lets the C library keep what is freed, up to blocks of 32 MB, the largest it ever keeps. By default it gives all of it back and
// the kernel clears every page again for the next batch. One arena, because every thread's own would keep its own share.
void grail_shim_keep_freed_memory() {
  mallopt(M_ARENA_MAX, 1);
  mallopt(M_MMAP_THRESHOLD, (32 << 20) - 1);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  mallopt(M_TOP_PAD, 64 << 20);
}

// Gives all freed memory back to the kernel, once.
void grail_shim_return_freed_memory() { malloc_trim(0); }

}  // extern "C"
