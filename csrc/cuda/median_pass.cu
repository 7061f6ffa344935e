// Sample of pairs, and the pass over all pairs: counts below the bracket, bins and values inside.
//
// A block of 16 x 16 threads takes tiles of pairs in turn, a thread 8 x 8 of them (4 x 4 of
// double). Values inside the bracket, 0.2 to 2 % of all, go to a list in shared memory; after each
// tile the block counts them into the bins in device memory, all at once, and the old count is the
// place in the bin. What the list cannot take (ties, or a bracket around everything) is counted in
// shared memory and not kept.
#include <algorithm>

#include "median.cuh"

namespace stein {
namespace {

constexpr int kSide = 16;
constexpr int kChunk = 8;         // features of a stage
constexpr int kList = 2048;       // values of a tile that are kept
constexpr Index kBlocks = 528;    // of a pass: 2 for each of 132 multiprocessors, twice
constexpr Index kTurns = 131072;  // tiles of a block: its counts stay below 2^32 for 128 x 128

// A permutation of 32-bit words whose output bits depend on all input bits (murmur3).
__device__ __forceinline__ unsigned mixed(unsigned x) {
  x = (x ^ (x >> 16)) * 0x85ebca6bu;
  x = (x ^ (x >> 13)) * 0xc2b2ae35u;
  return x ^ (x >> 16);
}

template <class T>
__global__ void __launch_bounds__(kMedianThreads)
    sample_kernel(MedianPoints points, T* __restrict__ sample, Index size, Index blocks) {
  const Index set = blockIdx.x / blocks;
  const Index place = blockIdx.x % blocks * kMedianThreads + threadIdx.x;
  if (place >= size) return;
  const unsigned word = static_cast<unsigned>(place) * 2;
  const auto m = static_cast<std::uint64_t>(points.count);
  const Index i = static_cast<Index>((mixed(word + 1) * m) >> 32);
  Index j = i + 1 + static_cast<Index>((mixed(word + 2) * (m - 1)) >> 32);
  if (j >= points.count) j -= points.count;
  const Index rows = points.stored ? points.count : points.features;
  const T* x = static_cast<const T*>(points.data) + set * rows * points.pitch;
  T sum = 0;
  if (points.stored) {
    sum = x[min(i, j) * points.pitch + max(i, j)];
  } else {
    for (int feature = 0; feature < points.features; ++feature) {
      const T difference = x[feature * points.pitch + i] - x[feature * points.pitch + j];
      sum += difference * difference;
    }
  }
  sample[set * size + place] = sum;
}

template <class T>
struct PairTile {
  static constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  static constexpr int kMicro = 2 * kVector;       // rows and columns of a thread, in two runs
  static constexpr int kEdge = kSide * kMicro;     // particles: 128, or 64 of double
  static constexpr int kCopies = kEdge / kVector;  // of 16 bytes, for one feature

  // Row or column of a thread's element.
  static __device__ __forceinline__ int place(int thread, int element) {
    return element / kVector * (kSide * kVector) + thread * kVector + element % kVector;
  }
};

template <class T>
struct __align__(16) Vector {
  T v[16 / sizeof(T)];
};

template <class T>
struct __align__(16) Shared {
  T features[2][2][kChunk][PairTile<T>::kEdge];  // [stage][rows, columns][feature]
  T list[kList];
  unsigned bins[kBins];
  unsigned listed;
  Count scratch[32];
};

// Starts the copies of one chunk of features, rows and columns, zero beyond the last feature.
template <class T>
__device__ __forceinline__ void copy_chunk(Shared<T>& shared, int stage, const MedianPoints& points,
                                           const T* set, Index row, Index column, int feature) {
  using Tile = PairTile<T>;
  for (int k = threadIdx.x; k < 2 * kChunk * Tile::kCopies; k += kMedianThreads) {
    const int side = k / (kChunk * Tile::kCopies), f = k / Tile::kCopies % kChunk;
    const int at = k % Tile::kCopies * Tile::kVector;
    const bool real = feature + f < points.features;
    const T* from = set + Index{real ? feature + f : 0} * points.pitch + (side ? column : row) + at;
    __pipeline_memcpy_async(&shared.features[stage][side][f][at], from, 16, real ? 0 : 16);
  }
  __pipeline_commit();
}

template <class T>
__device__ __forceinline__ void load(T (&to)[PairTile<T>::kMicro], const T* line, int thread) {
  using Tile = PairTile<T>;
#pragma unroll
  for (int run = 0; run < 2; ++run) {
    const auto vector = *reinterpret_cast<const Vector<T>*>(line + run * kSide * Tile::kVector +
                                                            thread * Tile::kVector);
#pragma unroll
    for (int k = 0; k < Tile::kVector; ++k) to[run * Tile::kVector + k] = vector.v[k];
  }
}

// Squared distances of a thread's pairs in the tile whose first pair is (row, column).
template <class T, int n = PairTile<T>::kMicro>
__device__ __forceinline__ void distances(T (&r2)[n][n], Shared<T>& shared,
                                          const MedianPoints& points, const T* set, Index row,
                                          Index column) {
  const int y = threadIdx.x / kSide, x = threadIdx.x % kSide;
#pragma unroll
  for (int k = 0; k < n * n; ++k) r2[k / n][k % n] = 0;
  copy_chunk(shared, 0, points, set, row, column, 0);
  int stage = 0;
  for (int feature = 0; feature < points.features; feature += kChunk, stage ^= 1) {
    const int left = points.features - feature;
    if (left > kChunk) {
      copy_chunk(shared, stage ^ 1, points, set, row, column, feature + kChunk);
      __pipeline_wait_prior(1);
    } else {
      __pipeline_wait_prior(0);
    }
    __syncthreads();
    const int some = min(left, kChunk);
#pragma unroll 2
    for (int f = 0; f < some; ++f) {
      T a[n], b[n];
      load(a, shared.features[stage][0][f], y);
      load(b, shared.features[stage][1][f], x);
#pragma unroll
      for (int k = 0; k < n * n; ++k) {
        const T difference = a[k / n] - b[k % n];
        r2[k / n][k % n] += difference * difference;
      }
    }
    __syncthreads();  // the stage is free for the chunk after next
  }
}

template <class T, int n = PairTile<T>::kMicro>
__device__ __forceinline__ void stored(T (&r2)[n][n], const MedianPoints& points, const T* set,
                                       Index row, Index column) {
  using Tile = PairTile<T>;
#pragma unroll
  for (int k = 0; k < n * n; ++k) {
    const Index i = row + Tile::place(threadIdx.x / kSide, k / n);
    const Index j = column + Tile::place(threadIdx.x % kSide, k % n);
    r2[k / n][k % n] = i < j && j < points.count ? set[i * points.pitch + j] : static_cast<T>(NAN);
  }
}

template <class T>
struct Bracket {
  T floor, last;  // its first and last value
  Count low;
  int shift;

