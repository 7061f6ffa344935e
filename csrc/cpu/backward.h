// The loop that every backward shares: lanes are the particles whose gradient is made, rows are the
// particles they are paired with; each lane's sums over rows are gathered in double and handed to
// `finish`.
#pragma once

#include <algorithm>
#include <vector>

#include "pairs.h"

namespace stein {

constexpr Index kPairRows = 64;  // three tiles of 64 x 64 floats: 48 KB, one L1 cache

// Where one set's gradients go.
template <class T>
struct Gradients {
  T *dx, *dg, *dw, *dy;  // dw and dy may be null
  double dh = 0;
};

// run(set, cotangent, gradients) in double, the results back in float.
template <class Run>
void gradients_in_double(const Set<float>& s, const float* v, Index cotangents,
                         Gradients<float>& out, const Run& run) {
  const WideSet wide(s);
  const std::vector<double> cotangent(v, v + cotangents);
  std::vector<double> dx(s.m * s.d), dg(s.m * s.d);
  std::vector<double> dw(out.dw ? s.m : 0), dy(out.dy ? s.n * s.d : 0);
  Gradients<double> found{dx.data(), dg.data(), out.dw ? dw.data() : nullptr,
                          out.dy ? dy.data() : nullptr};
  run(wide.set(), cotangent.data(), found);
  std::copy(dx.begin(), dx.end(), out.dx);
  std::copy(dg.begin(), dg.end(), out.dg);
  if (out.dw) std::copy(dw.begin(), dw.end(), out.dw);
  if (out.dy) std::copy(dy.begin(), dy.end(), out.dy);
  out.dh = found.dh;
}

// Sums over rows for one tile of `width` lanes; entry (f, l) of a field at [f * width + l].
struct LaneSums {
  Index d, fields, width = 0;
  Buffer<double> field, sum, mass, weight, spread;
  LaneSums(Index d_in, Index fields_in)
      : d(d_in),
        fields(fields_in),
        field(fields * d * kTargets),
        sum(kTargets),
        mass(kTargets),
        weight(kTargets),
        spread(kTargets) {}
  double* of(Index k) const { return field + k * d * width; }
  void clear(Index lanes) {
    width = lanes;
    std::fill_n(field.get(), fields * d * width, 0.0);
    for (double* p : {sum.get(), mass.get(), weight.get(), spread.get()})
      std::fill_n(p, width, 0.0);
  }
};

// Tiles of pair values, rows x width, and one field on its way into a LaneSums.
template <class T>
struct PairScratch {
  Buffer<T> kernel{kPairRows * kTargets}, p{kPairRows * kTargets}, q{kPairRows * kTargets}, field;
  explicit PairScratch(Index d) : field(d * kTargets) {}

  // sums[f][l] += sum_r values[r][f] coefficient[r][l]
  void gather(const T* values, Index d, Index rows, Index width, const T* coefficient,
              double* sums) {
    const auto& ops = tile_ops<T>();
    ops.product(rows, d, width, values, d, coefficient, width, field, width);
    ops.add(d * width, field, sums);
  }
};

// tile(i0, rows, j0, width, sums, scratch) for every tile, then finish(j0, real lanes, sums, tile's
// index).
template <class T, class Tile, class Finish>
void for_each_lane_tile(Index rows_total, Index lanes_total, Index d, Index fields,
                        const Tile& tile, const Finish& finish) {
  const Index ld = padded(lanes_total);
  parallel(at::divup(lanes_total, kTargets), 1, [&](Index begin, Index end) {
    LaneSums sums(d, fields);
    PairScratch<T> scratch(d);
    for (Index t = begin; t < end; ++t) {
      const Index j0 = t * kTargets, width = std::min(kTargets, ld - j0);
      sums.clear(width);
      for (Index i0 = 0; i0 < rows_total; i0 += kPairRows)
        tile(i0, std::min(kPairRows, rows_total - i0), j0, width, sums, scratch);
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
    tile_ops<T>().subtract(end - begin, d, d, x + begin * d, d, centre, out + begin * d, d);
  });
}

// What each lane's sums are multiplied with (see TileOps::lane_gradients).
struct LaneFactors {
  Index width;
  Buffer<double> values;
  double *first, *x, *v, *second, *own;
  explicit LaneFactors(Index width_in)
      : width(width_in),
        values(5 * width_in),
        first(values),
        x(first + width),
        v(x + width),
        second(v + width),
        own(second + width) {
    std::fill_n(values.get(), 5 * width, 0.0);
  }
  const double* all() const { return values; }
};

template <class T>
T dot(const T* a, const T* b, Index n) {
  return static_cast<T>(tile_ops<T>().centred_dot(n, a, nullptr, b));
}

}  // namespace stein
