// The backward of the Gram matrix on packed clouds, sums over columns c for every row r:
//   q = k_rc v_rc;  out[r] = sum q x_c,  sums[r] = sum q
// The cotangent v is read where it lies, by its strides; it is not padded.
#include "gram.h"
#include "tile.cuh"

namespace stein {
namespace {

using Products = Plan<1, 1>;

template <class T>
struct Backward {
  Clouds<T, Products> clouds;
  const T *v, *h;
  Index v_set, v_row, v_column;
  T *out, *sums;
  Extent extent;
};

template <class Tile>
__global__ void __launch_bounds__(kThreads, 1) gram_backward_kernel(Backward<typename Tile::T> a) {
  using T = typename Tile::T;
  constexpr int R = Tile::R, F = Tile::F;
  const Part part(a.extent, Tile::kRows);
  Pairs<Tile, Products> pairs(a.clouds, part);
  const T factor = radial_factor(a.h[part.set]);
  const Index row = part.row + pairs.row();
  const T* v = a.v + part.set * a.v_set + row * a.v_row;

  Sum<T> moved[R][F], total[R];
  for (Index tile = part.tile; tile < part.last; ++tile) {
    T q[R][kPerThread], unused[R][kPerThread];
    pairs.products(tile, part.last, q, unused, unused, [&] { pairs.copy_tile(0, 0, tile); });
    const Index column = tile * kColumns + pairs.column();
#pragma unroll
    for (int r = 0; r < R; ++r) {
      T sum = 0;
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        const bool inside = row + r < a.extent.rows && column + j < a.extent.columns;
        const T cotangent = inside ? v[r * a.v_row + (column + j) * a.v_column] : T(0);
        q[r][j] = inside ? cotangent * power_of_two(q[r][j] * factor) : T(0);
        sum += q[r][j];
      }
      total[r] += sum;
    }
    pairs.add_products(q, 0, moved);
  }
  const Index slot = part.split * a.extent.batch + part.set, row_ld = a.clouds.row_ld;
  pairs.write(a.out + slot * a.clouds.features * row_ld + part.row, moved);
  pairs.write(a.sums + slot * row_ld + part.row, total);
}

template <class T, int F>
cudaError_t run(const GramBackwardArguments& a, cudaStream_t stream) {
  using Shape = Tile<T, 4, F>;
  const auto in = [](const void* pointer) { return static_cast<const T*>(pointer); };
  const Backward<T> arguments = {
      {{in(a.row_x)}, {in(a.column_x)}, a.features, a.row_ld, a.column_ld},
      in(a.v),
      in(a.h),
      a.v_set,
      a.v_row,
      a.v_column,
      static_cast<T*>(a.out),
      static_cast<T*>(a.sums),
      {a.batch, a.rows, a.columns, a.splits, false},
  };
  return launch(gram_backward_kernel<Shape>, arguments.extent.blocks(Shape::kRows), kThreads,
                Pairs<Shape, Products>::shared_bytes(1), stream, arguments);
}

template <class T>
cudaError_t choose(const GramBackwardArguments& a, cudaStream_t stream) {
  if (a.features <= 16) return run<T, 1>(a, stream);
  if (a.features <= 32) return run<T, 2>(a, stream);
  if (a.features <= 64) return run<T, 4>(a, stream);
  return run<T, 8>(a, stream);
}

}  // namespace

cudaError_t gram_backward(Scalar scalar, const GramBackwardArguments& arguments,
                          cudaStream_t stream) {
  if (scalar == Scalar::kDouble) return choose<double>(arguments, stream);
  return choose<float>(arguments, stream);
}

}  // namespace stein
