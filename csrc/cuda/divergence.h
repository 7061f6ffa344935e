// Raw launchers of the Stein divergence and its backward on packed clouds (B, D, ld), D <= 128.
#pragma once

#include "types.h"

namespace stein {

struct DivergenceArguments {
  const void *y, *x, *g, *along, *w, *h;  // targets; sources, their scores, g . x and weights
  void* out;                              // (S, B, ldn)
  Index batch, splits, targets, sources, target_ld, source_ld;
  int features;
  bool same;
};

cudaError_t divergence(Scalar scalar, const DivergenceArguments& arguments, cudaStream_t stream);

// The particles at one end of the pairs; v is the cotangent, one number a target.
struct DivergenceSide {
  const void *x, *g, *along, *w, *v;
  Index count, ld;
};

struct DivergenceBackwardArguments {
  DivergenceSide row, column;
  const void* h;
  void *out, *scalars;  // (S, 3, B, D, ldr), (S, 3, B, ldr)
  Index batch, splits;
  int features;
  bool same, as_source, as_target;
};

cudaError_t divergence_backward(Scalar scalar, const DivergenceBackwardArguments& arguments,
                                cudaStream_t stream);

}  // namespace stein
