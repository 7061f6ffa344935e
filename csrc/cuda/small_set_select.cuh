// The exact median of the pairs of a small set, from squared distances in shared memory.
#pragma once

#include "small_set.cuh"

namespace stein {

template <class T>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = unsigned;
  static constexpr type kNone = 0x7fffffffu;  // a NaN, above infinity: a place without a pair
  static __device__ __forceinline__ type of(float v) { return __float_as_uint(v); }
  static __device__ __forceinline__ float value(type v) { return __uint_as_float(v); }
  static __device__ __forceinline__ int length(type v) { return 32 - __clz(static_cast<int>(v)); }
};
template <>
struct BitsOf<double> {
  using type = unsigned long long;
  static constexpr type kNone = 0x7fffffffffffffffull;
  static __device__ __forceinline__ type of(double v) {
    return static_cast<type>(__double_as_longlong(v));
  }
  static __device__ __forceinline__ double value(type v) {
    return __longlong_as_double(static_cast<long long>(v));
  }
  static __device__ __forceinline__ int length(type v) {
    return 64 - __clzll(static_cast<long long>(v));
  }
};

struct Least {
  template <class V>
  __device__ V operator()(V a, V b) const {
    return b < a ? b : a;
  }
};
struct Most {
  template <class V>
  __device__ V operator()(V a, V b) const {
    return a < b ? b : a;
  }
};

constexpr int kBins = 256;

// The bin that holds rank `rank`, which becomes the rank in it; `inside` is how many it holds.
// Every warp computes the same, so that no barrier is needed to share it.
__device__ __forceinline__ int bin_of_rank(const unsigned* counts, int lane, unsigned& rank,
                                           unsigned& inside) {
  unsigned mine[kBins / 32], total = 0;
#pragma unroll
  for (int i = 0; i < kBins / 32; ++i) total += mine[i] = counts[lane * (kBins / 32) + i];
  unsigned up_to = total;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const unsigned below = __shfl_up_sync(kAllLanes, up_to, step);
    if (lane >= step) up_to += below;
  }
  const int owner = __ffs(static_cast<int>(__ballot_sync(kAllLanes, up_to > rank))) - 1;
  unsigned before = up_to - total, found_inside = 0;
  int found = 0;
  bool done = false;
#pragma unroll
  for (int i = 0; i < kBins / 32; ++i) {
    if (!done && before + mine[i] > rank) found = i, found_inside = mine[i], done = true;
    if (!done) before += mine[i];
  }
  rank -= __shfl_sync(kAllLanes, before, owner);
  inside = __shfl_sync(kAllLanes, found_inside, owner);
  return owner * (kBins / 32) + __shfl_sync(kAllLanes, found, owner);
}

// Midpoint of the two middle distances. Squared distances order as their bits. Each pass of a
// histogram over [low, high] leaves one of its 256 bins: about four passes for float, for distances
// spread over a few powers of two.
template <class G>
__device__ __forceinline__ typename G::T middle_distance(const G& g, unsigned pairs) {
  using T = typename G::T;
  using Bits = BitsOf<T>;
  using Key = typename Bits::type;
  const T* keys = g.triangle();
  const int places = 16 * g.layout.tiles();
  unsigned* counts = reinterpret_cast<unsigned*>(g.stage());
  Key low = Bits::kNone, high = 0;
  for (int i = g.thread; i < places; i += G::kThreads) {
    const Key key = Bits::of(keys[i]);
    low = key < low ? key : low;
    high = key != Bits::kNone && key > high ? key : high;
  }
  low = g.reduce(low, Bits::kNone, Least{});
  high = g.reduce(high, Key(0), Most{});
  unsigned rank = (pairs - 1) / 2, inside = 0;
  for (bool last = false; !last;) {
    const int length = Bits::length(high - low), shift = length > 8 ? length - 8 : 0;
    last = shift == 0;
    for (int i = g.thread; i < kBins; i += G::kThreads) counts[i] = 0;
    g.sync();
    for (int i = g.thread; i < places; i += G::kThreads) {
      const Key key = Bits::of(keys[i]);
      if (key >= low && key <= high) atomicAdd(&counts[(key - low) >> shift], 1u);
    }
    g.sync();
    const int bin = bin_of_rank(counts, g.lane, rank, inside);
    low += static_cast<Key>(bin) << shift;
    const Key end = low + ((Key(1) << shift) - 1);
    high = end < high ? end : high;
    g.sync();
  }
  Key next = low;
  if (pairs % 2 == 0 && rank + 1 == inside) {
    next = Bits::kNone;
    for (int i = g.thread; i < places; i += G::kThreads) {
      const Key key = Bits::of(keys[i]);
      next = key > low && key < next ? key : next;
    }
    next = g.reduce(next, Bits::kNone, Least{});
  }
  return T(0.5) * (sqrt(Bits::value(low)) + sqrt(Bits::value(next)));
}

// The median distance; where it is 0, the root mean square; where that is 0 too, 1.
template <class G>
__device__ __forceinline__ typename G::T median_of_set(const G& g) {
  using T = typename G::T;
  const unsigned m = static_cast<unsigned>(g.layout.particles), pairs = m * (m - 1) / 2;
  if (pairs == 0) return 1;
  const T median = middle_distance(g, pairs);
  if (median != 0) return median;
  T sum = 0;
  for (int i = g.thread; i < 16 * g.layout.tiles(); i += G::kThreads) {
    const T value = g.triangle()[i];
    if (value == value) sum += value;
  }
  sum = g.reduce(sum, T(0));
  return sum > 0 ? sqrt(sum / static_cast<T>(pairs)) : T(1);
}

}  // namespace stein
