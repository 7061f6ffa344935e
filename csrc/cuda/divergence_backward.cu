// The backward of the Stein divergence on packed clouds: sums over columns for every row, with
// t = c D - c^2 r2 - c e and v the cotangent of a target:
//   as target: e = g_c . x_r - along_c,  q = w_c k v_r;  out[1] += q g_c
//   as source: e = g_r . x_c - along_r,  q = w_r k v_c;  out[2] += q x_c
//                                        scalars[1] += q;  scalars[2] += k v_c t
//   in both:   R = -2 q (t/h + c^2);  out[0] += R x_c;  scalars[0] += R
#include "divergence.h"
#include "tile.cuh"

namespace stein {
namespace {

// r2; x_r . g_c for a target, g_r . x_c for a source.
template <bool as_source, bool as_target>
using Products = std::conditional_t<
    as_source, std::conditional_t<as_target, Plan<2, 2, 2, 0, 1, 1, 0>, Plan<2, 1, 1, 1, 0>>,
    Plan<1, 2, 1, 0, 1>>;

template <class T, class P>
struct Backward {
  Clouds<T, P> clouds;
  // As target the row has a cotangent, the column weights and g . x; as source the other way round.
  const T *h, *row_v, *column_w, *column_along, *column_v, *row_w, *row_along;
  T *out, *scalars;
  Extent extent;
};

template <class Tile, bool as_source, bool as_target>
__global__ void __launch_bounds__(kThreads, 1)
    divergence_backward_kernel(Backward<typename Tile::T, Products<as_source, as_target>> a) {
  using T = typename Tile::T;
  constexpr int R = Tile::R, F = Tile::F;
  const Part part(a.extent, Tile::kRows);
  Pairs<Tile, Products<as_source, as_target>> pairs(a.clouds, part);
  const int features = a.clouds.features;
  const Index row_ld = a.clouds.row_ld, columns = part.set * a.clouds.column_ld;
  const Index row = part.set * row_ld + part.row + pairs.row();
  const T h = a.h[part.set], inverse = 1 / h, factor = radial_factor(h), c = 2 / h,
          start = c * T(features);
  T row_v[R] = {}, row_w[R] = {}, row_along[R] = {};
  if constexpr (as_target) read(row_v, a.row_v + row);
  if constexpr (as_source) {
    read(row_w, a.row_w + row);
    read(row_along, a.row_along + row);
  }

  Sum<T> moved[R][F], scored[R][F], carried[R][F], total[R], mass[R], product[R];
  for (Index tile = part.tile; tile < part.last; ++tile) {
    // k and the dot products become the coefficients of the three sums.
    T moving[R][kPerThread], scoring[R][kPerThread], carrying[R][kPerThread];
    auto& dot = as_target ? scoring : carrying;
    pairs.products(tile, part.last, moving, dot, as_target ? carrying : scoring,
                   [&] { pairs.copy_tile(0, 0, tile); });
    T weight[kPerThread] = {}, along[kPerThread] = {}, v[kPerThread] = {};
    const Index column = columns + tile * kColumns + pairs.column();
    if constexpr (as_target) {
      read(weight, a.column_w + column);
      read(along, a.column_along + column);
    }
    if constexpr (as_source) read(v, a.column_v + column);
    const Index apart = part.row + pairs.row() - (tile * kColumns + pairs.column());
#pragma unroll
    for (int r = 0; r < R; ++r) {
      T total_part = 0, mass_part = 0, product_part = 0;
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        const T near = start - c * c * moving[r][j];
        T k = power_of_two(factor * moving[r][j]), sum = 0;
        if (a.extent.same && apart == j - r) k = 0;
        if constexpr (as_target) {
          const T t = near - c * (scoring[r][j] - along[j]), q = weight[j] * k * row_v[r];
          sum = q * (t * inverse + c * c);
          scoring[r][j] = q;
        }
        if constexpr (as_source) {
          const T t = near - c * (carrying[r][j] - row_along[r]), kv = k * v[j];
          const T q = row_w[r] * kv;
          sum += q * (t * inverse + c * c);
          carrying[r][j] = q;
          mass_part += q;
          product_part += kv * t;
        }
        moving[r][j] = -2 * sum;
        total_part += moving[r][j];
      }
      total[r] += total_part;
      if constexpr (as_source) mass[r] += mass_part;
      if constexpr (as_source) product[r] += product_part;
    }
    pairs.add_products(moving, 0, moved);
    if constexpr (as_source) pairs.add_products(carrying, 0, carried);
    if constexpr (as_target) {
      pairs.replace_tile(0, 1, tile);
      pairs.add_products(scoring, 0, scored);
    }
  }
  const Index slots = a.extent.batch, cloud = slots * features * row_ld;
  T* out = a.out + (part.split * 3 * slots + part.set) * features * row_ld + part.row;
  pairs.write(out, moved);
  if constexpr (as_target) pairs.write(out + cloud, scored);
  if constexpr (as_source) pairs.write(out + 2 * cloud, carried);
  T* scalars = a.scalars + (part.split * 3 * slots + part.set) * row_ld + part.row;
  pairs.write(scalars, total);
  if constexpr (as_source) pairs.write(scalars + slots * row_ld, mass);
  if constexpr (as_source) pairs.write(scalars + 2 * slots * row_ld, product);
}

template <class Tile, bool as_source, bool as_target>
cudaError_t run(const DivergenceBackwardArguments& a, cudaStream_t stream) {
  using T = typename Tile::T;
  using P = Products<as_source, as_target>;
  const auto in = [](const void* pointer) { return static_cast<const T*>(pointer); };
  Backward<T, P> arguments = {
      {{}, {}, a.features, a.row.ld, a.column.ld},
      in(a.h),
      in(a.row.v),
      in(a.column.w),
      in(a.column.along),
      in(a.column.v),
      in(a.row.w),
      in(a.row.along),
      static_cast<T*>(a.out),
      static_cast<T*>(a.scalars),
      {a.batch, a.row.count, a.column.count, a.splits, a.same},
  };
  arguments.clouds.row[0] = in(a.row.x);
  arguments.clouds.column[0] = in(a.column.x);
  if constexpr (as_source) arguments.clouds.row[1] = in(a.row.g);
  if constexpr (as_target) arguments.clouds.column[1] = in(a.column.g);
  return launch(divergence_backward_kernel<Tile, as_source, as_target>,
                arguments.extent.blocks(Tile::kRows), kThreads, Pairs<Tile, P>::shared_bytes(1),
                stream, arguments);
}

template <class Tile>
cudaError_t choose_role(const DivergenceBackwardArguments& a, cudaStream_t stream) {
  if (a.as_source && a.as_target) return run<Tile, true, true>(a, stream);
  if (a.as_source) return run<Tile, true, false>(a, stream);
  if (a.as_target) return run<Tile, false, true>(a, stream);
  return cudaErrorInvalidValue;
}

// Three vector sums a row stay in registers: tiles of 64 rows, 32 for doubles, and half of that
// above 32 features.
template <class T>
cudaError_t choose(const DivergenceBackwardArguments& a, cudaStream_t stream) {
  constexpr int rows = sizeof(T) == 4 ? 4 : 2;
  if (a.features <= 16) return choose_role<Tile<T, rows, 1>>(a, stream);
  if (a.features <= 32) return choose_role<Tile<T, rows, 2>>(a, stream);
  if (a.features <= 64) return choose_role<Tile<T, rows / 2, 4>>(a, stream);
  return choose_role<Tile<T, rows / 2, 8>>(a, stream);
}

}  // namespace

cudaError_t divergence_backward(Scalar scalar, const DivergenceBackwardArguments& arguments,
                                cudaStream_t stream) {
  if (scalar == Scalar::kDouble) return choose<double>(arguments, stream);
  return choose<float>(arguments, stream);
}

}  // namespace stein
