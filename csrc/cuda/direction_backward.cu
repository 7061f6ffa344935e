// The backward of the direction on packed clouds: sums over columns c for every row r.
//   as target: a = u_c . v_r + c y_r . v_r,  S = w_c k a;  scalars[1] += w_c k
//   as source: a = u_r . v_c + c y_c . v_c,  S = w_r k a;  scalars[2] += k a;  out[1] += k v_c
//   out[0] = sum S x_c,  scalars[0] = sum S
// A particle that is both has both terms in S, from one pass over its pairs.
#include "direction.h"
#include "tile.cuh"

namespace stein {
namespace {

// r2; for one role one dot product of clouds 1, for two roles one more of clouds 2.
template <bool both>
using Products = std::conditional_t<both, Plan<3, 3, 2, 1, 1, 2, 2>, Plan<2, 2, 1, 1, 1>>;

template <class T, bool both>
struct Backward {
  Clouds<T, Products<both>> clouds;
  // As target the row has a shift and the column a weight; as source the other way round.
  const T *h, *row_shift, *column_weight, *row_weight, *column_shift;
  T *out, *scalars;
  Extent extent;
};

template <class Tile, bool as_source, bool as_target>
__global__ void __launch_bounds__(kThreads, 1)
    direction_backward_kernel(Backward<typename Tile::T, as_source && as_target> a) {
  using T = typename Tile::T;
  constexpr bool both = as_source && as_target;
  constexpr int R = Tile::R, F = Tile::F;
  const Part part(a.extent, Tile::kRows);
  Pairs<Tile, Products<both>> pairs(a.clouds, part);
  const int features = a.clouds.features;
  const Index row_ld = a.clouds.row_ld, columns = part.set * a.clouds.column_ld;
  const Index row = part.set * row_ld + part.row + pairs.row();
  const T h = a.h[part.set], factor = radial_factor(h), c = 2 / h;
  T row_shift[R] = {}, row_weight[R] = {};
  if constexpr (as_target) read(row_shift, a.row_shift + row);
  if constexpr (as_source) read(row_weight, a.row_weight + row);

  Sum<T> moved[R][F], carried[R][F], total[R], mass[R], product[R];
  for (Index tile = part.tile; tile < part.last; ++tile) {
    T s[R][kPerThread], k[R][kPerThread], other[R][kPerThread];
    T weight[kPerThread] = {}, shift[kPerThread] = {};
    const Index column = columns + tile * kColumns + pairs.column();
    if constexpr (as_target) read(weight, a.column_weight + column);
    if constexpr (as_source) read(shift, a.column_shift + column);
    pairs.products(tile, part.last, k, s, other, [&] { pairs.copy_tile(0, 0, tile); });
    const Index apart = part.row + pairs.row() - (tile * kColumns + pairs.column());
#pragma unroll
    for (int r = 0; r < R; ++r) {
      T total_part = 0, mass_part = 0, product_part = 0;
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        k[r][j] = power_of_two(k[r][j] * factor);
        if (a.extent.same && apart == j - r) k[r][j] = 0;
        T sum = 0;
        if constexpr (as_target) {
          const T q = weight[j] * k[r][j];
          sum = q * (s[r][j] + c * row_shift[r]);
          mass_part += q;
        }
        if constexpr (as_source) {
          const T ka = k[r][j] * ((both ? other[r][j] : s[r][j]) + c * shift[j]);
          sum += row_weight[r] * ka;
          product_part += ka;
        }
        s[r][j] = sum;
        total_part += sum;
      }
      total[r] += total_part;
      if constexpr (as_target) mass[r] += mass_part;
      if constexpr (as_source) product[r] += product_part;
    }
    pairs.add_products(s, 0, moved);
    if constexpr (as_source) {
      pairs.replace_tile(0, both ? 2 : 1, tile);
      pairs.add_products(k, 0, carried);
    }
  }
  const Index slots = a.extent.batch, first = part.split * 2 * slots + part.set;
  T* out = a.out + first * features * row_ld + part.row;
  pairs.write(out, moved);
  if constexpr (as_source) pairs.write(out + slots * features * row_ld, carried);
  T* scalars = a.scalars + (part.split * 3 * slots + part.set) * row_ld + part.row;
  pairs.write(scalars, total);
  if constexpr (as_target) pairs.write(scalars + slots * row_ld, mass);
  if constexpr (as_source) pairs.write(scalars + 2 * slots * row_ld, product);
}

template <class Tile, bool as_source, bool as_target>
cudaError_t run(const DirectionBackwardArguments& a, cudaStream_t stream) {
  using T = typename Tile::T;
  constexpr bool both = as_source && as_target;
  const auto in = [](const void* pointer) { return static_cast<const T*>(pointer); };
  Backward<T, both> arguments = {
      {{}, {}, a.features, a.row.ld, a.column.ld},
      in(a.h),
      in(a.row.shift),
      in(a.column.w),
      in(a.row.w),
      in(a.column.shift),
      static_cast<T*>(a.out),
      static_cast<T*>(a.scalars),
      {a.batch, a.row.count, a.column.count, a.splits, a.same},
  };
  arguments.clouds.row[0] = in(a.row.x);
  arguments.clouds.column[0] = in(a.column.x);
  arguments.clouds.row[1] = in(as_target ? a.row.v : a.row.u);
  arguments.clouds.column[1] = in(as_target ? a.column.u : a.column.v);
  if constexpr (both) {
    arguments.clouds.row[2] = in(a.row.u);
    arguments.clouds.column[2] = in(a.column.v);
  }
  return launch(direction_backward_kernel<Tile, as_source, as_target>,
                arguments.extent.blocks(Tile::kRows), kThreads,
                Pairs<Tile, Products<both>>::shared_bytes(1), stream, arguments);
}

template <class Tile>
cudaError_t choose_role(const DirectionBackwardArguments& a, cudaStream_t stream) {
  if (a.as_source && a.as_target) return run<Tile, true, true>(a, stream);
  if (a.as_source) return run<Tile, true, false>(a, stream);
  if (a.as_target) return run<Tile, false, true>(a, stream);
  return cudaErrorInvalidValue;
}

// Two vector sums a row: above 64 features, and for doubles, tiles of 32 rows hold them in
// registers.
template <class T>
cudaError_t choose(const DirectionBackwardArguments& a, cudaStream_t stream) {
  constexpr int rows = sizeof(T) == 4 ? 4 : 2;
  if (a.features <= 16) return choose_role<Tile<T, rows, 1>>(a, stream);
  if (a.features <= 32) return choose_role<Tile<T, rows, 2>>(a, stream);
  if (a.features <= 64) return choose_role<Tile<T, rows, 4>>(a, stream);
  return choose_role<Tile<T, 2, 8>>(a, stream);
}

}  // namespace

cudaError_t direction_backward(Scalar scalar, const DirectionBackwardArguments& arguments,
                               cudaStream_t stream) {
  if (scalar == Scalar::kDouble) return choose<double>(arguments, stream);
  return choose<float>(arguments, stream);
}

}  // namespace stein
