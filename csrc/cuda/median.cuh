// What the kernels of the exact median share: the state of a search, and bits that order as values.
#pragma once

#include "median.h"
#include "platform.cuh"

namespace stein {

using Count = long long;  // what 64-bit atomics take

constexpr int kBins = 2048;
constexpr int kMedianThreads = 256;
constexpr int kBinsPerThread = kBins / kMedianThreads;

// Fields of a state. Separated: the first rank is the largest below kLow, the second the smallest
// not below it, and a pass looks for these two.
enum Field : int {
  kLow,     // first bits of the bracket
  kHigh,    // bits after its last
  kStatus,  // searching, separated or done
  kBelow,   // pairs below kLow, counted by the pass
  kFirst,   // bits of the two middle squared distances
  kSecond,
  kLost,  // pairs that were counted and not kept though their bucket had room
  kFields = 8,
};
enum Status : int { kSearching, kSeparated, kDone };

constexpr Count kAboveAll = 0x7fffffffffffffff;

template <class T>
struct Ordered;

template <>
struct Ordered<float> {
  static constexpr Count kAboveInfinity = 0x7f800001;
  static __device__ __forceinline__ Count bits(float value) { return __float_as_uint(value); }
  static __device__ __forceinline__ float value(Count bits) {
    return __uint_as_float(static_cast<unsigned>(bits));
  }
};

template <>
struct Ordered<double> {
  static constexpr Count kAboveInfinity = 0x7ff0000000000001;
  static __device__ __forceinline__ Count bits(double value) { return __double_as_longlong(value); }
  static __device__ __forceinline__ double value(Count bits) { return __longlong_as_double(bits); }
};

// log2 of the width of a bin: the bracket has at most kBins of them.
__device__ __forceinline__ int bin_bits(Count low, Count high) {
  int shift = 0;
  while (((high - low - 1) >> shift) >= kBins) ++shift;
  return shift;
}

__device__ __forceinline__ void add(Count* at, Count value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(value));
}

}  // namespace stein
