// svgd_direction_backward: the closed form, tiled, O((M + N) d) memory.
//
// With v_j the cotangent of phi_j, a_ij = g_i.v_j + c (y_j - x_i).v_j, B_ij = w_i k_ij a_ij and
// centred x, y:
//   dg_i = w_i sum_j k_ij v_j
//   dw_i = sum_j k_ij a_ij
//   dx_i = c [sum_j B_ij (y_j - x_i) - dg_i]
//   dy_j = c [sum_i B_ij (x_i - y_j) + v_j sum_i w_i k_ij]
//   h dh = sum_ij B_ij |y_j - x_i|^2 / h + g.dg - sum_i w_i dw_i
// Pair (i, i) of a set with itself has only dg_i = w_i v_i and dw_i = g_i.v_i; it is added apart.
#include <optional>
#include <type_traits>
#include <vector>

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "svgd_direction_stored.h"

namespace stein {

namespace {

constexpr Index kPrefetched = 4096;  // elements of a set: three of them stay in L1 or L2

// Arrays of one particle set, centred on the sources.
template <class T>
struct Cloud {
  Packed<T> x;     // as given
  Buffer<T> rows;  // centred, row-major
  Cloud(const T* data, Index n, Index d, const T* centre) : x(data, n, d), rows(n * d) {
    centred_rows(data, n, d, centre, rows.get());
  }
};

// One pass: `lane` gets gradients; p-part where lanes are targets, q-part where lanes are sources.
template <class T>
struct Pass {
  Index rows, lanes, d;
  const T *row_x, *lane_x;  // packed, as given
  const T *row_u, *lane_v;  // packed; p-part
  const T *row_v, *lane_u;  // packed; q-part
  const T *sum_x, *sum_v;   // row-major: what S and K are multiplied with
  const T *row_weight, *lane_weight, *row_shift, *lane_shift;
  bool self;
  T h;

