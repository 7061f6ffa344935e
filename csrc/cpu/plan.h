// Which flow a shape takes, as plain numbers: read by the kernels and by module.cpp, free of torch
// headers.
#pragma once

#include <cstdint>

namespace stein {

using Index = std::int64_t;

constexpr Index kDirect = 16;  // up to this d the field is summed by differences (see direct_field)
constexpr double kScattered = 5;  // the same at any d where a coordinate is this many sqrt(h) away
constexpr double kNothing = 104;  // exp(-r2 / h) is 0 in float32 from this r2 / h on
constexpr double kFarOff = 10;    // what has no such form is made in double from this distance on
constexpr double kModes = 50;     // or this many typical distances within the modes of a set
constexpr Index kSmallSet = 256;  // up to this M a set's Gram matrix (256 KB) stays in L2
constexpr Index kLongRow = 4096;  // from this d on, rows are streamed instead of packed

// Whether the M x N matrix of a set is worth keeping: it fits L2, or it is smaller than the inputs.
constexpr bool keeps_gram(Index m, Index n, Index d) {
  return d > kDirect && m > 0 && n > 0 && (m * n <= kSmallSet * kSmallSet || m * n <= (m + n) * d);
}

// The same for the direction's backward, which keeps up to four matrices with rows of whole
// vectors: few targets of many sources would take several times the inputs.
constexpr bool keeps_pairs(Index m, Index n, Index d) {
  const Index padded = ((m + 15) / 16 * 16) * ((n + 15) / 16 * 16);
  return keeps_gram(m, n, d) && (padded <= Index{1} << 21 || padded <= (m + n) * d);
}

constexpr const char* flow(Index m, Index n, Index d) {
  if (!keeps_gram(m, n, d)) return d <= kDirect ? "tiled, field by differences" : "tiled";
  return d >= kLongRow ? "stored Gram, rows streamed" : "stored Gram";
}

}  // namespace stein
