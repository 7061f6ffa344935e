// partial[s]_rc = sum over the features of split s of (row_r - centre) . (column_c - centre).
//
// A block of 16 x 16 threads takes a tile of 16 R rows by as many columns; blocks of features
// stream through a ring of stages by asynchronous copies, are widened and centred into a second
// buffer, and multiplied from there. A set that fits one tile is read once and centred on its own
// mean.
#include "long_rows.cuh"

namespace stein {
namespace {

using namespace long_rows;

constexpr int kBlock = 32;  // features of a stage
constexpr int kChunk = 4;   // stages that are summed before their sum joins the total
constexpr int kStages = 3;
constexpr int kParts = kThreads / kBlock;

struct Products {
  LongProductsArguments a;
  Index span;  // features of a split, a multiple of kBlock
};

// How a tile lies in shared memory.
template <class T, class User, int R, bool whole>
struct Tile {
  static constexpr int kRows = kSide * R;
  static constexpr int kSides = whole ? 1 : 2;
  // An odd number of 16-byte units: eight neighbouring rows start in eight different banks.
  static constexpr int kLine = kBlock + 16 / static_cast<int>(sizeof(T));
  static constexpr int kClean = kRows * kLine;
  static constexpr int kRaw = kRows * kBlock;
  static constexpr size_t kBytes =
      sizeof(T) * (kSides * kClean + kThreads) + sizeof(User) * kStages * kSides * kRaw;
};

// The mean of `rows` rows for the feature of this thread; `scratch` holds one value a thread.
template <class T, class User>
__device__ __forceinline__ T own_mean(const User* raw, T* scratch, Index rows) {
  const int feature = static_cast<int>(threadIdx.x) % kBlock;
  T sum = 0;
  for (Index row = threadIdx.x / kBlock; row < rows; row += kParts) {
    sum += wide(raw[row * kBlock + feature]);
  }
  scratch[threadIdx.x] = sum;
  __syncthreads();
  sum = 0;
#pragma unroll
  for (int part = 0; part < kParts; ++part) sum += scratch[part * kBlock + feature];
  return sum / static_cast<T>(rows);
}

// Widened and centred rows; zero beyond the last row and feature.
template <int rows, int line, class T, class User>
__device__ __forceinline__ void clean(T* to, const User* raw, T centre, Index count, Index left) {
  const int feature = static_cast<int>(threadIdx.x) % kBlock;
  for (int row = static_cast<int>(threadIdx.x) / kBlock; row < rows; row += kParts) {
    const bool there = row < count && feature < left;
    to[row * line + feature] = there ? wide(raw[row * kBlock + feature]) - centre : T(0);
  }
}

template <int line, class T, int R>
__device__ __forceinline__ void multiply(const T* rows, const T* columns, T (&part)[R][R]) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  const int across = static_cast<int>(threadIdx.x) % kSide;
  const int down = static_cast<int>(threadIdx.x) / kSide;
#pragma unroll 1
  for (int at = 0; at < kBlock; at += kVector) {
    T a[R][kVector];
#pragma unroll
    for (int r = 0; r < R; ++r) read(a[r], rows + (down + kSide * r) * line + at);
#pragma unroll
    for (int c = 0; c < R; ++c) {
      T b[kVector];
      read(b, columns + (across + kSide * c) * line + at);
#pragma unroll
      for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int v = 0; v < kVector; ++v) part[r][c] += a[r][v] * b[v];
      }
    }
  }
}