  template <class Finish>
  void run(const Finish& finish) const {
    const auto& ops = tile_ops<T>();
    const Index ldr = padded(rows), ldl = padded(lanes);
    for_each_lane_tile<T>(
        rows, lanes, d, row_v ? 2 : 1,
        [&](Index i0, Index n, Index j0, Index width, LaneSums& sums, PairScratch<T>& s) {
          ops.squared_distance(d, n, width, row_x + i0, ldr, lane_x + j0, ldl, s.kernel, width);
          if (self) mask_diagonal(s.kernel.get(), width, i0, n, j0, width);
          PairTile<T> t{};
          t.rows = n, t.lanes = width, t.ld = width, t.kernel = s.kernel;
          if (row_u) {
            ops.product(d, n, width, row_u + i0, ldr, lane_v + j0, ldl, s.p, width);
            t.p = s.p;
          }
          if (row_v) {
            ops.product(d, n, width, row_v + i0, ldr, lane_u + j0, ldl, s.q, width);
            t.q = s.q;
          }
          t.row_weight = row_weight ? row_weight + i0 : nullptr;
          t.lane_weight = lane_weight ? lane_weight + j0 : nullptr;
          t.row_shift = row_shift ? row_shift + i0 : nullptr;
          t.lane_shift = lane_shift ? lane_shift + j0 : nullptr;
          t.h = h, t.c = 2 / h;
          t.sum = sums.sum, t.mass = sums.mass, t.weight = sums.weight, t.spread = sums.spread;
          ops.direction_backward(t);
          s.gather(sum_x + i0 * d, d, n, width, t.p ? t.p : t.q, sums.of(0));
          if (row_v) s.gather(sum_v + i0 * d, d, n, width, s.kernel, sums.of(1));
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
  centre_of(s, centre.get());
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
  const bool own = s.self() && !s.leave_one_out;
  // s.self(): the first field and `sum` carry both roles of a lane, weights included.
  const auto source_lanes = [&](Index j0, Index real, const LaneSums& sums, Index t) {
    LaneFactors k(sums.width);
    for (Index l = 0; l < real; ++l) {
      const double weight = factor * w[j0 + l];
      k.first[l] = s.self() ? factor : weight;
      k.x[l] = -k.first[l] * sums.sum[l];
      k.v[l] = s.self() ? factor * sums.mass[l] : 0.0;
      k.second[l] = weight;
      k.own[l] = own ? weight : 0.0;
      const Index i = j0 + l;
      const double dw =
          sums.weight[l] + (own ? ops.centred_dot(s.d, s.g + i * s.d, nullptr, v + i * s.d) : 0.0);
      if (out.dw) out.dw[i] = static_cast<T>(dw);
      // Of a set with itself `spread` has every pair twice: as (row, lane) and as (lane, row).
      scaling[t] += (s.self() ? factor / 2 : weight) * sums.spread[l] / h - weight * dw;
    }
    Buffer<T> dx(s.d * sums.width), dg(s.d * sums.width);
    ops.lane_gradients(s.d, sums.width, 2 / h, sums.of(0), sums.of(1), sources.x.data + j0,
                       sources.x.ld, centre, v_packed.data + (s.self() ? j0 : 0),
                       s.self() ? v_packed.ld : 0, k.all(), dx, dg);
    ops.transpose(s.d, real, dx, sums.width, out.dx + j0 * s.d, s.d);
    ops.transpose(s.d, real, dg, sums.width, out.dg + j0 * s.d, s.d);
    const Index from = j0 * s.d, count = real * s.d;
    scaling[t] += ops.centred_dot(count, s.g + from, nullptr, out.dg + from);
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
  pass.run(source_lanes);
  if (!s.self()) {
    pass = {};
    pass.d = s.d, pass.h = static_cast<T>(h);
    pass.rows = s.m, pass.lanes = s.n;
    pass.row_x = sources.x.data, pass.lane_x = targets.x.data;
    pass.row_u = u_packed.data, pass.lane_v = v_packed.data, pass.lane_shift = shift;
    pass.row_weight = s.w ? w.get() : nullptr, pass.sum_x = sources.rows;
    pass.run([&](Index j0, Index real, const LaneSums& sums, Index) {
      LaneFactors k(sums.width);
      for (Index l = 0; l < real; ++l) {
        k.first[l] = factor;
        k.x[l] = -factor * sums.sum[l];
        k.v[l] = factor * sums.mass[l];
      }
      Buffer<T> dy(s.d * sums.width);
      ops.lane_gradients(s.d, sums.width, 2 / h, sums.of(0), nullptr, targets.x.data + j0,
                         targets.x.ld, centre, v_packed.data + j0, v_packed.ld, k.all(), dy,
                         nullptr);
      ops.transpose(s.d, real, dy, sums.width, out.dy + j0 * s.d, s.d);
    });
  }
  for (const double part : scaling) out.dh += part / h;
}

template <class T>
void backward_of_set(const Set<T>& s, const T* v, double h, Gradients<T>& out) {
  bool done = keeps_pairs(s.m, s.n, s.d) && Stored<T>(s, v, h, out).run();
  if constexpr (std::is_same_v<T, float>) {
    if (!done && (keeps_pairs(s.m, s.n, s.d) || is_far_off(s, h))) {
      gradients_in_double(s, v, s.n * s.d, out,
                          [&](const Set<double>& wide, const double* cotangent,
                              Gradients<double>& found) {
                            backward_of_set(wide, cotangent, h, found);
                          });
      done = true;
    }
  }
  if (!done) backward_tiled(s, v, h, out);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> svgd_direction_backward(
    const at::Tensor& v_in, const at::Tensor& x_in, const at::Tensor& grad_in,
    const std::optional<at::Tensor>& weights_in, const std::optional<at::Tensor>& query_in,
    const at::Tensor& bandwidth_in, bool leave_one_out, c10::string_view /*backend*/) {
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
      const scalar_t* cotangent = v.const_data_ptr<scalar_t>() + b * a.n * a.d;
      if (b + 1 < a.batch && a.m * a.d <= kPrefetched) {
        prefetch(s.x + a.m * a.d, a.m * a.d);
        prefetch(s.g + a.m * a.d, a.m * a.d);
        prefetch(cotangent + a.n * a.d, a.n * a.d);
      }
      backward_of_set(s, cotangent, bandwidth, out);
      dh.mutable_data_ptr<scalar_t>()[b] = static_cast<scalar_t>(out.dh);
    };
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
