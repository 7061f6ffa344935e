// The only place that includes the CUDA runtime for kernels: launches, shared memory, reductions.
#pragma once

#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <utility>

#include "types.h"

namespace stein {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr size_t kMostShared = 160 * 1024;  // bytes of a block, of sm_80 and later
constexpr Index kLargestGrid = 0x7fffffff;  // blocks along x; along y and z only 65535 are legal

__host__ __device__ constexpr Index cdiv(Index a, Index b) { return (a + b - 1) / b; }

// Shared memory whose size the launch chose.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char stein_dynamic_shared[];
  return reinterpret_cast<T*>(stein_dynamic_shared);
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
                   cudaStream_t stream, Arguments&&... arguments) {
  if (shared > 48 * 1024) {  // never less than the most: another thread may launch a larger set
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared > kMostShared ? shared : kMostShared));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

// Blocks in one dimension: the kernel splits blockIdx.x into batch, split and tile itself, so that
// no count meets the limit of 65535. Nothing to do is no error.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), Index blocks, dim3 block, size_t shared,
                   cudaStream_t stream, Arguments&&... arguments) {
  if (blocks == 0) return cudaSuccess;
  if (blocks < 0 || blocks > kLargestGrid) return cudaErrorInvalidConfiguration;
  return launch(kernel, dim3(static_cast<unsigned>(blocks)), block, shared, stream,
                std::forward<Arguments>(arguments)...);
}

// Starts the copy of the first `there` of so many bytes to shared memory, zeros after them.
// __pipeline_memcpy_async switches over every number of zeros, 50 instructions a copy.
template <int bytes>
__device__ __forceinline__ void copy_async(void* to, const void* from, int there) {
#ifdef __CUDA_ARCH__
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(there)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(at), "l"(from), "n"(bytes),
                 "r"(there)
                 : "memory");
  }
#else
  __pipeline_memcpy_async(to, from, bytes, bytes - there);
#endif
}

struct Add {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

// Every lane receives the reduction over `width` neighbours (a power of two), in one order.
template <int width = 32, class T, class Combine = Add>
__device__ __forceinline__ T warp_reduce(T value, Combine combine = {}) {
#pragma unroll
  for (int step = width / 2; step > 0; step /= 2) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, step));
  }
  return value;
}

// Every thread receives the reduction over the block: full warps, `scratch` 32 shared values. Ends
// and begins with a barrier, so scratch may be used again at once.
template <class T, class Combine = Add>
__device__ __forceinline__ T block_reduce(T value, T* scratch, T identity, Combine combine = {}) {
  const int thread = static_cast<int>(threadIdx.x + blockDim.x * threadIdx.y);
  const int warps = static_cast<int>(blockDim.x * blockDim.y) / 32;
  value = warp_reduce(value, combine);
  __syncthreads();
  if (thread % 32 == 0) scratch[thread / 32] = value;
  __syncthreads();
  value = thread % 32 < warps ? scratch[thread % 32] : identity;
  value = warp_reduce(value, combine);
  __syncthreads();
  return value;
}

}  // namespace stein
