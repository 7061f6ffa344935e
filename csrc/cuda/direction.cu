// The direction on packed clouds:
//   out_j  = sum_i w_i k_ij u_i, or, directly, sum_i w_i k_ij [g_i + c (y_j - x_i)]
//   mass_j = sum_i w_i k_ij
// with k = exp(-r2/h), c = 2/h; with `same` the pair (i, i) is left out.
#include "direction.h"

#include "tile.cuh"

namespace stein {
namespace {

using Products = Plan<1, 1>;  // r2 of y and x

template <class T>
struct Direction {
  Clouds<T, Products> clouds;
  const T *u, *w, *h;
  T *out, *mass;
  Extent extent;
};

// part[r] = sum over columns of q [g + c (y - x)], the differences taken as they are summed.
template <class Pairs, class T, int R>
__device__ __forceinline__ void add_direct(Pairs& pairs, const T (&q)[R][kPerThread],
                                           const T (&y)[R], T c, Sum<T> (&sums)[R][1]) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  pairs.share(q);
  T part[R] = {};
#pragma unroll 1
  for (int column = 0; column < kColumns; column += kVector) {
    T g[kVector], x[kVector];
    read(g, pairs.feature_line(0, 0) + column);
    read(x, pairs.feature_line(1, 0) + column);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      T coefficient[kVector];
      read(coefficient, pairs.coefficient_line(r) + column);
#pragma unroll
      for (int j = 0; j < kVector; ++j) part[r] += coefficient[j] * (g[j] + c * (y[r] - x[j]));
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) sums[r][0] += part[r];
}

template <class Tile, bool direct>
__global__ void __launch_bounds__(kThreads, (sizeof(typename Tile::T) == 4 && Tile::F <= 4 ? 2 : 1))
    direction_kernel(Direction<typename Tile::T> a) {
  using T = typename Tile::T;
  constexpr int R = Tile::R, F = Tile::F;
  const Part part(a.extent, Tile::kRows);
  Pairs<Tile, Products> pairs(a.clouds, part);
  const int features = a.clouds.features;
  const Index row_ld = a.clouds.row_ld, column_ld = a.clouds.column_ld;
  const Index columns = part.set * column_ld;
  const T h = a.h[part.set], factor = radial_factor(h), c = 2 / h;
  T y[R] = {};
  if (direct && pairs.feature(0) < features) {
    const Index line = (part.set * features + pairs.feature(0)) * row_ld;
    read(y, a.clouds.row[0] + line + part.row + pairs.row());
  }

  Sum<T> sums[R][F], mass[R];
  for (Index tile = part.tile; tile < part.last; ++tile) {
    T q[R][kPerThread], unused[R][kPerThread], weight[kPerThread];
    read(weight, a.w + columns + tile * kColumns + pairs.column());
    pairs.products(tile, part.last, q, unused, unused, [&] {
      const T* u = a.u + columns * features + tile * kColumns;
      copy_features<kColumns, kSide * F>(pairs.feature_tile(0), Tile::kLine, u, column_ld, 0,
                                         features);
      if (direct) pairs.copy_tile(1, 0, tile);
    });
    const Index apart = part.row + pairs.row() - (tile * kColumns + pairs.column());
#pragma unroll
    for (int r = 0; r < R; ++r) {
      T sum = 0;
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        q[r][j] = weight[j] * power_of_two(q[r][j] * factor);
        if (a.extent.same && apart == j - r) q[r][j] = 0;
        sum += q[r][j];
      }
      mass[r] += sum;
    }
    if constexpr (direct) {
      add_direct(pairs, q, y, c, sums);
    } else {
      pairs.add_products(q, 0, sums);
    }
  }
  const Index slot = part.split * a.extent.batch + part.set;
  pairs.write(a.out + slot * features * row_ld + part.row, sums);
  pairs.write(a.mass + slot * row_ld + part.row, mass);
}

template <class T, int F, bool direct>
cudaError_t run(const DirectionArguments& a, cudaStream_t stream) {
  using Shape = Tile<T, 4, F>;
  const auto in = [](const void* pointer) { return static_cast<const T*>(pointer); };
  const Direction<T> arguments = {
      {{in(a.y)}, {in(a.x)}, a.features, a.target_ld, a.source_ld},
      in(a.u),
      in(a.w),
      in(a.h),
      static_cast<T*>(a.out),
      static_cast<T*>(a.mass),
      {a.batch, a.targets, a.sources, a.splits, a.same},
  };
  return launch(direction_kernel<Shape, direct>, arguments.extent.blocks(Shape::kRows), kThreads,
                Pairs<Shape, Products>::shared_bytes(direct ? 2 : 1), stream, arguments);
}

template <class T>
cudaError_t choose(const DirectionArguments& a, cudaStream_t stream) {
  if (a.direct) return run<T, 1, true>(a, stream);
  if (a.features <= 16) return run<T, 1, false>(a, stream);
  if (a.features <= 32) return run<T, 2, false>(a, stream);
  if (a.features <= 64) return run<T, 4, false>(a, stream);
  return run<T, 8, false>(a, stream);
}

}  // namespace

cudaError_t direction(Scalar scalar, const DirectionArguments& arguments, cudaStream_t stream) {
  if (scalar == Scalar::kDouble) return choose<double>(arguments, stream);
  return choose<float>(arguments, stream);
}

}  // namespace stein
