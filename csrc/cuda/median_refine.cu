// Reads what a pass counted: a set is done, or has the bracket of its next pass.
//
// One block for each set. Both ranks in bins that kept all their values: radix selection, 8 bits at
// a time. Else the bin is the next bracket, or, where the ranks fall into two bins, the next pass
// looks for the largest value below their border and the smallest not below it.
#include "median.cuh"

namespace stein {
namespace {

constexpr int kDigit = 8;  // bits of a digit of the selection: one bin for each thread

// Where a rank falls among bins: the bin and the values before it.
struct Place {
  int bin;
  Count before;
};

struct Shared {
  Count warp[kMedianThreads / 32], total;
  Place place;
  unsigned digits[1 << kDigit];
};

// Sum over the threads before this one; leaves the sum over all in shared.total.
__device__ __forceinline__ Count scan(Count own, Shared& shared) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Count sum = own;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const Count other = __shfl_up_sync(kAllLanes, sum, step);
    if (lane >= step) sum += other;
  }
  __syncthreads();
  if (lane == 31) shared.warp[warp] = sum;
  __syncthreads();
  Count before = sum - own;
  for (int k = 0; k < warp; ++k) before += shared.warp[k];
  if (threadIdx.x == kMedianThreads - 1) shared.total = before + own;
  __syncthreads();
  return before;
}

// The bin of a rank below the total; a thread holds the counts of n neighbouring bins, `before`
// values precede them.
template <int n>
__device__ __forceinline__ Place find(const Count (&counts)[n], Count before, Count rank,
                                      Shared& shared) {
  __syncthreads();
#pragma unroll
  for (int k = 0; k < n; ++k) {
    if (rank >= before && rank < before + counts[k]) {
      shared.place = {static_cast<int>(threadIdx.x) * n + k, before};
    }
    before += counts[k];
  }
  __syncthreads();
  return shared.place;
}

// Bits of the value of a rank in a bin that begins at `begin` and is 2^width wide.
template <class T>
__device__ Count select(const T* buckets, const Count* histogram, const MedianSearch& search,
                        int bin, Count rank, Count begin, int width, Shared& shared) {
  Count found = 0;  // the bits that are known, from the top
  for (int top = width; top > 0;) {
    const int bottom = max(top - kDigit, 0);
    __syncthreads();
    shared.digits[threadIdx.x] = 0;
    __syncthreads();
    for (int row = 0; row < search.rows; ++row) {
      const Index line = Index{row} * kBins + bin;
      const int kept = static_cast<int>(histogram[line]);
      for (int k = threadIdx.x; k < kept; k += kMedianThreads) {
        const Count place = Ordered<T>::bits(buckets[line * search.depth + k]) - begin;
        if (place >> top != found) continue;
        atomicAdd(&shared.digits[(place >> bottom) & ((1 << (top - bottom)) - 1)], 1u);
      }
    }
    __syncthreads();
    const Count counts[1] = {shared.digits[threadIdx.x]};
    const Place at = find(counts, scan(counts[0], shared), rank, shared);
    rank -= at.before;
    found = found << (top - bottom) | at.bin;
    top = bottom;
  }
  return begin + found;
}

struct Next {
  Count low, high, first, second;
  Status status;
};

__device__ __forceinline__ Next settled(Count first, Count second) {
  return {0, 0, first, second, kDone};
}
__device__ __forceinline__ Next separated(Count edge) {
  return {edge, 0, 0, kAboveAll, kSeparated};
}
__device__ __forceinline__ Next narrowed(Count low, Count high) {
  return {low, high, 0, 0, kSearching};
}

// Both ranks, counted from the begin of the bracket, are in it.
template <class T>
__device__ Next inside(const MedianSearch& search, const Count* state, const Count* histogram,
                       const T* buckets, const Count (&counts)[kBinsPerThread], Count before,
                       Count first, Count second, Shared& shared) {
  const Count low = state[kLow], high = state[kHigh];
  const int width = bin_bits(low, high);
  const Place a = find(counts, before, first, shared), b = find(counts, before, second, shared);
  const Count begin = low + (Count{a.bin} << width), other = low + (Count{b.bin} << width);
  if (width == 0) return settled(begin, other);
  bool fits = state[kLost] == 0;
  for (int row = threadIdx.x; row < search.rows; row += kMedianThreads) {
    const Count* line = histogram + row * kBins;
    fits = fits && max(line[a.bin], line[b.bin]) <= search.depth;
  }
  if (__syncthreads_and(fits)) {
    const Count lower =
        select(buckets, histogram, search, a.bin, first - a.before, begin, width, shared);
    const Count upper =
        select(buckets, histogram, search, b.bin, second - b.before, other, width, shared);
    return settled(lower, upper);
  }
  const Count end = min(begin + (Count{1} << width), high);
  return a.bin == b.bin ? narrowed(begin, end) : separated(end);
}

template <class T>
__global__ void __launch_bounds__(kMedianThreads) refine_kernel(MedianSearch search) {
  __shared__ Shared shared;
  const Index set = blockIdx.x;
  auto* state = reinterpret_cast<Count*>(search.state) + set * kFields;
  auto* histogram = reinterpret_cast<Count*>(search.histogram) + set * search.rows * kBins;
  const T* buckets =
      static_cast<const T*>(search.buckets) + set * search.rows * kBins * search.depth;
  const Count status = state[kStatus];
  if (status == kDone) return;
  __syncthreads();
  if (status == kSeparated) {
    if (threadIdx.x == 0) state[kStatus] = kDone;
    return;
  }
  Count counts[kBinsPerThread] = {}, own = 0;
  for (int row = 0; row < search.rows; ++row) {
    for (int k = 0; k < kBinsPerThread; ++k) {
      counts[k] += histogram[row * kBins + threadIdx.x * kBinsPerThread + k];
    }
  }
  for (int k = 0; k < kBinsPerThread; ++k) own += counts[k];
  const Count before = scan(own, shared), total = shared.total;
  const Count low = state[kLow], high = state[kHigh];
  const Count pairs = search.count * (search.count - 1) / 2;
  const Count first = (pairs - 1) / 2 - state[kBelow], second = pairs / 2 - state[kBelow];
  Next next;
  if (second < 0) {
    next = narrowed(0, low);
  } else if (first >= total) {
    next = narrowed(high, Ordered<T>::kAboveInfinity);
  } else if (first < 0) {
    next = separated(low);
  } else if (second >= total) {
    next = separated(high);
  } else {
    next = inside(search, state, histogram, buckets, counts, before, first, second, shared);
  }
  __syncthreads();  // everybody has read the state and the counts
  for (int row = 0; row < search.rows; ++row) {
    for (int k = 0; k < kBinsPerThread; ++k) {
      histogram[row * kBins + threadIdx.x * kBinsPerThread + k] = 0;
    }
  }
  if (threadIdx.x > 0) return;
  state[kLow] = next.low;
  state[kHigh] = next.high;
  state[kFirst] = next.first;
  state[kSecond] = next.second;
  state[kStatus] = next.status;
  state[kBelow] = state[kLost] = 0;
}

}  // namespace

cudaError_t median_refine(Scalar scalar, const MedianSearch& search, cudaStream_t stream) {
  const auto kernel = scalar == Scalar::kDouble ? refine_kernel<double> : refine_kernel<float>;
  return launch(kernel, search.batch, dim3(kMedianThreads), 0, stream, search);
}

}  // namespace stein
