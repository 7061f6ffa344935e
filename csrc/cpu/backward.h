// The loop that every backward shares: lanes are the particles whose gradient is made, rows are the particles
// they are paired with; each lane's sums over rows are gathered in double and handed to `finish`.
#pragma once

#include <algorithm>
#include <vector>

#include "pairs.h"

namespace stein {

constexpr Index kPairRows = 64;  // three tiles of 64 x 64 floats: 48 KB, one L1 cache

// One side of the pairs: n particles, feature-major for the products that make pair values, row-major for the
// sums over rows. Members that a pass does not need stay null.
template <class T>
struct Side {
  Index n = 0, ld = 0;
  const T* x = nullptr;       // packed [d, ld], as given: only differences of it are taken
  const T* drive = nullptr;   // packed [d, ld]: g - c x, or g
  const T* other = nullptr;   // packed [d, ld]: the cotangent, or centred x
};

// Sums over rows for one tile of lanes; entry (f, l) at [f * kTargets + l].
struct LaneSums {
  Buffer<double> first, second, third, sum, mass, weight;
  explicit LaneSums(Index d)
      : first(d * kTargets), second(d * kTargets), third(d * kTargets), sum(kTargets), mass(kTargets),
        weight(kTargets) {}
  void clear(Index d) {
    for (double* p : {first.get(), second.get(), third.get()}) std::fill_n(p, d * kTargets, 0.0);
    for (double* p : {sum.get(), mass.get(), weight.get()}) std::fill_n(p, kTargets, 0.0);
  }
};

// tile(i0, rows, j0, lanes, sums) for every tile, then finish(j0, real lanes, sums, index of the lane tile).
template <class Scratch, class Tile, class Finish>
void for_each_lane_tile(Index rows_total, Index lanes_total, Index d, const Scratch& make_scratch,
                        const Tile& tile, const Finish& finish) {
  const Index ld = padded(lanes_total);
  parallel(at::divup(lanes_total, kTargets), 1, [&](Index begin, Index end) {
    LaneSums sums(d);
    auto scratch = make_scratch();
    for (Index t = begin; t < end; ++t) {
      const Index j0 = t * kTargets, lanes = std::min(kTargets, ld - j0);
      sums.clear(d);
      for (Index i0 = 0; i0 < rows_total; i0 += kPairRows)
        tile(i0, std::min(kPairRows, rows_total - i0), j0, lanes, sums, scratch);
      finish(j0, std::min(kTargets, lanes_total - j0), sums, t);
    }
  });
}

// Packed [d, ld] copy of rows [n, d].
template <class T>
struct Packed {
  Index ld;
  Buffer<T> data;
  Packed(const T* rows, Index n, Index d) : ld(padded(n)), data(d * ld) {
    pack_features(rows, n, d, data.get(), ld);
  }
};

// Rows minus the centre.
template <class T>
void centred_rows(const T* x, Index n, Index d, const T* centre, T* out) {
  parallel(n, 512, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i)
      for (Index f = 0; f < d; ++f) out[i * d + f] = x[i * d + f] - centre[f];
  });
}

template <class T>
T dot(const T* a, const T* b, Index n) {
  double total = 0;
  for (Index f = 0; f < n; ++f) total += static_cast<double>(a[f]) * b[f];
  return static_cast<T>(total);
}

}  // namespace stein
