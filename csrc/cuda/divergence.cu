// The Stein divergence on packed clouds:
//   out_j = sum_i w_i k_ij [c D - c^2 r2 - c (g_i . y_j - along_i)],  along_i = g_i . x_i
// with k = exp(-r2/h), c = 2/h; with `same` the pair (i, i) is left out.
#include "divergence.h"

#include "tile.cuh"

namespace stein {
namespace {

using Products = Plan<1, 2, 1, 0, 1>;  // r2 of y and x; y . g

template <class T>
struct Divergence {
  Clouds<T, Products> clouds;
  const T *along, *w, *h;
  T* out;
  Extent extent;
};

template <class Tile>
__global__ void __launch_bounds__(kThreads, sizeof(typename Tile::T) == 4 ? 2 : 1)
    divergence_kernel(Divergence<typename Tile::T> a) {
  using T = typename Tile::T;
  constexpr int R = Tile::R;
  const Part part(a.extent, Tile::kRows);
  Pairs<Tile, Products> pairs(a.clouds, part);
  const Index columns = part.set * a.clouds.column_ld, row_ld = a.clouds.row_ld;
  const T h = a.h[part.set], factor = radial_factor(h), c = 2 / h, start = c * T(a.clouds.features);

  Sum<T> sums[R];
  for (Index tile = part.tile; tile < part.last; ++tile) {
    T r2[R][kPerThread], dot[R][kPerThread], unused[R][kPerThread];
    T weight[kPerThread], along[kPerThread];
    pairs.products(tile, part.last, r2, dot, unused, [] {});
    const Index column = tile * kColumns + pairs.column();
    read(weight, a.w + columns + column);
    read(along, a.along + columns + column);
    const Index apart = part.row + pairs.row() - column;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      T sum = 0;
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        T q = weight[j] * power_of_two(r2[r][j] * factor);
        if (a.extent.same && apart == j - r) q = 0;
        sum += q * (start - c * (c * r2[r][j] + (dot[r][j] - along[j])));
      }
      sums[r] += sum;
    }
  }
  pairs.write(a.out + (part.split * a.extent.batch + part.set) * row_ld + part.row, sums);
}

template <class T>
cudaError_t run(const DivergenceArguments& a, cudaStream_t stream) {
  using Shape = Tile<T, 4, 1>;
  const auto in = [](const void* pointer) { return static_cast<const T*>(pointer); };
  const Divergence<T> arguments = {
      {{in(a.y)}, {in(a.x), in(a.g)}, a.features, a.target_ld, a.source_ld},
      in(a.along),
      in(a.w),
      in(a.h),
      static_cast<T*>(a.out),
      {a.batch, a.targets, a.sources, a.splits, a.same},
  };
  return launch(divergence_kernel<Shape>, arguments.extent.blocks(Shape::kRows), kThreads,
                Pairs<Shape, Products>::shared_bytes(0), stream, arguments);
}

}  // namespace

cudaError_t divergence(Scalar scalar, const DivergenceArguments& arguments, cudaStream_t stream) {
  if (scalar == Scalar::kDouble) return run<double>(arguments, stream);
  return run<float>(arguments, stream);
}

}  // namespace stein
