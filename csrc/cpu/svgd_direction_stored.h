// svgd_direction_backward where the Gram matrix is kept; the formulas stand in
// svgd_direction_backward.cpp.
#pragma once

#include <algorithm>
#include <type_traits>

#include "backward.h"
#include "gram.h"

namespace stein {

// The M x N matrices of one set are kept, as in the forward; sums over particles run by blocks of
// features, whose results are rows of the outputs.
template <class T>
class Stored {
 public:
  Stored(const Set<T>& set, const T* cotangent, double bandwidth, Gradients<T>& gradients)
      : s(set),
        v(cotangent),
        h(bandwidth),
        c(static_cast<T>(2 / bandwidth)),
        factor(set.factor()),
        out(gradients),
        ldm(padded(s.m)),
        ldn(padded(s.n)),
        centre(s.d),
        shift(ldn),
        weight(ldm) {}

  // False, and nothing done, where the set is wide and T is not double.
  bool run() {
    std::fill_n(shift.get(), ldn, T{0});
    for (Index i = 0; i < ldm; ++i) weight[i] = s.w && i < s.m ? s.w[i] : T{1};
    Buffer<T> squared(s.m * ldn), products(s.m * ldn);
    squared_distances(s, squared.get(), ldn);
    if (std::is_same_v<T, float> && is_far_off(squared)) return false;
    if (s.d >= kLongRow)
      stream_products(products);
    else
      pack_products(products);
    if (s.self()) mirror(squared.get(), ldn, s.m);
    Buffer<T> squared_turned(s.self() ? 0 : s.n * ldm), products_turned(s.n * ldm);
    ops.transpose(s.m, s.n, products, ldn, products_turned, ldm);
    if (s.self()) {
      pass({s.m, s.m, ldm, true, true}, squared, products, products_turned);
    } else {
      ops.transpose(s.m, s.n, squared, ldn, squared_turned, ldm);
      clear_padding(squared_turned.get(), s.n, s.m, ldm);
      clear_padding(products_turned.get(), s.n, s.m, ldm);
      pass({s.n, s.m, ldm, true, false}, squared_turned, nullptr, products_turned);
      pass({s.m, s.n, ldn, false, true}, squared, products, nullptr);
    }
    return true;
  }

 private:
  struct Roles {
    Index rows, lanes, ld;
    bool source, target;  // what the lanes are
  };
  static constexpr Index kBlock = 256;
  const TileOps<T>& ops = tile_ops<T>();
  const Set<T>& s;
  const T* v;
  const double h;
  const T c;
  const double factor;
  Gradients<T>& out;
  const Index ldm, ldn;
  Buffer<T> centre, shift, weight;

  bool own() const { return s.self() && !s.leave_one_out; }

  // As in pairs.h, by distances that are there.
  bool is_far_off(const T* squared) const {
    const auto between = [&](Index i, Index j) {
      return s.self() ? squared[std::min(i, j) * ldn + std::max(i, j)] : squared[i * ldn + j % s.n];
    };
    return is_wide(s, squared, ldn, h, kFarOff) ||
           has_near_pairs(s.m, farthest(s, squared, ldn) / (kModes * kModes), between);
  }

  static void clear_padding(T* matrix, Index rows, Index lanes, Index ld) {
    for (Index r = 0; r < rows; ++r)
      std::fill(matrix + r * ld + lanes, matrix + (r + 1) * ld, T{0});
  }

  // out[i][j] = U_i.v_j with U = g - c x, and shift_j = y_j.v_j.
  void pack_products(T* result) {
    Buffer<T> u(s.m * s.d);
    centre_of(s, centre.get());
    ops.drive(s.m, s.d, s.d, s.x, s.g, s.d, centre, c, u, s.d);
    const Packed<T> u_packed(u, s.m, s.d), v_packed(v, s.n, s.d);
    ops.product(s.d, s.m, ldn, u_packed.data, u_packed.ld, v_packed.data, v_packed.ld, result, ldn);
    for (Index j = 0; j < s.n; ++j)
      shift[j] = static_cast<T>(ops.centred_dot(s.d, s.targets() + j * s.d, centre, v + j * s.d));
  }

