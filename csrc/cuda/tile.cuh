// Tiles of pairs on packed clouds: what every kernel over all pairs shares.
//
// A block of 256 threads, 16 x 16, takes 16 R rows and walks over tiles of 64 columns. A thread
// holds R x 4 pairs. Per tile:
//   1. products: squared distances, by differences, and dot products, over chunks of features that
//      asynchronous copies bring in while the chunk before is computed;
//   2. the kernel turns them into coefficients, which go to shared memory as [row][column];
//   3. vector sums: coefficients times a feature tile [feature][column], R x F sums a thread.
// Rows of a thread are read back by the 16 threads of the same half warp alone, so step 3 waits for
// its warp and not for the block.
#pragma once

#include "platform.cuh"

namespace stein {

constexpr int kThreads = 256;
constexpr int kSide = 16;  // threads along rows and along columns
constexpr int kColumns = 64;
constexpr int kPerThread = kColumns / kSide;

template <class T, int n>
struct __align__(sizeof(T) * n < 16 ? sizeof(T) * n : 16) Pack {
  T v[n];
};

template <class T, int n>
__device__ __forceinline__ void read(T (&to)[n], const T* from) {
  const Pack<T, n> pack = *reinterpret_cast<const Pack<T, n>*>(from);
#pragma unroll
  for (int i = 0; i < n; ++i) to[i] = pack.v[i];
}

// A sum of one value per tile. Floats carry what the last addition lost (Kahan): after 1e6 columns
// the error is that of one tile. Doubles have digits to spare.
template <class T>
struct Sum {
  T value = 0;
  __device__ __forceinline__ void operator+=(T term) { value += term; }
};

template <>
struct Sum<float> {
  float value = 0, lost = 0;
  __device__ __forceinline__ void operator+=(float term) {
    const float rest = term - lost;
    const float next = value + rest;
    lost = (next - value) - rest;
    value = next;
  }
};

// k = exp(-r2/h) = 2^(r2 factor): the base that the hardware has, at half the instructions of expf.
__device__ __forceinline__ float power_of_two(float x) { return exp2f(x); }
__device__ __forceinline__ double power_of_two(double x) { return exp2(x); }

template <class T>
__device__ __forceinline__ T radial_factor(T h) {
  return T(-1.442695040888963407) / h;
}

// How large a tile is. R rows and F features a thread; up to 16 F features.
template <class Scalar_, int R_, int F_>
struct Tile {
  using T = Scalar_;
  static constexpr int R = R_, F = F_;
  static constexpr int kRows = kSide * R;
  static constexpr int kVector = 16 / static_cast<int>(sizeof(T));  // elements of a copy
  static constexpr int kChunk = 4 * kVector;                        // features of a stage
  static constexpr int kUnroll = F == 1 ? 1 : 2;  // two blocks a multiprocessor: no register spare
  // An odd number of 16-byte units: eight neighbouring lines start in eight different banks.
  static constexpr int kLine = kColumns + kVector;
  static constexpr int kCoefficients = kRows * kLine;
  static constexpr int kFeatureTile = kSide * F * kLine;
};

// Which products a kernel needs: r2 of row cloud 0 and column cloud 0, and up to two dot products.
template <int kRowClouds_, int kColumnClouds_, int kDots_ = 0, int kRow0_ = 0, int kColumn0_ = 0,
          int kRow1_ = 0, int kColumn1_ = 0>
struct Plan {
  static constexpr int kRowClouds = kRowClouds_, kColumnClouds = kColumnClouds_, kDots = kDots_;
  static constexpr int kRow0 = kRow0_, kColumn0 = kColumn0_, kRow1 = kRow1_, kColumn1 = kColumn1_;
};

// The packed clouds of a launch, (B, features, ld) each.
template <class T, class P>
struct Clouds {
  const T* row[P::kRowClouds];
  const T* column[P::kColumnClouds];
  int features;
  Index row_ld, column_ld;
};

// What a launch covers, and which part of it a block takes: rows fastest, then splits, then sets.
struct Extent {
  Index batch, rows, columns, splits;
  bool same;

  Index blocks(int tile_rows) const { return batch * splits * cdiv(rows, tile_rows); }
};

struct Part {
  Index set, split, row, tile, last;  // row: the first one; tile, last: of columns