  __device__ __forceinline__ int bin(T value) const {
    return static_cast<int>((Ordered<T>::bits(value) - low) >> shift) & (kBins - 1);
  }
};

// Counts what the list of this tile holds into the bins, and keeps the first `depth` of each.
template <class T>
__device__ __forceinline__ void empty_list(Shared<T>& shared, const Bracket<T>& bracket,
                                           Count* histogram, T* buckets, int depth) {
  __syncthreads();
  const int listed = static_cast<int>(min(shared.listed, static_cast<unsigned>(kList)));
  for (int k = threadIdx.x; k < listed; k += kMedianThreads) {
    const T value = shared.list[k];
    const int bin = bracket.bin(value);
    const auto slot =
        static_cast<Count>(atomicAdd(reinterpret_cast<unsigned long long*>(histogram + bin), 1ull));
    if (slot < depth) buckets[Index{bin} * depth + slot] = value;
  }
  __syncthreads();
  if (threadIdx.x == 0) shared.listed = 0;  // the next tile has barriers before its first use
}

// Of the pairs of one thread: how many lie below the bracket; or, separated, the largest of them
// and the smallest other.
struct Tally {
  Count below = 0, above = kAboveAll;
  bool spilled = false;  // counted in shared memory and not kept
};

template <class T, int n = PairTile<T>::kMicro>
__device__ __forceinline__ void classify(const T (&r2)[n][n], Shared<T>& shared,
                                         const Bracket<T>& bracket, bool separated, bool keeps,
                                         Tally& tally) {
  if (separated) {
#pragma unroll
    for (int k = 0; k < n * n; ++k) {
      const T value = r2[k / n][k % n];
      const Count bits = Ordered<T>::bits(value);
      if (value < bracket.floor) tally.below = max(tally.below, bits);
      if (value >= bracket.floor) tally.above = min(tally.above, bits);
    }
    return;
  }
  int below = 0;
#pragma unroll
  for (int k = 0; k < n * n; ++k) {
    const T value = r2[k / n][k % n];
    below += value < bracket.floor;
    if (value >= bracket.floor && value <= bracket.last) {
      const unsigned slot = keeps ? atomicAdd(&shared.listed, 1u) : kList;
      if (slot < kList) {
        shared.list[slot] = value;
      } else {
        atomicAdd(&shared.bins[bracket.bin(value)], 1u);
        tally.spilled = true;
      }
    }
  }
  tally.below += below;
}

struct Larger {
  __device__ Count operator()(Count a, Count b) const { return a < b ? b : a; }
};
struct Smaller {
  __device__ Count operator()(Count a, Count b) const { return b < a ? b : a; }
};

template <class T, bool kStored>
__global__ void __launch_bounds__(kMedianThreads, 2)
    pass_kernel(MedianPoints points, MedianSearch search, int blocks) {
  using Tile = PairTile<T>;
  __shared__ Shared<T> shared;
  const Index set = blockIdx.x / blocks;
  const int turn = static_cast<int>(blockIdx.x % blocks);
  auto* state = reinterpret_cast<Count*>(search.state) + set * kFields;
  if (state[kStatus] == kDone) return;
  const bool separated = state[kStatus] == kSeparated;
  const Count low = state[kLow], high = state[kHigh];
  const Bracket<T> bracket = {Ordered<T>::value(low), Ordered<T>::value(high - 1), low,
                              bin_bits(low, high)};
  const Index row_of_bins = (set * search.rows + turn % search.rows) * kBins;
  auto* histogram = reinterpret_cast<Count*>(search.histogram) + row_of_bins;
  T* buckets = static_cast<T*>(search.buckets) + row_of_bins * search.depth;
  const T* x = static_cast<const T*>(points.data) +
               set * (kStored ? points.count : points.features) * points.pitch;
  const bool keeps = search.depth > 0 && !separated;
  for (int bin = threadIdx.x; bin < kBins; bin += kMedianThreads) shared.bins[bin] = 0;
  if (threadIdx.x == 0) shared.listed = 0;
  __syncthreads();

  // Tile t pairs row tile t % T with the one t / T further on, around the end: every pair of tiles
  // once for t < T (T + 1) / 2.
  const int tiles = static_cast<int>(cdiv(points.count, Tile::kEdge));
  int turns = static_cast<int>(cdiv(Index{tiles} * (tiles + 1) / 2 - turn, blocks));
  int tile = turn % tiles, ahead = turn / tiles;
  Tally tally;
  for (; turns > 0; --turns) {
    const int other = tile + ahead < tiles ? tile + ahead : tile + ahead - tiles;
    const Index row = Index{min(tile, other)} * Tile::kEdge;
    const Index column = Index{max(tile, other)} * Tile::kEdge;
    tile += blocks % tiles;
    ahead += blocks / tiles;
    if (tile >= tiles) {
      tile -= tiles;
      ahead += 1;
    }
    T r2[Tile::kMicro][Tile::kMicro];
    if constexpr (kStored) {
      stored(r2, points, x, row, column);
    } else {
      distances(r2, shared, points, x, row, column);
      if (row == column) {
#pragma unroll
        for (int k = 0; k < Tile::kMicro * Tile::kMicro; ++k) {
          const int i = Tile::place(threadIdx.x / kSide, k / Tile::kMicro);
          const int j = Tile::place(threadIdx.x % kSide, k % Tile::kMicro);
          if (i >= j) r2[k / Tile::kMicro][k % Tile::kMicro] = static_cast<T>(NAN);
        }
      }
    }
    classify(r2, shared, bracket, separated, keeps, tally);
    if (keeps) empty_list(shared, bracket, histogram, buckets, search.depth);
    if (kStored && keeps) __syncthreads();
  }

  if (separated) {
    const Count top = block_reduce(tally.below, shared.scratch, Count{0}, Larger{});
    const Count bottom = block_reduce(tally.above, shared.scratch, kAboveAll, Smaller{});
    if (threadIdx.x == 0) {
      atomicMax(state + kFirst, top);
      atomicMin(state + kSecond, bottom);
    }
    return;
  }
  const Count below = block_reduce(tally.below, shared.scratch, Count{0});
  if (threadIdx.x == 0) add(state + kBelow, below);
  if (!__syncthreads_or(tally.spilled)) return;
  if (threadIdx.x == 0) add(state + kLost, 1);
  for (int bin = threadIdx.x; bin < kBins; bin += kMedianThreads) {
    if (shared.bins[bin]) add(histogram + bin, shared.bins[bin]);
  }
}

template <class T>
cudaError_t pass(const MedianPoints& points, const MedianSearch& search, cudaStream_t stream) {
  const Index tiles = cdiv(points.count, PairTile<T>::kEdge), all = tiles * (tiles + 1) / 2;
  const Index wanted = std::max(Index{1}, std::min(all, kBlocks / points.batch));
  const Index blocks = std::max(wanted, cdiv(all, kTurns));
  const auto kernel = points.stored ? pass_kernel<T, true> : pass_kernel<T, false>;
  return launch(kernel, points.batch * blocks, dim3(kMedianThreads), 0, stream, points, search,
                static_cast<int>(blocks));
}

template <class T>
cudaError_t sample(const MedianPoints& points, void* values, Index size, cudaStream_t stream) {
  const Index blocks = cdiv(size, kMedianThreads);
  return launch(sample_kernel<T>, points.batch * blocks, dim3(kMedianThreads), 0, stream, points,
                static_cast<T*>(values), size, blocks);
}

}  // namespace

cudaError_t median_sample(Scalar scalar, const MedianPoints& points, void* values, Index size,
                          cudaStream_t stream) {
  return scalar == Scalar::kDouble ? sample<double>(points, values, size, stream)
                                   : sample<float>(points, values, size, stream);
}

cudaError_t median_pass(Scalar scalar, const MedianPoints& points, const MedianSearch& search,
                        cudaStream_t stream) {
  return scalar == Scalar::kDouble ? pass<double>(points, search, stream)
                                   : pass<float>(points, search, stream);
}

}  // namespace stein
