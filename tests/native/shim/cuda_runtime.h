// Test only: the CUDA execution model on a CPU, enough of it for csrc/cuda.
//
// Blocks run one after another; each CUDA thread is a fiber that runs until it meets a barrier or
// a shuffle (runtime.cpp). Shared memory is thread-local storage of this library: one operating
// system thread runs everything, so every fiber sees it, and runtime.cpp finds it as one range and
// fills it with NaN before each block.
#pragma once

#include <math.h>  // not cmath: it gives exp(float) without std::, as nvcc does
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ thread_local
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))

struct uint3 {
  unsigned x, y, z;
};

// Only the runtime writes them, whenever it changes fibers.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

#define SHIM_VECTOR(T, name)                                                         \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                                 \
  struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) name##4 { T x, y, z, w; }; \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                         \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
SHIM_VECTOR(float, float)
SHIM_VECTOR(double, double)
SHIM_VECTOR(int, int)
SHIM_VECTOR(unsigned, uint)
SHIM_VECTOR(unsigned short, ushort)
SHIM_VECTOR(unsigned long long, ulonglong)
#undef SHIM_VECTOR

namespace shim {

// All of these yield to the other fibers until those that take part have arrived.
void barrier();
int barrier_count(bool value);
void warp_barrier(unsigned mask);
const uint64_t* exchange(unsigned mask, uint64_t value);  // one value of each lane
unsigned lane();

void copy_async(void* to, const void* from, size_t bytes, size_t zeros);
void copy_commit();
void copy_wait(unsigned newest);

cudaError_t allow_shared(const void* kernel, int bytes);
cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, void (*call)(void*),
                   void* body);

template <class T>
T shuffle(unsigned mask, T value, int from, int width, bool inside) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const uint64_t* all = exchange(mask, bits);
  const int own = int(lane());
  const int source = inside ? (own & ~(width - 1)) | (from & (width - 1)) : own;
  std::memcpy(&value, &all[source], sizeof(T));
  return value;
}

}  // namespace shim

inline void __syncthreads() { shim::barrier(); }
inline int __syncthreads_count(int value) { return shim::barrier_count(value != 0); }
inline int __syncthreads_or(int value) { return shim::barrier_count(value != 0) > 0; }
inline int __syncthreads_and(int value) { return shim::barrier_count(value == 0) == 0; }
inline void __syncwarp(unsigned mask = ~0u) { shim::warp_barrier(mask); }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
  return shim::shuffle(mask, value, from, width, true);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const int from = int(shim::lane()) ^ bits;
  const bool inside = from / width <= int(shim::lane()) / width;
  return shim::shuffle(mask, value, from, 32, inside);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const int from = int(shim::lane() % unsigned(width) + by);
  return shim::shuffle(mask, value, from, width, from < width);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const int from = int(shim::lane() % unsigned(width)) - int(by);
  return shim::shuffle(mask, value, from, width, from >= 0);
}

inline unsigned __ballot_sync(unsigned mask, int value) {
  const uint64_t* all = shim::exchange(mask, value != 0);
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i) bits |= unsigned((mask >> i & 1) && all[i]) << i;
  return bits;
}
inline int __any_sync(unsigned mask, int value) { return __ballot_sync(mask, value) != 0; }
inline int __all_sync(unsigned mask, int value) { return __ballot_sync(mask, !value) == 0; }
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const uint64_t* all = shim::exchange(mask, bits);
  unsigned equal = 0;
  for (int i = 0; i < 32; ++i) equal |= unsigned((mask >> i & 1) && all[i] == bits) << i;
  return equal;
}
template <class T>
T __reduce_add_sync(unsigned mask, T value) {
  const uint64_t* all = shim::exchange(mask, uint64_t(int64_t(value)));
  T sum = 0;
  for (int i = 0; i < 32; ++i) sum += mask >> i & 1 ? T(all[i]) : T(0);
  return sum;
}

// Relaxed, as on the device: they order nothing else, and ThreadSanitizer sees that. Integers
// alone: a sum of floats by atomics would depend on the order of the threads.
template <class T>
struct shim_same {
  using type = T;
};
#define SHIM_ATOMIC(name, builtin)                                    \
  template <class T, class = std::enable_if_t<std::is_integral_v<T>>> \
  T name(T* at, typename shim_same<T>::type value) {                  \
    return builtin(at, value, __ATOMIC_RELAXED);                      \
  }
SHIM_ATOMIC(atomicAdd, __atomic_fetch_add)
SHIM_ATOMIC(atomicSub, __atomic_fetch_sub)
SHIM_ATOMIC(atomicOr, __atomic_fetch_or)
SHIM_ATOMIC(atomicAnd, __atomic_fetch_and)
SHIM_ATOMIC(atomicExch, __atomic_exchange_n)
#undef SHIM_ATOMIC
template <class T>
T atomicCAS(T* at, typename shim_same<T>::type expected, typename shim_same<T>::type value) {
  static_assert(std::is_integral_v<T>);
  __atomic_compare_exchange_n(at, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
template <class T>
T atomicMax(T* at, typename shim_same<T>::type value) {
  T old = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (old < value) {
    const T seen = atomicCAS(at, old, value);
    if (seen == old) break;
    old = seen;
  }
  return old;
}
template <class T>
T atomicMin(T* at, typename shim_same<T>::type value) {
  T old = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (value < old) {
    const T seen = atomicCAS(at, old, value);
    if (seen == old) break;
    old = seen;
  }
  return old;
}

template <class To, class From>
To shim_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}
inline int __float_as_int(float v) { return shim_bits<int>(v); }
inline unsigned __float_as_uint(float v) { return shim_bits<unsigned>(v); }
inline float __int_as_float(int v) { return shim_bits<float>(v); }
inline float __uint_as_float(unsigned v) { return shim_bits<float>(v); }
inline long long __double_as_longlong(double v) { return shim_bits<long long>(v); }
inline double __longlong_as_double(long long v) { return shim_bits<double>(v); }

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __clz(int v) { return v ? __builtin_clz(unsigned(v)) : 32; }
inline int __clzll(long long v) { return v ? __builtin_clzll(uint64_t(v)) : 64; }
inline int __ffs(int v) { return __builtin_ffs(v); }

template <class T>
T __ldg(const T* at) {
  return *at;
}
template <class T>
T __ldcs(const T* at) {
  return *at;
}
template <class T>
void __stcs(T* at, typename shim_same<T>::type value) {
  *at = value;
}

inline float __expf(float v) { return std::exp(v); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float rsqrtf(float v) { return 1 / std::sqrt(v); }
inline double rsqrt(double v) { return 1 / std::sqrt(v); }
template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return T(a) < T(b) ? T(b) : T(a);
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  return shim::allow_shared(reinterpret_cast<const void*>(kernel), value);
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  std::tuple<Parameters...> held(std::forward<Arguments>(arguments)...);
  auto body = [&] { std::apply(kernel, held); };
  return shim::launch(
      *config, reinterpret_cast<const void*>(kernel),
      [](void* data) { (*static_cast<decltype(body)*>(data))(); }, &body);
}
