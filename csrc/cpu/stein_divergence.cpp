// stein_divergence and its backward, tiled like the direction, O((M + N) d) memory.
//
// t_ij = c d - c^2 r2_ij - c e_ij with e_ij = (y_j - x_i).g_i; div_j = sum_i w_i k_ij t_ij. With
// cotangent v and q_ij = v_j w_i k_ij, R_ij = -2 q_ij (t_ij/h + c^2) and centred x, y:
//   dx_i = sum_j R_ij (x_i - y_j) + c g_i sum_j q_ij
//   dy_j = sum_i R_ij (y_j - x_i) - c sum_i q_ij g_i
//   dg_i = -c sum_j q_ij (y_j - x_i)
//   dw_i = sum_j v_j k_ij t_ij
//   h dh = -sum_ij R_ij r2_ij / 2 - sum_i w_i dw_i
// Pair (i, i) of a set with itself has t = c d and nothing else; it is added apart.
#include <algorithm>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "backward.h"

namespace stein {

namespace {

// What forward and backward share: packed copies of one set, and g_i.x_i.
template <class T>
struct Field {
  const Set<T>& s;
  double h;
  T c;
  Buffer<T> centre, x_rows, y_rows;
  Packed<T> x, g, x_centred;
  std::optional<Packed<T>> y, y_centred;
  Buffer<T> along, weight;  // g_i.x_i and w_i, padded: lanes of the last tile read past the end

  Field(const Set<T>& set, double bandwidth)
      : s(set),
        h(bandwidth),
        c(static_cast<T>(2 / bandwidth)),
        centre(s.d),
        x_rows(s.m * s.d),
        y_rows(s.self() ? 0 : s.n * s.d),
        x(s.x, s.m, s.d),
        g(s.g, s.m, s.d),
        x_centred((prepare(), x_rows.get()), s.m, s.d),
        along(padded(s.m)),
        weight(padded(s.m)) {
    if (!s.self()) {
      y.emplace(s.y, s.n, s.d);
      y_centred.emplace(y_rows.get(), s.n, s.d);
    }
    for (Index i = 0; i < padded(s.m); ++i) {
      along[i] = i < s.m ? dot(s.g + i * s.d, x_rows + i * s.d, s.d) : T{0};
      weight[i] = s.w && i < s.m ? s.w[i] : T{1};
    }
  }
  const Packed<T>& targets() const { return s.self() ? x : *y; }
  const Packed<T>& targets_centred() const { return s.self() ? x_centred : *y_centred; }
  const T* target_rows() const { return s.self() ? x_rows : y_rows; }
  const T* weights() const { return s.w ? weight.get() : nullptr; }

 private:
  void prepare() {
    centre_of(s, centre.get());
    centred_rows(s.x, s.m, s.d, centre.get(), x_rows.get());
    if (!s.self()) centred_rows(s.y, s.n, s.d, centre.get(), y_rows.get());
  }
};

template <class T>
void divergence_of_set(const Set<T>& s, double h, T* out) {
  const auto& ops = tile_ops<T>();
  if constexpr (std::is_same_v<T, float>)
    if (is_far_off(s, h)) {
      const WideSet wide(s);
      std::vector<double> values(s.n);
      divergence_of_set(wide.set(), h, values.data());
      std::copy(values.begin(), values.end(), out);
      return;
    }
  const Field<T> a(s, h);
  for_each_lane_tile<T>(
      s.m, s.n, 0, 0,
      [&](Index i0, Index n, Index j0, Index width, LaneSums& sums, PairScratch<T>& tile) {
        const auto& y = a.targets();
        ops.squared_distance(s.d, n, width, a.x.data + i0, a.x.ld, y.data + j0, y.ld, tile.kernel,
                             width);
        if (s.self()) mask_diagonal(tile.kernel.get(), width, i0, n, j0, width);
        ops.product(s.d, n, width, a.g.data + i0, a.g.ld, a.targets_centred().data + j0, y.ld,
                    tile.p, width);
        PairTile<T> t{};
        t.rows = n, t.lanes = width, t.ld = width, t.kernel = tile.kernel, t.p = tile.p;
        t.row_shift = a.along + i0, t.row_weight = s.w ? a.weight + i0 : nullptr;
        t.h = static_cast<T>(h), t.c = a.c, t.d = s.d, t.sum = sums.sum;
        ops.divergence(t);
      },
      [&](Index j0, Index real, const LaneSums& sums, Index) {
        const bool own = s.self() && !s.leave_one_out;
        for (Index l = 0; l < real; ++l)
          out[j0 + l] = static_cast<T>(
              s.factor() * (sums.sum[l] + (own ? a.weight[j0 + l] * 2 / h * s.d : 0.0)));
      });
}

template <class T>
class Backward {
 public:
  Backward(const Set<T>& set, const T* cotangent, double bandwidth, Gradients<T>& gradients)
      : s(set), a(set, bandwidth), h(bandwidth), out(gradients), v(padded(s.n)) {
    std::fill(std::copy_n(cotangent, s.n, v.get()), v + padded(s.n), T{0});
  }

