// Raw launchers of the Gram matrix and its backward on packed clouds (B, D, ld), D <= 128.
#pragma once

#include "types.h"

namespace stein {

struct GramArguments {
  const void *x, *y, *h;
  void* out;  // (B, rows, columns), of any type that the clouds' type rounds to
  Scalar out_scalar;
  Index batch, rows, columns, row_ld, column_ld;
  int features;
};

cudaError_t gram(Scalar scalar, const GramArguments& arguments, cudaStream_t stream);

struct GramBackwardArguments {
  const void *row_x, *column_x, *v, *h;
  void *out, *sums;              // (S, B, D, ldr), (S, B, ldr)
  Index v_set, v_row, v_column;  // strides of v (B, rows, columns), in elements
  Index batch, splits, rows, columns, row_ld, column_ld;
  int features;
};

cudaError_t gram_backward(Scalar scalar, const GramBackwardArguments& arguments,
                          cudaStream_t stream);

}  // namespace stein
