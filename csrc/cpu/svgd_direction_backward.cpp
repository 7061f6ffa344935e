// svgd_direction_backward: the closed form, tiled, O((M + N) d) memory.
//
// With v_j the cotangent of phi_j, a_ij = g_i.v_j + c (y_j - x_i).v_j, B_ij = w_i k_ij a_ij and centred x, y:
//   dg_i = w_i sum_j k_ij v_j                      dw_i = sum_j k_ij a_ij
//   dx_i = c [sum_j B_ij (y_j - x_i) - dg_i]       dy_j = c [sum_i B_ij (x_i - y_j) + v_j sum_i w_i k_ij]
// phi(s x, g/s, s^2 h) = phi(x, g, h)/s, so dh needs no pair of its own:
//   2 h dh = g.dg - x.dx - y.dy - sum_i w_i dw_i
// Pair (i, i) of a set with itself has only dg_i = w_i v_i and dw_i = g_i.v_i; it is added apart.
#include <optional>
#include <vector>

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/sub.h>
#include <torch/library.h>

#include "backward.h"
#include "gram.h"

namespace stein {

namespace {

template <class T>
struct Gradients {
  T *dx, *dg, *dw, *dy;  // dw and dy may be null
  double dh = 0;
};

template <class T>
struct PairScratch {
  Buffer<T> kernel{kPairRows * kTargets}, p{kPairRows * kTargets}, q{kPairRows * kTargets};
  Buffer<T> field;
  explicit PairScratch(Index d) : field(d * kTargets) {}
};

// Arrays of one particle set, centred on the sources.
template <class T>
struct Cloud {
  Packed<T> x;          // as given
  Buffer<T> rows;       // centred, row-major
  Cloud(const T* data, Index n, Index d, const T* centre) : x(data, n, d), rows(n * d) {
    centred_rows(data, n, d, centre, rows.get());
  }
};

// One pass: `lane` gets gradients; p-part where lanes are targets, q-part where lanes are sources.
template <class T>
struct Pass {
  Index rows, lanes, d;
  const T *row_x, *lane_x;              // packed, as given
  const T *row_u, *lane_v;              // packed; p-part
  const T *row_v, *lane_u;              // packed; q-part
  const T *sum_x, *sum_v;               // row-major: what S and K are multiplied with
  const T *row_weight, *lane_weight, *row_shift, *lane_shift;
  bool self;
  T h;

