// Raw launchers for batches of small sets: the direction with its median in one launch, and its
// backward in one. A group of warps holds a set; what fits is what fits its shared memory.
#pragma once

#include "types.h"

namespace stein {

struct SmallSetArguments {
  const void *x, *grad, *w;  // (B, M, d), (B, M, d), (B, M) of the user's type
  void *h, *phi;             // (B,) of T, read where rule < 0, else written; (B, M, d)
  Index batch;
  int particles, features;
  bool weighted, leave_one_out;
  int rule;               // 0 median^2 / log(M + 1), 1 median, 2 median^2
  double scale, uniform;  // of median^2; the weight where none are given
};

struct SmallSetBackwardArguments {
  const void *v, *x, *grad, *w, *h;
  void* work;               // (B, M, d) of T
  void *dx, *dg, *dw, *dh;  // (B, M, d), (B, M, d), (B, M) where weighted, (B,) of T
  Index batch;
  int particles, features;
  bool weighted, leave_one_out;
  double uniform;
};

// Whether a set of this size fits a block; T is float or, for kDouble, double.
bool small_set_fits(Scalar scalar, int particles, int features);

cudaError_t small_set(Scalar scalar, const SmallSetArguments& arguments, cudaStream_t stream);
cudaError_t small_set_backward(Scalar scalar, const SmallSetBackwardArguments& arguments,
                               cudaStream_t stream);

}  // namespace stein