  __device__ __forceinline__ Part(const Extent& extent, int tile_rows) {
    const Index row_tiles = cdiv(extent.rows, tile_rows), tiles = cdiv(extent.columns, kColumns);
    const Index block = blockIdx.x, rest = block / row_tiles;
    row = block % row_tiles * tile_rows;
    split = rest % extent.splits;
    set = rest / extent.splits;
    tile = split * tiles / extent.splits;
    last = (split + 1) * tiles / extent.splits;
  }
};

// Starts the copies of `width` columns of the features [first, end) of a cloud, at most `most`, to
// shared memory. A thread keeps its column: only the feature changes from copy to copy.
template <int width, int most, class T>
__device__ __forceinline__ void copy_features(T* to, int line, const T* from, Index ld, int first,
                                              int end) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(T)), kVectors = width / kVector;
  constexpr int kLines = kThreads / kVectors;  // features that the block copies at once
  const int thread = static_cast<int>(threadIdx.x);
  const int start = thread / kVectors, column = thread % kVectors * kVector;
  to += start * line + column;
  from += (first + start) * ld + column;
  if constexpr (most <= kLines) {
    if (first + start < end) __pipeline_memcpy_async(to, from, 16);
  } else {
#pragma unroll 1  // unrolled, the addresses of all copies would stay in registers
    for (int feature = first + start; feature < end; feature += kLines) {
      __pipeline_memcpy_async(to, from, 16);
      to += kLines * line;
      from += kLines * ld;
    }
  }
}

// The pairs of a block, tile by tile.
template <class Tile, class P>
class Pairs {
 public:
  using T = typename Tile::T;
  using Values = T[Tile::R][kPerThread];
  static constexpr int R = Tile::R, F = Tile::F;
  static constexpr int kStage =
      Tile::kChunk * (P::kRowClouds * Tile::kRows + P::kColumnClouds * kColumns);

  // `sums`: feature tiles held at once; 0 where there are no vector sums.
  static constexpr size_t shared_bytes(int feature_tiles) {
    const int sums = feature_tiles ? Tile::kCoefficients + feature_tiles * Tile::kFeatureTile : 0;
    return sizeof(T) * static_cast<size_t>(2 * kStage + sums);
  }

  __device__ Pairs(const Clouds<T, P>& clouds, const Part& part)
      : features_(clouds.features),
        chunks_((clouds.features + Tile::kChunk - 1) / Tile::kChunk),
        row_ld_(clouds.row_ld),
        column_ld_(clouds.column_ld),
        row_(static_cast<int>(threadIdx.x) / kSide),
        column_(static_cast<int>(threadIdx.x) % kSide) {
    const Index row_set = part.set * features_ * row_ld_ + part.row;
#pragma unroll
    for (int i = 0; i < P::kRowClouds; ++i) row_cloud_[i] = clouds.row[i] + row_set;
#pragma unroll
    for (int i = 0; i < P::kColumnClouds; ++i) {
      column_cloud_[i] = clouds.column[i] + part.set * features_ * column_ld_;
    }
    if (part.tile < part.last) copy_stage(part.tile, 0);
    __pipeline_commit();
  }

  // The thread's first row and first column within the tile.
  __device__ __forceinline__ int row() const { return row_ * R; }
  __device__ __forceinline__ int column() const { return column_ * kPerThread; }
  __device__ __forceinline__ int feature(int i) const { return column_ + kSide * i; }