  template <class Finish>
  void run(const Finish& finish) const {
    const auto& ops = tile_ops<T>();
    const Index ldr = padded(rows), ldl = padded(lanes);
    for_each_lane_tile(
        rows, lanes, d, [&] { return PairScratch<T>(d); },
        [&](Index i0, Index n, Index j0, Index width, LaneSums& sums, PairScratch<T>& s) {
          ops.squared_distance(d, n, width, row_x + i0, ldr, lane_x + j0, ldl, s.kernel, kTargets);
          if (self) mask_diagonal(s.kernel.get(), kTargets, i0, n, j0, width);
          PairTile<T> t{};
          t.rows = n, t.lanes = width, t.ld = kTargets, t.kernel = s.kernel;
          if (row_u) {
            ops.product(d, n, width, row_u + i0, ldr, lane_v + j0, ldl, s.p, kTargets);
            t.p = s.p;
          }
          if (row_v) {
            ops.product(d, n, width, row_v + i0, ldr, lane_u + j0, ldl, s.q, kTargets);
            t.q = s.q;
          }
          t.row_weight = row_weight ? row_weight + i0 : nullptr;
          t.lane_weight = lane_weight ? lane_weight + j0 : nullptr;
          t.row_shift = row_shift ? row_shift + i0 : nullptr;
          t.lane_shift = lane_shift ? lane_shift + j0 : nullptr;
          t.h = h, t.c = 2 / h;
          t.sum = sums.sum, t.mass = sums.mass, t.weight = sums.weight;
          ops.direction_backward(t);
          ops.product(n, d, width, sum_x + i0 * d, d, t.p ? t.p : t.q, kTargets, s.field, kTargets);
          ops.add(d * kTargets, s.field, sums.first);
          if (!sum_v) return;
          ops.product(n, d, width, sum_v + i0 * d, d, s.kernel, kTargets, s.field, kTargets);
          ops.add(d * kTargets, s.field, sums.second);
        },
        finish);
  }
};

template <class T>
void backward_tiled(const Set<T>& s, const T* v, double h, Gradients<T>& out) {
  const auto& ops = tile_ops<T>();
  const T c = static_cast<T>(2 / h);
  const double factor = s.factor();
  Buffer<T> centre(s.d), u(s.m * s.d), shift(padded(s.n));
  if (s.m > 0) ops.centre(s.m, s.d, s.x, s.d, centre);
  Cloud<T> sources(s.x, s.m, s.d, centre);
  std::optional<Cloud<T>> query;
  if (!s.self()) query.emplace(s.y, s.n, s.d, centre.get());
  const Cloud<T>& targets = s.self() ? sources : *query;
  ops.drive(s.m, s.d, s.d, s.x, s.g, s.d, centre, c, u, s.d);
  Packed<T> u_packed(u, s.m, s.d), v_packed(v, s.n, s.d);
  std::fill_n(shift.get(), padded(s.n), T{0});
  for (Index j = 0; j < s.n; ++j) shift[j] = dot(targets.rows + j * s.d, v + j * s.d, s.d);
  // Lanes of the last tile are read past the end of the weights.
  Buffer<T> w(padded(s.m));
  for (Index i = 0; i < padded(s.m); ++i) w[i] = s.w && i < s.m ? s.w[i] : T{1};

  std::vector<double> scaling(at::divup(std::max(s.m, s.n), kTargets), 0.0);
  const auto source_lane = [&](Index i, Index l, const LaneSums& sums, double mass, double& total) {
    const double weight = factor * w[i];
    const bool own = s.self() && !s.leave_one_out;
    double dw = sums.weight[l];
    const T *x = sources.rows + i * s.d, *g = s.g + i * s.d, *vi = s.self() ? v + i * s.d : g;
    if (own) dw += dot(g, vi, s.d);
    for (Index f = 0; f < s.d; ++f) {
      const Index at = f * kTargets + l;
      const double field = sums.second[at];
      // s.self(): `first` and `sum` carry both roles, weights included.
      double dx = s.self() ? factor * (sums.first[at] - sums.sum[l] * x[f] + mass * vi[f])
                           : weight * (sums.first[at] - sums.sum[l] * x[f]);
      dx = c * (dx - weight * field);
      const double dg = weight * (field + (own ? vi[f] : 0.0));
      out.dx[i * s.d + f] = static_cast<T>(dx);
      out.dg[i * s.d + f] = static_cast<T>(dg);
      total += g[f] * dg - x[f] * dx;
    }
    total -= weight * dw;
    if (out.dw) out.dw[i] = static_cast<T>(dw);
  };

  Pass<T> pass{};
  pass.d = s.d, pass.h = static_cast<T>(h), pass.self = s.self();
  pass.rows = s.n, pass.lanes = s.m;
  pass.row_x = targets.x.data, pass.lane_x = sources.x.data;
  pass.row_v = v_packed.data, pass.lane_u = u_packed.data, pass.row_shift = shift;
  pass.sum_x = targets.rows, pass.sum_v = v;
  if (s.self()) {
    pass.row_u = u_packed.data, pass.lane_v = v_packed.data, pass.lane_shift = shift;
    pass.row_weight = s.w ? w.get() : nullptr, pass.lane_weight = s.w ? w.get() : nullptr;
  }
  pass.run([&](Index j0, Index real, const LaneSums& sums, Index t) {
    for (Index l = 0; l < real; ++l) source_lane(j0 + l, l, sums, sums.mass[l], scaling[t]);
  });
  if (!s.self()) {
    pass = {};
    pass.d = s.d, pass.h = static_cast<T>(h);
    pass.rows = s.m, pass.lanes = s.n;
    pass.row_x = sources.x.data, pass.lane_x = targets.x.data;
    pass.row_u = u_packed.data, pass.lane_v = v_packed.data, pass.lane_shift = shift;
    pass.row_weight = s.w ? w.get() : nullptr, pass.sum_x = sources.rows;
    pass.run([&](Index j0, Index real, const LaneSums& sums, Index t) {
      for (Index l = 0; l < real; ++l)
        for (Index f = 0; f < s.d; ++f) {
          const Index j = (j0 + l) * s.d + f;
          const double dy = c * factor * (sums.first[f * kTargets + l] - sums.sum[l] * targets.rows[j] +
                                          sums.mass[l] * v[j]);
          out.dy[j] = static_cast<T>(dy);
          scaling[t] -= targets.rows[j] * dy;
        }
    });
  }
  for (const double part : scaling) out.dh += part / (2 * h);
}

// Long rows: the M x N matrices are smaller than the inputs, so they are kept, and the sums over particles are
// made by blocks of features.
template <class T>
void backward_streamed(const Set<T>& s, const at::Tensor& x_rows, const at::Tensor& g_rows,
                       const at::Tensor& y_rows, const at::Tensor& v_rows, double h, Gradients<T>& out) {
  const auto& ops = tile_ops<T>();
  const T c = static_cast<T>(2 / h);
  const double factor = s.factor();
  const Index ld = padded(s.n), ldt = padded(s.m);
  const T* v = v_rows.const_data_ptr<T>();
  const at::Tensor centre = x_rows.mean(0);
  const at::Tensor u = g_rows.sub(x_rows.sub(centre), 2 / h);
  const at::Tensor products = at::matmul(u, v_rows.t()).contiguous();  // U_i . V_j
  const at::Tensor shifts = y_rows.sub(centre).mul_(v_rows).sum(1);
  const T *p = products.const_data_ptr<T>(), *shift = shifts.const_data_ptr<T>();
  Buffer<T> kernel(s.m * ld);
  squared_distances(s, kernel.get(), ld);
  Set<T> unweighted = s;
  unweighted.w = nullptr;
  radial_gram(unweighted, kernel.get(), ld, h);
  // b[i][j] = w_i k a; kt, bt: the same with targets as rows. Sums in double.
  Buffer<T> b(s.m * ld), bt(s.n * ldt), kt(s.n * ldt), row(ldt), column(ld), mass(ld), w(ldt);
  std::vector<double> row_sum(ldt, 0.0), column_sum(ld, 0.0), mass_sum(ld, 0.0), dw(s.m, 0.0);
  for (Index i = 0; i < s.m; ++i) {
    w[i] = static_cast<T>(factor * (s.w ? s.w[i] : T{1}));
    for (Index j = 0; j < s.n; ++j) {
      const T k = kernel[i * ld + j], ka = k * (p[i * s.n + j] + c * shift[j]), wka = w[i] * ka;
      b[i * ld + j] = wka;
      bt[j * ldt + i] = wka;
      kt[j * ldt + i] = w[i] * k;
      dw[i] += ka;
      row_sum[i] += wka;
      column_sum[j] += wka;
      mass_sum[j] += w[i] * k;
    }
  }
  const bool own = s.self() && !s.leave_one_out;
  for (Index i = 0; i < s.m; ++i) {
    row[i] = static_cast<T>(row_sum[i]);
    if (own) dw[i] += dot(s.g + i * s.d, v + i * s.d, s.d);
    if (out.dw) out.dw[i] = static_cast<T>(dw[i]);
    out.dh -= w[i] * dw[i] / (2 * h);
  }
  for (Index j = 0; j < s.n; ++j) {
    column[j] = static_cast<T>(column_sum[j]);
    mass[j] = static_cast<T>(mass_sum[j]);
  }
  const T* middle = centre.const_data_ptr<T>();
  constexpr Index kBlock = 256;
  const Index blocks = at::divup(s.d, kBlock);
  std::vector<double> scaling(blocks, 0.0);
  parallel(blocks, 1, [&](Index begin, Index end) {
    Buffer<T> xc(s.m * kBlock), yc(s.n * kBlock), vc(s.n * kBlock);
    Buffer<T> field(s.m * kBlock), by(s.m * kBlock), bx(s.n * kBlock);
    for (Index k = begin; k < end; ++k) {
      const Index f0 = k * kBlock, n = std::min(kBlock, s.d - f0), lanes = padded(n);
      const auto gather = [&](const T* from, Index count, const T* minus, T* to) {
        for (Index i = 0; i < count; ++i) {
          for (Index f = 0; f < n; ++f)
            to[i * kBlock + f] = from[i * s.d + f0 + f] - (minus ? minus[f0 + f] : T{0});
          std::fill(to + i * kBlock + n, to + i * kBlock + lanes, T{0});
        }
      };
      gather(s.x, s.m, middle, xc);
      gather(s.targets(), s.n, middle, yc);
      gather(v, s.n, nullptr, vc);
      ops.product(s.n, s.m, lanes, kt, ldt, vc, kBlock, field, kBlock);  // w_i sum_j k v_j
      ops.product(s.n, s.m, lanes, bt, ldt, yc, kBlock, by, kBlock);
      ops.product(s.m, s.n, lanes, b, ld, xc, kBlock, bx, kBlock);
      for (Index i = 0; i < s.m; ++i)
        for (Index f = 0; f < n; ++f) {
          const Index at = i * kBlock + f, global = i * s.d + f0 + f;
          T dx = c * (by[at] - row[i] * xc[at] - field[at]);
          if (s.self()) dx += c * (bx[at] - column[i] * xc[at] + mass[i] * vc[at]);
          const T dg = field[at] + (own ? w[i] * vc[at] : T{0});
          out.dx[global] = dx;
          out.dg[global] = dg;
          scaling[k] += static_cast<double>(s.g[global]) * dg - static_cast<double>(xc[at]) * dx;
        }
      if (s.self()) continue;
      for (Index j = 0; j < s.n; ++j)
        for (Index f = 0; f < n; ++f) {
          const Index at = j * kBlock + f;
          const T dy = c * (bx[at] - column[j] * yc[at] + mass[j] * vc[at]);
          out.dy[j * s.d + f0 + f] = dy;
          scaling[k] -= static_cast<double>(yc[at]) * dy;
        }
    }
  });
  for (const double part : scaling) out.dh += part / (2 * h);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> svgd_direction_backward(
    const at::Tensor& v_in, const at::Tensor& x_in, const at::Tensor& grad_in,
    const std::optional<at::Tensor>& weights_in, const std::optional<at::Tensor>& query_in,
    const at::Tensor& bandwidth_in, bool leave_one_out) {
  const Arguments a(x_in, grad_in, weights_in, query_in, leave_one_out);
  const at::Tensor v = widened(v_in), h = bandwidth_in.to(a.x.scalar_type()).contiguous();
  at::Tensor dx = at::empty_like(a.x), dg = at::empty_like(a.x), dh = at::empty_like(h);
  at::Tensor dw = at::empty({weights_in ? a.batch : 0, weights_in ? a.m : 0}, a.x.options());
  at::Tensor dy = query_in ? at::empty_like(a.query) : at::empty({0}, a.x.options());
  AT_DISPATCH_FLOATING_TYPES(a.x.scalar_type(), "svgd_direction_backward", [&] {
    const auto run = [&](Index b) {
      const Set<scalar_t> s = a.set<scalar_t>(b);
      const double bandwidth = h.const_data_ptr<scalar_t>()[b];
      Gradients<scalar_t> out{dx.mutable_data_ptr<scalar_t>() + b * a.m * a.d,
                              dg.mutable_data_ptr<scalar_t>() + b * a.m * a.d,
                              weights_in ? dw.mutable_data_ptr<scalar_t>() + b * a.m : nullptr,
                              query_in ? dy.mutable_data_ptr<scalar_t>() + b * a.n * a.d : nullptr};
      const bool streamed = s.d >= kLongRow && s.m > 0 && s.n > 0 && s.m * s.n <= (s.m + s.n) * s.d;
      if (streamed)
        backward_streamed(s, a.x[b], a.grad[b], query_in ? a.query[b] : a.x[b], v[b], bandwidth, out);
      else
        backward_tiled(s, v.const_data_ptr<scalar_t>() + b * a.n * a.d, bandwidth, out);
      dh.mutable_data_ptr<scalar_t>()[b] = static_cast<scalar_t>(out.dh);
    };
    // The streamed form calls torch, whose own threads it should have.
    if (a.d >= kLongRow)
      for (Index b = 0; b < a.batch; ++b) run(b);
    else
      for_each_set(a.batch, run);
  });
  const auto dtype = x_in.scalar_type();
  return {dx.to(dtype), dg.to(dtype), weights_in ? dw.to(dtype) : at::empty({0}, x_in.options()),
          dy.to(dtype), dh.to(bandwidth_in.scalar_type())};
}

}  // namespace stein

TORCH_LIBRARY_IMPL(stein_kernels, CPU, m) {
  m.impl("svgd_direction_backward", &stein::svgd_direction_backward);
}