  void stream_products(T* result) {
    constexpr Index kRun = FeatureChunks::kRun;
    const FeatureChunks cut(s.d, s.m * ldn);
    Buffer<double> sums(cut.count * s.m * ldn), shifts(cut.count * ldn);
    std::fill_n(sums.get(), cut.count * s.m * ldn, 0.0);
    std::fill_n(shifts.get(), cut.count * ldn, 0.0);
    parallel(cut.count, 1, [&](Index begin, Index end) {
      Buffer<T> u(s.m * kRun);
      for (Index k = begin; k < end; ++k)
        for (Index f = k * cut.length; f < std::min(s.d, (k + 1) * cut.length); f += kRun)
          stream_run(f, std::min({kRun, s.d - f, (k + 1) * cut.length - f}), u,
                     sums + k * s.m * ldn, shifts + k * ldn);
    });
    for (Index k = 1; k < cut.count; ++k) {
      for (Index e = 0; e < s.m * ldn; ++e) sums[e] += sums[k * s.m * ldn + e];
      for (Index j = 0; j < s.n; ++j) shifts[j] += shifts[k * ldn + j];
    }
    std::copy_n(sums.get(), s.m * ldn, result);
    std::copy_n(shifts.get(), s.n, shift.get());
  }

  void stream_run(Index f, Index n, T* u, double* sums, double* shifts) const {
    constexpr Index kRun = FeatureChunks::kRun;
    ops.centre(s.m, n, s.x + f, s.d, centre + f);
    ops.drive(s.m, n, n, s.x + f, s.g + f, s.d, centre + f, c, u, kRun);
    for (Index j = 0; j < s.n; j += 4) {
      const Index rb = std::min<Index>(4, s.n - j);
      for (Index q = j; q < j + rb; ++q)
        shifts[q] += ops.centred_dot(n, s.targets() + q * s.d + f, centre + f, v + q * s.d + f);
      for (Index i = 0; i < s.m; i += 4) {
        double block[16] = {};
        const Index ra = std::min<Index>(4, s.m - i);
        ops.row_product(n, u + i * kRun, kRun, ra, v + j * s.d + f, s.d, rb, block);
        for (Index p = 0; p < ra; ++p)
          for (Index q = 0; q < rb; ++q) sums[(i + p) * ldn + j + q] += block[p * 4 + q];
      }
    }
  }

  // p and q as in PairTile, rows x lanes; squared distances are overwritten by the kernel.
  void pass(const Roles& roles, T* squared, T* p, T* q) {
    Buffer<double> sum(roles.ld), mass(roles.ld), slope(roles.ld), spread(roles.ld);
    for (double* values : {sum.get(), mass.get(), slope.get(), spread.get()})
      std::fill_n(values, roles.ld, 0.0);
    PairTile<T> t{};
    t.rows = roles.rows, t.lanes = roles.ld, t.ld = roles.ld, t.kernel = squared, t.p = p, t.q = q;
    if (roles.target) {
      t.row_weight = s.w ? weight.get() : nullptr;
      t.lane_shift = shift;
    }
    if (roles.source) {
      t.lane_weight = s.w && s.self() ? weight.get() : nullptr;
      t.row_shift = shift;
    }
    t.h = static_cast<T>(h), t.c = c, t.sum = sum, t.mass = mass, t.weight = slope;
    t.spread = spread;
    ops.direction_backward(t);
    LaneFactors k(roles.lanes);
    for (Index l = 0; l < roles.lanes; ++l) {
      const double w = roles.source ? factor * weight[l] : 0.0;
      k.first[l] = roles.target ? factor : w;
      k.x[l] = -k.first[l] * sum[l];
      k.v[l] = roles.target ? factor * mass[l] : 0.0;
      k.second[l] = w;
      k.own[l] = own() ? w : 0.0;
      if (!roles.source) continue;
      if (own() && s.w) slope[l] += dot(s.g + l * s.d, v + l * s.d, s.d);
      if (out.dw) out.dw[l] = static_cast<T>(slope[l]);
      // Of a set with itself `spread` has every pair twice: as (row, lane) and as (lane, row).
      out.dh += ((s.self() ? factor / 2 : w) * spread[l] / h - w * slope[l]) / h;
    }
    // Uniform weights need the sum of the own terms only: one long dot product.
    if (own() && !s.w) out.dh -= factor * ops.centred_dot(s.m * s.d, s.g, nullptr, v) / h;
    gradients(roles, p ? p : q, squared, k);
  }