  void run() {
    pass(true, s.self());
    if (!s.self()) pass(false, true);
  }

 private:
  const Set<T>& s;
  const Field<T> a;
  const double h;
  Gradients<T>& out;
  Buffer<T> v;

  // Lanes are sources (as_source), targets (as_target), or both where targets are the sources.
  void pass(bool as_source, bool as_target) {
    const Index rows = as_source ? s.n : s.m, lanes = as_source ? s.m : s.n;
    const Packed<T>& row_x = as_source ? a.targets() : a.x;
    const Packed<T>& lane_x = as_source ? a.x : a.targets();
    const T* row_rows = as_source ? a.target_rows() : a.x_rows;
    std::vector<double> scaling(at::divup(lanes, kTargets), 0.0);
    const auto& ops = tile_ops<T>();
    for_each_lane_tile<T>(
        rows, lanes, s.d, 3,
        [&](Index i0, Index n, Index j0, Index width, LaneSums& sums, PairScratch<T>& tile) {
          ops.squared_distance(s.d, n, width, row_x.data + i0, row_x.ld, lane_x.data + j0,
                               lane_x.ld, tile.kernel, width);
          if (s.self()) mask_diagonal(tile.kernel.get(), width, i0, n, j0, width);
          PairTile<T> t{};
          t.rows = n, t.lanes = width, t.ld = width, t.kernel = tile.kernel;
          t.h = static_cast<T>(h), t.c = a.c, t.d = s.d;
          t.sum = sums.sum, t.mass = sums.mass, t.weight = sums.weight, t.spread = sums.spread;
          if (as_target) {  // row: source, lane: target
            const Packed<T>& y = a.targets_centred();
            ops.product(s.d, n, width, a.g.data + i0, a.g.ld, y.data + j0, y.ld, tile.p, width);
            t.p = tile.p, t.row_shift = a.along + i0, t.lane_cotangent = v + j0;
            t.row_weight = s.w ? a.weight + i0 : nullptr;
          }
          if (as_source) {  // row: target, lane: source
            const Packed<T>& y = a.targets_centred();
            ops.product(s.d, n, width, y.data + i0, y.ld, a.g.data + j0, a.g.ld, tile.q, width);
            t.q = tile.q, t.lane_shift = a.along + j0, t.row_cotangent = v + i0;
            t.lane_weight = s.w ? a.weight + j0 : nullptr;
          }
          ops.divergence_backward(t);
          tile.gather(row_rows + i0 * s.d, s.d, n, width, tile.kernel, sums.of(0));
          if (as_target) tile.gather(s.g + i0 * s.d, s.d, n, width, tile.p, sums.of(1));
          if (as_source) tile.gather(row_rows + i0 * s.d, s.d, n, width, tile.q, sums.of(2));
        },
        [&](Index j0, Index real, const LaneSums& sums, Index t) {
          for (Index l = 0; l < real; ++l) {
            if (as_source)
              source(j0 + l, l, sums, as_target, scaling[t]);
            else
              target(j0 + l, l, sums);
          }
        });
    for (const double part : scaling) out.dh += part / h;
  }

  void source(Index i, Index l, const LaneSums& sums, bool both, double& scaling) const {
    const double factor = s.factor(), weight = factor * a.weight[i];
    const T *x = a.x_rows + i * s.d, *g = s.g + i * s.d;
    double dw = sums.weight[l];
    if (both && !s.leave_one_out) dw += v[i] * 2 / h * s.d;
    for (Index f = 0; f < s.d; ++f) {
      const Index at = f * sums.width + l;
      double dx =
          factor * (sums.sum[l] * x[f] - sums.of(0)[at]) + a.c * weight * sums.mass[l] * g[f];
      if (both) dx -= a.c * factor * sums.of(1)[at];
      const double dg = -a.c * weight * (sums.of(2)[at] - sums.mass[l] * x[f]);
      out.dx[i * s.d + f] = static_cast<T>(dx);
      out.dg[i * s.d + f] = static_cast<T>(dg);
    }
    // Of a set with itself `spread` has every pair twice: as (row, lane) and as (lane, row).
    scaling -= factor * sums.spread[l] / (both ? 4 : 2) + weight * dw;
    if (out.dw) out.dw[i] = static_cast<T>(dw);
  }