template <class T, class User, int R, bool whole>
__global__ void __launch_bounds__(kThreads, 1) products_kernel(Products arguments) {
  using Shape = Tile<T, User, R, whole>;
  constexpr int kRows = Shape::kRows, kLine = Shape::kLine;
  const LongProductsArguments& a = arguments.a;
  const Index row_tiles = cdiv(a.rows, kRows), tiles = row_tiles * cdiv(a.columns, kRows);
  const Index tile = blockIdx.x % tiles, split = blockIdx.x / tiles % a.splits;
  const Index set = blockIdx.x / tiles / a.splits;
  const Index row = tile % row_tiles * kRows, column = tile / row_tiles * kRows;
  if (a.same && row > column) return;

  const Index first = split * arguments.span;
  const Index end = first + arguments.span, last = end < a.features ? end : a.features;
  const Index blocks = last > first ? cdiv(last - first, kBlock) : 0;
  const User* from[2] = {begin<User>(a.row, set) + row * a.row.step,
                         begin<User>(a.column, set) + column * a.column.step};
  const Index step[2] = {a.row.step, a.column.step};
  const Index count[2] = {a.rows - row, a.columns - column};
  const T* centre[2] = {static_cast<const T*>(a.row_centre) + set * a.features,
                        static_cast<const T*>(a.column_centre) + set * a.features};
  T* ready = dynamic_shared<T>();  // [side][row][feature]
  T* scratch = ready + Shape::kSides * Shape::kClean;
  User* raw = reinterpret_cast<User*>(scratch + kThreads);  // [stage][side][row][feature]

  const auto stage = [&](Index block) {
    return raw + block % kStages * Shape::kSides * Shape::kRaw;
  };
  const auto start = [&](Index block) {
    const Index at = first + block * kBlock;
    if (block < blocks) {
#pragma unroll
      for (int side = 0; side < Shape::kSides; ++side) {
        const Source<User> source = {from[side] + at, step[side], count[side], last - at};
        copy_tile<kRows, kBlock>(stage(block) + side * Shape::kRaw, source, a.copy);
      }
    }
    __pipeline_commit();
  };
  for (Index block = 0; block < kStages - 1; ++block) start(block);

  Total<T, (R < 8)> total[R][R];  // a whole set has many splits: each adds up few parts
  T part[R][R] = {};
  for (Index block = 0; block < blocks; ++block) {
    __pipeline_wait_prior(kStages - 2);
    __syncthreads();
    const Index at = first + block * kBlock;
    const int feature = static_cast<int>(threadIdx.x) % kBlock;
#pragma unroll
    for (int side = 0; side < Shape::kSides; ++side) {
      const User* lines = stage(block) + side * Shape::kRaw;
      const bool there = at + feature < last;
      const T middle = whole   ? own_mean(lines, scratch, count[side])
                       : there ? centre[side][at + feature]
                               : T(0);
      clean<kRows, kLine>(ready + side * Shape::kClean, lines, middle, count[side], last - at);
    }
    __syncthreads();
    start(block + kStages - 1);  // into the stage before this one, which all threads have read
    multiply<kLine>(ready, ready + (Shape::kSides - 1) * Shape::kClean, part);
    if ((block + 1) % kChunk == 0 || block + 1 == blocks) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int c = 0; c < R; ++c) {
          total[r][c] += part[r][c];
          part[r][c] = 0;
        }
      }
    }
  }

  T* out = static_cast<T*>(a.partial) + (split * a.batch + set) * a.rows * a.columns;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const Index i = row + threadIdx.x / kSide + kSide * r;
#pragma unroll
    for (int c = 0; c < R; ++c) {
      const Index j = column + threadIdx.x % kSide + kSide * c;
      if (i < a.rows && j < a.columns) out[i * a.columns + j] = total[r][c].value;
    }
  }
}

template <class T, class User, int R, bool whole>
cudaError_t run(const LongProductsArguments& a, cudaStream_t stream) {
  using Shape = Tile<T, User, R, whole>;
  const Products arguments = {a, cdiv(cdiv(a.features, a.splits), kBlock) * kBlock};
  const Index blocks =
      cdiv(a.rows, Shape::kRows) * cdiv(a.columns, Shape::kRows) * a.splits * a.batch;
  return launch(products_kernel<T, User, R, whole>, blocks, dim3(kThreads), Shape::kBytes, stream,
                arguments);
}

}  // namespace

cudaError_t long_products(Scalar scalar, const LongProductsArguments& a, cudaStream_t stream) {
  return with_types(scalar, [&](auto t, auto user) {
    using T = decltype(t);
    using User = decltype(user);
    if (a.same && a.rows <= 32) return run<T, User, 2, true>(a, stream);
    if (a.same && a.rows <= 64) return run<T, User, 4, true>(a, stream);
    if constexpr (sizeof(T) == 4) {
      if (a.same && a.rows <= kWholeSet) return run<T, User, 8, true>(a, stream);
    }
    return run<T, User, 4, false>(a, stream);
  });
}

}  // namespace stein
