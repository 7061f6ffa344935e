// Raw launchers of the direction and its backward on packed clouds (B, D, ld), D <= 128.
#pragma once

#include "types.h"

namespace stein {

struct DirectionArguments {
  const void *y, *x, *u, *w, *h;  // targets; sources, their drive or score, their weights
  void *out, *mass;               // (S, B, D, ldn), (S, B, ldn)
  Index batch, splits, targets, sources, target_ld, source_ld;
  int features;
  bool same, direct;
};

cudaError_t direction(Scalar scalar, const DirectionArguments& arguments, cudaStream_t stream);

// The particles at one end of the pairs.
struct DirectionSide {
  const void *x, *u, *v, *shift, *w;
  Index count, ld;
};

struct DirectionBackwardArguments {
  DirectionSide row, column;
  const void* h;
  void *out, *scalars;  // (S, 2, B, D, ldr), (S, 3, B, ldr)
  Index batch, splits;
  int features;
  bool same, as_source, as_target;
};

cudaError_t direction_backward(Scalar scalar, const DirectionBackwardArguments& arguments,
                               cudaStream_t stream);

}  // namespace stein