  // Squared distances and dot products of a tile. On the way `prefetch`, called once when the
  // feature tiles of the tile before are no longer read, may start copies to them; they have
  // arrived, for every thread, on return.
  template <class Prefetch>
  __device__ __forceinline__ void products(Index tile, Index last, Values& r2, Values& dot0,
                                           Values& dot1, Prefetch&& prefetch) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) r2[r][j] = dot0[r][j] = dot1[r][j] = 0;
    }
    for (int chunk = 0; chunk < chunks_; ++chunk) {
      __pipeline_wait_prior(0);
      __syncthreads();  // the stage is here; nobody reads the other stage any more
      const T* stage = stage_memory();
      parity_ ^= 1;
      if (chunk == 0) prefetch();
      if (chunk + 1 < chunks_) {
        copy_stage(tile, chunk + 1);
      } else if (tile + 1 < last) {
        copy_stage(tile + 1, 0);
      }
      __pipeline_commit();
      const int lines = min(Tile::kChunk, features_ - chunk * Tile::kChunk);
#pragma unroll(Tile::kUnroll)
      for (int f = 0; f < lines; ++f) multiply(stage, f, r2, dot0, dot1);
    }
    if (chunks_ == 1) {  // otherwise the second chunk has waited for the feature tiles
      __pipeline_wait_prior(0);
      __syncthreads();
    }
  }

  // Starts the copy of a whole column tile of a cloud, read by `sums`.
  __device__ __forceinline__ void copy_tile(int slot, int cloud, Index tile) {
    copy_features<kColumns, kSide * F>(feature_tile(slot), Tile::kLine,
                                       column_cloud_[cloud] + tile * kColumns, column_ld_, 0,
                                       features_);
  }

  // The same, outside of `products`, and waits for it.
  __device__ __forceinline__ void replace_tile(int slot, int cloud, Index tile) {
    __syncthreads();
    copy_tile(slot, cloud, tile);
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
  }

  __device__ __forceinline__ T* feature_tile(int slot) const {
    return coefficients() + Tile::kCoefficients + slot * Tile::kFeatureTile;
  }
  __device__ __forceinline__ const T* feature_line(int slot, int i) const {
    return feature_tile(slot) + feature(i) * Tile::kLine;
  }
  __device__ __forceinline__ const T* coefficient_line(int r) const {
    return coefficients() + (row() + r) * Tile::kLine;
  }

  // Coefficients to shared memory, for the threads of the same rows.
  __device__ __forceinline__ void share(const Values& values) {
    __syncwarp();  // they have read the coefficients before
#pragma unroll
    for (int r = 0; r < R; ++r) {
      Pack<T, kPerThread> pack;
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) pack.v[j] = values[r][j];
      *reinterpret_cast<Pack<T, kPerThread>*>(coefficients() + (row() + r) * Tile::kLine +
                                              column()) = pack;
    }
    __syncwarp();
  }

  // sums[r][i] += sum over columns of coefficient[r][column] tile[feature(i)][column].
  __device__ __forceinline__ void add_products(const Values& values, int slot,
                                               Sum<T> (&sums)[R][F]) {
    constexpr int kVector = Tile::kVector;
    share(values);
    T part[R][F] = {};
#pragma unroll 1
    for (int column = 0; column < kColumns; column += kVector) {
      T coefficient[R][kVector];
#pragma unroll
      for (int r = 0; r < R; ++r) read(coefficient[r], coefficient_line(r) + column);
#pragma unroll
      for (int i = 0; i < F; ++i) {
        T feature[kVector];
        read(feature, feature_line(slot, i) + column);
#pragma unroll
        for (int r = 0; r < R; ++r) {
#pragma unroll
          for (int j = 0; j < kVector; ++j) part[r][i] += coefficient[r][j] * feature[j];
        }
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int i = 0; i < F; ++i) sums[r][i] += part[r][i];
    }
  }

  // Writes the block's rows of out (features, ld), the sums of every thread.
  __device__ __forceinline__ void write(T* out, const Sum<T> (&sums)[R][F]) const {
#pragma unroll
    for (int i = 0; i < F; ++i) {
      if (feature(i) >= features_) continue;
#pragma unroll
      for (int r = 0; r < R; ++r) out[feature(i) * row_ld_ + row() + r] = sums[r][i].value;
    }
  }

  // Writes the block's rows of out (ld): the sum over the 16 threads of a row.
  __device__ __forceinline__ void write(T* out, const Sum<T> (&sums)[R]) const {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const T sum = warp_reduce<kSide>(sums[r].value);
      if (column_ == 0) out[row() + r] = sum;
    }
  }

 private:
  __device__ __forceinline__ T* stage_memory() const {
    return dynamic_shared<T>() + (parity_ ? kStage : 0);
  }
  __device__ __forceinline__ T* coefficients() const { return dynamic_shared<T>() + 2 * kStage; }

  __device__ __forceinline__ void copy_stage(Index tile, int chunk) {
    const int first = chunk * Tile::kChunk, end = min(first + Tile::kChunk, features_);
    T* to = stage_memory();
#pragma unroll
    for (int i = 0; i < P::kRowClouds; ++i, to += Tile::kChunk * Tile::kRows) {
      copy_features<Tile::kRows, Tile::kChunk>(to, Tile::kRows, row_cloud_[i], row_ld_, first, end);
    }
#pragma unroll
    for (int i = 0; i < P::kColumnClouds; ++i, to += Tile::kChunk * kColumns) {
      copy_features<kColumns, Tile::kChunk>(to, kColumns, column_cloud_[i] + tile * kColumns,
                                            column_ld_, first, end);
    }
  }

  __device__ __forceinline__ void multiply(const T* stage, int f, Values& r2, Values& dot0,
                                           Values& dot1) const {
    T row[P::kRowClouds][R], column[P::kColumnClouds][kPerThread];
    const T* columns = stage + P::kRowClouds * Tile::kChunk * Tile::kRows;
#pragma unroll
    for (int i = 0; i < P::kRowClouds; ++i) {
      read(row[i], stage + (i * Tile::kChunk + f) * Tile::kRows + row_ * R);
    }
#pragma unroll
    for (int i = 0; i < P::kColumnClouds; ++i) {
      read(column[i], columns + (i * Tile::kChunk + f) * kColumns + column_ * kPerThread);
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        const T difference = row[0][r] - column[0][j];
        r2[r][j] += difference * difference;
        if constexpr (P::kDots > 0) dot0[r][j] += row[P::kRow0][r] * column[P::kColumn0][j];
        if constexpr (P::kDots > 1) dot1[r][j] += row[P::kRow1][r] * column[P::kColumn1][j];
      }
    }
  }

  const T* row_cloud_[P::kRowClouds];
  const T* column_cloud_[P::kColumnClouds];
  int features_, chunks_;
  Index row_ld_, column_ld_;
  int row_, column_;
  int parity_ = 0;  // the stage that is filled next
};

}  // namespace stein
