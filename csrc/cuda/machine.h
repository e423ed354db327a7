// The words in which the kernels speak to the GPU: threads, barriers, warp-wide instructions, number formats. The
// kernels use no others, so that the tests can put another machine under this name and run the same kernels on a CPU.
#pragma once

#include "cuda/block.h"

// Two blocks of the window kernels share a multiprocessor's shared memory; a third is room for those of small windows.
// Without the bound the compiler spills registers for the sake of blocks that shared memory has no room for.
#define VR_KERNEL VR_KERNEL_SHARED_BY(3)
#define VR_KERNEL_SHARED_BY(blocks) __global__ void __launch_bounds__(vr::cuda::kThreads, blocks)
#define VR_DEVICE __device__ __forceinline__
#define VR_HOST_AND_DEVICE __host__ __device__ __forceinline__
#define VR_PARAMETER const __grid_constant__

namespace vr::cuda {

VR_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
VR_DEVICE int warp_index() { return thread_index() / kWarpSize; }
VR_DEVICE int lane_index() { return thread_index() % kWarpSize; }
VR_DEVICE int64_t block_index() { return blockIdx.x; }
VR_DEVICE int64_t block_column() { return blockIdx.y; }

VR_DEVICE void sync_block() { __syncthreads(); }
VR_DEVICE void sync_warp() { __syncwarp(); }
VR_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(~0u, value, mask); }

VR_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

VR_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies `bytes` of 16 from global to shared memory and zeroes the rest, in the background. Both addresses are aligned.
VR_DEVICE void copy_async(void* shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
               : "memory");
}

// Closes a group of this thread's copies.
VR_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all of this thread's groups but the latest kPending.
template <int kPending>
VR_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Lane l names the shared memory of row l % 8 of matrix l / 8. It receives columns 2 (l % 4) and one more of row l / 4.
VR_DEVICE Matrices load_matrices(const void* row) {
  Matrices m;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m.pair[0]), "=r"(m.pair[1]), "=r"(m.pair[2]), "=r"(m.pair[3])
               : "r"(shared_address(row))
               : "memory");
  return m;
}

// The same, but it receives rows 2 (l % 4) and one more of column l / 4.
VR_DEVICE Matrices load_matrices_transposed(const void* row) {
  Matrices m;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m.pair[0]), "=r"(m.pair[1]), "=r"(m.pair[2]), "=r"(m.pair[3])
               : "r"(shared_address(row))
               : "memory");
  return m;
}

VR_DEVICE float to_float(float value) { return value; }

VR_DEVICE float to_float(bfloat16 value) { return __uint_as_float(uint32_t{value.bits} << 16); }

VR_DEVICE float to_float(float16 value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}

template <typename T>
VR_DEVICE T from_float(float value);

template <>
VR_DEVICE float from_float<float>(float value) {
  return value;
}

template <>
VR_DEVICE bfloat16 from_float<bfloat16>(float value) {
  bfloat16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
}

template <>
VR_DEVICE float16 from_float<float16>(float value) {
  float16 result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
}

// The matrix instruction m16n8k16: sums (16, 8) += a (16, 16) b (16, 8), each spread over the warp as tile.h says.
template <typename T>
VR_DEVICE void multiply_add(float (&sums)[4], const Matrices& a, uint32_t b_low, uint32_t b_high);

#define VR_MULTIPLY_ADD(TYPE, NAME)                                                                         \
  template <>                                                                                               \
  VR_DEVICE void multiply_add<TYPE>(float (&sums)[4], const Matrices& a, uint32_t b_low, uint32_t b_high) { \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME                                              \
        ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                              \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                                        \
        : "r"(a.pair[0]), "r"(a.pair[1]), "r"(a.pair[2]), "r"(a.pair[3]), "r"(b_low), "r"(b_high));         \
  }
VR_MULTIPLY_ADD(bfloat16, "bf16")
VR_MULTIPLY_ADD(float16, "f16")
#undef VR_MULTIPLY_ADD

}  // namespace vr::cuda