  void target(Index j, Index l, const LaneSums& sums) const {
    const T* y = a.target_rows() + j * s.d;
    for (Index f = 0; f < s.d; ++f) {
      const Index at = f * sums.width + l;
      const double dy = s.factor() * (sums.sum[l] * y[f] - sums.of(0)[at] - a.c * sums.of(1)[at]);
      out.dy[j * s.d + f] = static_cast<T>(dy);
    }
  }
};

template <class T>
void backward_of_set(const Set<T>& s, const T* v, double h, Gradients<T>& out) {
  if constexpr (std::is_same_v<T, float>)
    if (is_far_off(s, h))
      return gradients_in_double(s, v, s.n, out,
                                 [&](const Set<double>& wide, const double* cotangent,
                                     Gradients<double>& found) {
                                   backward_of_set(wide, cotangent, h, found);
                                 });
  Backward<T>(s, v, h, out).run();
}

}  // namespace

at::Tensor stein_divergence(const at::Tensor& x_in, const at::Tensor& grad_in,
                            const std::optional<at::Tensor>& weights_in,
                            const std::optional<at::Tensor>& query_in,
                            const at::Tensor& bandwidth_in, bool leave_one_out,
                            c10::string_view /*backend*/) {
  const Arguments a(x_in, grad_in, weights_in, query_in, leave_one_out);
  const at::Tensor h = bandwidth_in.to(a.x.scalar_type()).contiguous();
  at::Tensor out = at::empty({a.batch, a.n}, a.x.options());
  AT_DISPATCH_FLOATING_TYPES(a.x.scalar_type(), "stein_divergence", [&] {
    for_each_set(a.batch, [&](Index b) {
      divergence_of_set(a.set<scalar_t>(b), static_cast<double>(h.const_data_ptr<scalar_t>()[b]),
                        out.mutable_data_ptr<scalar_t>() + b * a.n);
    });
  });
  return out.to(x_in.scalar_type());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> stein_divergence_backward(
    const at::Tensor& v_in, const at::Tensor& x_in, const at::Tensor& grad_in,
    const std::optional<at::Tensor>& weights_in, const std::optional<at::Tensor>& query_in,
    const at::Tensor& bandwidth_in, bool leave_one_out, c10::string_view /*backend*/) {
  const Arguments a(x_in, grad_in, weights_in, query_in, leave_one_out);
  const at::Tensor v = widened(v_in), h = bandwidth_in.to(a.x.scalar_type()).contiguous();
  at::Tensor dx = at::empty_like(a.x), dg = at::empty_like(a.x), dh = at::empty_like(h);
  at::Tensor dw = at::empty({weights_in ? a.batch : 0, weights_in ? a.m : 0}, a.x.options());
  at::Tensor dy = query_in ? at::empty_like(a.query) : at::empty({0}, a.x.options());
  AT_DISPATCH_FLOATING_TYPES(a.x.scalar_type(), "stein_divergence_backward", [&] {
    for_each_set(a.batch, [&](Index b) {
      Gradients<scalar_t> out{dx.mutable_data_ptr<scalar_t>() + b * a.m * a.d,
                              dg.mutable_data_ptr<scalar_t>() + b * a.m * a.d,
                              weights_in ? dw.mutable_data_ptr<scalar_t>() + b * a.m : nullptr,
                              query_in ? dy.mutable_data_ptr<scalar_t>() + b * a.n * a.d : nullptr};
      backward_of_set(a.set<scalar_t>(b), v.const_data_ptr<scalar_t>() + b * a.n,
                      static_cast<double>(h.const_data_ptr<scalar_t>()[b]), out);
      dh.mutable_data_ptr<scalar_t>()[b] = static_cast<scalar_t>(out.dh);
    });
  });
  const auto dtype = x_in.scalar_type();
  return {dx.to(dtype), dg.to(dtype), weights_in ? dw.to(dtype) : at::empty({0}, x_in.options()),
          dy.to(dtype), dh.to(bandwidth_in.scalar_type())};
}

}  // namespace stein

TORCH_LIBRARY_IMPL(stein_kernels, CPU, m) {
  m.impl("stein_divergence", &stein::stein_divergence);
  m.impl("stein_divergence_backward", &stein::stein_divergence_backward);
}
