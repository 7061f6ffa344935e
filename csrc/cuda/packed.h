// Checks of the launches on packed clouds (B, D, ld), D <= 128.
#pragma once

#include <string>

#include "binding.h"

namespace stein {

// Sums are exact products of the type; narrower ones are Triton's.
inline void check_precision(const std::string& precision) {
  TORCH_CHECK(precision == "ieee", "stein_kernels_cuda: expected precision \"ieee\", got \"",
              precision, "\"");
}

// A shape, and in its last dimension room for `count` particles, in whole tiles of 128; the
// features, the last dimension but one of a cloud, number at most 128.
inline void check_sizes(const at::Tensor& tensor, at::IntArrayRef expected, Index count) {
  TORCH_CHECK(tensor.sizes() == expected, "stein_kernels_cuda: expected a tensor of shape ",
              expected, ", got ", tensor.sizes());
  if (tensor.dim() == 1) return;
  TORCH_CHECK(tensor.size(-1) % 128 == 0 && 0 <= count && count <= tensor.size(-1),
              "stein_kernels_cuda: ", count, " particles in a packed tensor ", tensor.sizes());
  TORCH_CHECK(tensor.dim() == 2 || tensor.size(-2) <= 128,
              "stein_kernels_cuda: at most 128 features, got ", tensor.sizes());
}

}  // namespace stein
