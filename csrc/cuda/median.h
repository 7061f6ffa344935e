// Raw launchers of the exact median. stein_kernels/gpu/median.py says how they fit together, and
// stein_kernels/triton/median.py what the tensors hold.
#pragma once

#include "types.h"

namespace stein {

// A packed cloud (B, features, ld), NaN beyond the count, or squared distances (B, count, count).
struct MedianPoints {
  const void* data;
  Index batch, count;
  Index pitch;   // elements from one row to the next
  int features;  // 0 where distances are stored
  bool stored;
};

// Of a search: state (B, 8), histogram (B, rows, 2048), buckets (B, rows, 2048, depth).
struct MedianSearch {
  std::int64_t *state, *histogram;
  void* buckets;
  Index batch, count;
  int rows, depth;
};

cudaError_t median_sample(Scalar scalar, const MedianPoints& points, void* sample, Index size,
                          cudaStream_t stream);
cudaError_t median_pass(Scalar scalar, const MedianPoints& points, const MedianSearch& search,
                        cudaStream_t stream);
cudaError_t median_refine(Scalar scalar, const MedianSearch& search, cudaStream_t stream);

}  // namespace stein
