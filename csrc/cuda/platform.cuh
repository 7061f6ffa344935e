// The only place that includes the CUDA runtime for kernels: launches, shared memory, reductions.
#pragma once

#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <utility>

#include "types.h"

namespace stein {

constexpr unsigned kAllLanes = 0xffffffffu;
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
  if (shared > 48 * 1024) {  // more must be asked for, once per kernel and device
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
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