  // Rows of the lanes' gradients from coefficient^T x and kernel^T v.
  void gradients(const Roles& roles, const T* coefficient, const T* kernel, const LaneFactors& k) {
    const bool row_is_target = roles.source;  // of a set with itself both are
    const T* row_x = row_is_target ? s.targets() : s.x;
    const T* lane_x = roles.source ? s.x : s.targets();
    T* lane_out = roles.source ? out.dx : out.dy;
    const Index blocks = at::divup(s.d, kBlock), width = std::min(kBlock, padded(s.d));
    Buffer<double> parts(blocks);
    parallel(blocks, 1, [&](Index begin, Index end) {
      const Index most = std::max(s.m, s.n);
      Buffer<T> rows(roles.rows * width), lanes(s.self() ? 0 : roles.lanes * width),
          values(s.n * width);
      Buffer<T> first(most * width), second(most * width), zero(width);
      std::fill_n(zero.get(), width, T{0});
      for (Index b = begin; b < end; ++b) {
        const Index f0 = b * kBlock, n = std::min(kBlock, s.d - f0), padded_n = padded(n);
        ops.subtract(roles.rows, n, padded_n, row_x + f0, s.d, centre + f0, rows, width);
        if (!s.self())
          ops.subtract(roles.lanes, n, padded_n, lane_x + f0, s.d, centre + f0, lanes, width);
        // Whole vectors of v are read where they lie; the last ones of a row need padding.
        const T* of_v = n == padded_n ? v + f0 : values.get();
        const Index ldv = n == padded_n ? s.d : width;
        if (n != padded_n) ops.subtract(s.n, n, padded_n, v + f0, s.d, zero, values, width);
        ops.product(roles.rows, roles.lanes, padded_n, coefficient, roles.ld, rows, width, first,
                    width);
        if (roles.source)
          ops.product(roles.rows, roles.lanes, padded_n, kernel, roles.ld, of_v, ldv, second,
                      width);
        double total = 0;
        const T* lane_rows = s.self() ? rows : lanes;
        const bool contiguous =
            n == s.d && n == width;  // rows follow each other: one dot product for all
        for (Index l = 0; l < roles.lanes; ++l) {
          const T* x = lane_rows + l * width;
          const T* lane_v = roles.target ? of_v + l * ldv : zero.get();
          T* dx = lane_out + l * s.d + f0;
          ops.combine(n, static_cast<T>(c * k.first[l]), first + l * width,
                      static_cast<T>(c * k.x[l]), x, static_cast<T>(c * k.v[l]), lane_v,
                      static_cast<T>(-c * k.second[l]),
                      roles.source ? second + l * width : zero.get(), dx);
          if (!roles.source) continue;
          T* dg = out.dg + l * s.d + f0;
          ops.combine(n, static_cast<T>(k.second[l]), second + l * width, static_cast<T>(k.own[l]),
                      lane_v, T{0}, nullptr, T{0}, nullptr, dg);
          if (!contiguous) total += ops.centred_dot(n, dg, nullptr, s.g + l * s.d + f0);
        }
        if (contiguous && roles.source)
          total += ops.centred_dot(roles.lanes * s.d, out.dg, nullptr, s.g);
        parts[b] = total;
      }
    });
    for (Index b = 0; b < blocks; ++b) out.dh += parts[b] / h;
  }
};

}  // namespace stein
