// The Gram matrix of packed clouds, k_ij = exp(-|x_i - y_j|^2 / h), rounded once to the type asked
// for. Distances are differences: where x is y the diagonal is exactly 1.
#include "gram.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "tile.cuh"

namespace stein {
namespace {

using Products = Plan<1, 1>;

__device__ __forceinline__ void round_to(float& to, float value) { to = value; }
__device__ __forceinline__ void round_to(double& to, double value) { to = value; }
__device__ __forceinline__ void round_to(__half& to, float value) { to = __float2half(value); }
__device__ __forceinline__ void round_to(__nv_bfloat16& to, float value) {
  to = __float2bfloat16(value);
}

template <class T, class Out>
struct Gram {
  Clouds<T, Products> clouds;
  const T* h;
  Out* out;
  Extent extent;
  bool aligned;  // four neighbours in a row of out may be written at once
};

template <class Tile, class Out>
__global__ void __launch_bounds__(kThreads, sizeof(typename Tile::T) == 4 ? 2 : 1)
    gram_kernel(Gram<typename Tile::T, Out> a) {
  using T = typename Tile::T;
  constexpr int R = Tile::R;
  const Part part(a.extent, Tile::kRows);
  Pairs<Tile, Products> pairs(a.clouds, part);
  const T factor = radial_factor(a.h[part.set]);
  const Index row = part.row + pairs.row();
  Out* out = a.out + (part.set * a.extent.rows + row) * a.extent.columns;

  for (Index tile = part.tile; tile < part.last; ++tile) {
    T r2[R][kPerThread], unused[R][kPerThread];
    pairs.products(tile, part.last, r2, unused, unused, [] {});
    const Index column = tile * kColumns + pairs.column();
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (row + r >= a.extent.rows) break;
      Pack<Out, kPerThread> pack;
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        round_to(pack.v[j], power_of_two(r2[r][j] * factor));
      }
      Out* at = out + r * a.extent.columns + column;
      if (a.aligned && column < a.extent.columns) {
        *reinterpret_cast<Pack<Out, kPerThread>*>(at) = pack;
        continue;
      }
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        if (column + j < a.extent.columns) at[j] = pack.v[j];
      }
    }
  }
}

template <class T, class Out>
cudaError_t run(const GramArguments& a, cudaStream_t stream) {
  using Shape = Tile<T, 4, 1>;
  constexpr Index kTiles = 4;  // of columns for a block: their first copies wait for nothing
  constexpr std::uintptr_t kAlignment = sizeof(Pack<Out, kPerThread>);
  const Gram<T, Out> arguments = {
      {{static_cast<const T*>(a.x)},
       {static_cast<const T*>(a.y)},
       a.features,
       a.row_ld,
       a.column_ld},
      static_cast<const T*>(a.h),
      static_cast<Out*>(a.out),
      {a.batch, a.rows, a.columns, cdiv(cdiv(a.columns, kColumns), kTiles), false},
      a.columns % kPerThread == 0 && reinterpret_cast<std::uintptr_t>(a.out) % kAlignment == 0,
  };
  return launch(gram_kernel<Shape, Out>, arguments.extent.blocks(Shape::kRows), kThreads,
                Pairs<Shape, Products>::shared_bytes(0), stream, arguments);
}

}  // namespace

cudaError_t gram(Scalar scalar, const GramArguments& arguments, cudaStream_t stream) {
  if (scalar == Scalar::kDouble) {
    return arguments.out_scalar == Scalar::kDouble ? run<double, double>(arguments, stream)
                                                   : cudaErrorInvalidValue;
  }
  switch (arguments.out_scalar) {
    case Scalar::kFloat:
      return run<float, float>(arguments, stream);
    case Scalar::kHalf:
      return run<float, __half>(arguments, stream);
    case Scalar::kBFloat16:
      return run<float, __nv_bfloat16>(arguments, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace stein
