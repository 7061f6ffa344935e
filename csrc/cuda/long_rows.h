// Raw launchers for long rows (B, M, d): inner products split over features, and the direction.
#pragma once

#include "types.h"

namespace stein {

// A user's rows: features contiguous, sets `total` rows apart, rows `step` elements.
struct LongRows {
  void* data;
  Index total, step;
};

// How a tile may be copied: in 16 bytes, in 4 (a double's 8), or, of a half type, by elements.
enum class Copy : int { kWide, kNarrow, kElements };

struct LongProductsArguments {
  LongRows row, column;
  const void *row_centre, *column_centre;  // (B, d)
  void* partial;                           // (S, B, rows, columns)
  Index batch, splits, rows, columns, features;
  bool same;  // column is row: tiles under the diagonal are left unwritten
  Copy copy;
};

// Particles of a set that one block holds, centred by it on its own mean.
constexpr int kWholeSet = 128, kWholeSetOfDoubles = 64;

cudaError_t long_products(Scalar scalar, const LongProductsArguments& arguments,
                          cudaStream_t stream);

struct LongDirectionArguments {
  const void *coef, *mass, *own, *h;  // (B, M, N), (B, N), (B, N), (B,)
  LongRows x, grad, y, out;
  void *first, *second;  // moments, (B, M, d), and the factors of a step: with Adam
  const void* factors;
  Index batch, sources, targets, features;
  Index origin;  // the source that is the first target; below 0 targets are no sources
  Copy copy, coef_copy;
};

cudaError_t long_direction(Scalar scalar, const LongDirectionArguments& arguments, bool adam,
                           cudaStream_t stream);

}  // namespace stein
