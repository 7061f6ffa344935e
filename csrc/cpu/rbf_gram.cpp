// rbf_gram and its backward: K_ij = exp(-|x_i - y_j|^2 / h).
//
// Backward, with B = V o K: dx_i = c sum_j B_ij (y_j - x_i), dy_j = c sum_i B_ij (x_i - y_j),
// dh = sum_ij B_ij |x_i - y_j|^2 / h^2.
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
#include "gram.h"

namespace stein {

namespace {

// Rows that are streamed, not packed: their sums are made in double.
template <class T>
void gram_of_long_rows(const T* x, const T* y, Index m, Index n, Index d, double h, T* out) {
  const Set<T> set{x, nullptr, nullptr, y, m, n, d, false, false};
  const Index ld = padded(n);
  Buffer<T> gram(m * ld);
  squared_distances(set, gram.get(), ld);
  radial_gram(set, gram.get(), ld, h);
  for (Index i = 0; i < m; ++i) std::copy_n(gram + i * ld, n, out + i * n);
}

template <class T>
void gram_of_set(const T* x, const T* y, Index m, Index n, Index d, double h, T* out) {
  if (d >= kLongRow && keeps_gram(m, n, d)) return gram_of_long_rows(x, y, m, n, d, h, out);
  const auto& ops = tile_ops<T>();
  const Packed<T> sources(x, m, d), targets(y, n, d);
  const T scale = static_cast<T>(-1.0 / h);
  parallel(at::divup(m, kSources), 1, [&](Index begin, Index end) {
    Buffer<T> tile(kSources * kTargets);
    for (Index i0 = begin * kSources; i0 < std::min(m, end * kSources); i0 += kSources)
      for (Index j0 = 0; j0 < n; j0 += kTargets) {
        const Index rows = std::min(kSources, m - i0), lanes = std::min(kTargets, targets.ld - j0);
        ops.squared_distance(d, rows, lanes, sources.data + i0, sources.ld, targets.data + j0,
                             targets.ld, tile, kTargets);
        ops.radial(rows, lanes, tile, kTargets, nullptr, scale, nullptr);
        for (Index r = 0; r < rows; ++r)
          std::copy_n(tile + r * kTargets, std::min(kTargets, n - j0), out + (i0 + r) * n + j0);
      }
  });
}

// Gradient of the lanes: out_l = c sum_r B_rl (row_r - lane_l). `cotangent(r, l)` sums what belongs
// to the pair. Pairs that coincide have no gradient, and k = 1: their x - x of rounding would drown
// the others where these have small kernel values.
template <class T, class Cotangent>
double gradient_of_lanes(const Packed<T>& row_x, const T* row_centred, Index rows,
                         const Packed<T>& lane_x, const T* lane_centred, Index lanes, Index d, T h,
                         const Cotangent& cotangent, T* out) {
  const auto& ops = tile_ops<T>();
  const T c = 2 / h;
  std::vector<double> scaling(at::divup(lanes, kTargets), 0.0);
  for_each_lane_tile<T>(
      rows, lanes, d, 1,
      [&](Index i0, Index n, Index j0, Index width, LaneSums& sums, PairScratch<T>& s) {
        ops.squared_distance(d, n, width, row_x.data + i0, row_x.ld, lane_x.data + j0, lane_x.ld,
                             s.kernel, width);
        const Index real = std::min(width, lanes - j0);
        for (Index r = 0; r < n; ++r) {
          for (Index l = 0; l < real; ++l)
            s.p[r * width + l] = s.kernel[r * width + l] == 0 ? T{0} : cotangent(i0 + r, j0 + l);
          std::fill(s.p + r * width + real, s.p + r * width + width, T{0});
        }
        PairTile<T> t{};
        t.rows = n, t.lanes = width, t.ld = width, t.kernel = s.kernel, t.p = s.p, t.h = h, t.c = c;
        t.sum = sums.sum, t.spread = sums.spread;
        ops.direction_backward(t);  // p = k p
        s.gather(row_centred + i0 * d, d, n, width, s.p, sums.of(0));
      },
      [&](Index j0, Index real, const LaneSums& sums, Index t) {
        for (Index l = 0; l < real; ++l)
          for (Index f = 0; f < d; ++f) {
            const Index at = (j0 + l) * d + f;
            const double value =
                c * (sums.of(0)[f * sums.width + l] - sums.sum[l] * lane_centred[at]);
            out[at] = static_cast<T>(value);
          }
        for (Index l = 0; l < real; ++l) scaling[t] += sums.spread[l];
      });
  double total = 0;
  for (const double part : scaling) total += part;
  return total / (2.0 * h * h);  // every pair was there twice
}

template <class T>
T gram_backward_of_set(const T* v, const T* x, const T* y, bool self, Index m, Index n, Index d,
                       double h, T* dx, T* dy) {
  const auto& ops = tile_ops<T>();
  if constexpr (std::is_same_v<T, float>) {
    const Set<float> set{x, nullptr, nullptr, self ? nullptr : y, m, n, d, false, self};
    if (is_far_off(set, h)) {
      const WideSet wide(set);
      const std::vector<double> cotangent(v, v + m * n);
      std::vector<double> of_x(m * d), of_y(self ? 0 : n * d);
      const double dh = gram_backward_of_set<double>(cotangent.data(), wide.set().x, wide.set().y,
                                                     self, m, n, d, h, of_x.data(), of_y.data());
      std::copy(of_x.begin(), of_x.end(), dx);
      std::copy(of_y.begin(), of_y.end(), dy);
      return static_cast<T>(dh);
    }
  }
  const T width = static_cast<T>(h);
  Buffer<T> centre(d), x_centred(m * d), y_centred(self ? 0 : n * d);
  if (m > 0)
    ops.centre(m, d, x, d, centre);
  else
    std::fill_n(centre.get(), d, T{0});
  centred_rows(x, m, d, centre.get(), x_centred.get());
  const Packed<T> sources(x, m, d);
  if (self) {
    const auto both = [&](Index r, Index l) { return v[r * m + l] + v[l * m + r]; };
    return static_cast<T>(
        gradient_of_lanes<T>(sources, x_centred, m, sources, x_centred, m, d, width, both, dx));
  }
  centred_rows(y, n, d, centre.get(), y_centred.get());
  const Packed<T> targets(y, n, d);
  const auto down = [&](Index r, Index l) { return v[r * n + l]; };
  const auto across = [&](Index r, Index l) { return v[l * n + r]; };
  return static_cast<T>(
      gradient_of_lanes<T>(targets, y_centred, n, sources, x_centred, m, d, width, across, dx) +
      gradient_of_lanes<T>(sources, x_centred, m, targets, y_centred, n, d, width, down, dy));
}

}  // namespace

at::Tensor rbf_gram(const at::Tensor& x_in, const std::optional<at::Tensor>& y_in,
                    const at::Tensor& bandwidth_in, c10::string_view /*backend*/) {
  const at::Tensor x = widened(x_in), y = y_in ? widened(*y_in) : x;
  const at::Tensor h = bandwidth_in.to(x.scalar_type()).contiguous();
  const Index batch = x.size(0), m = x.size(1), n = y.size(1), d = x.size(2);
  at::Tensor out = at::empty({batch, m, n}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "rbf_gram", [&] {
    for_each_set(batch, [&](Index b) {
      gram_of_set(x.const_data_ptr<scalar_t>() + b * m * d,
                  y.const_data_ptr<scalar_t>() + b * n * d, m, n, d,
                  h.const_data_ptr<scalar_t>()[b], out.mutable_data_ptr<scalar_t>() + b * m * n);
    });
  });
  return out.to(x_in.scalar_type());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> rbf_gram_backward(
    const at::Tensor& v_in, const at::Tensor& x_in, const std::optional<at::Tensor>& y_in,
    const at::Tensor& bandwidth_in, c10::string_view /*backend*/) {
  const at::Tensor x = widened(x_in), y = y_in ? widened(*y_in) : x, v = widened(v_in);
  const at::Tensor h = bandwidth_in.to(x.scalar_type()).contiguous();
  const Index batch = x.size(0), m = x.size(1), n = y.size(1), d = x.size(2);
  at::Tensor dx = at::empty_like(x), dh = at::empty_like(h);
  at::Tensor dy = y_in ? at::empty_like(y) : at::empty({0}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "rbf_gram_backward", [&] {
    for_each_set(batch, [&](Index b) {
      dh.mutable_data_ptr<scalar_t>()[b] = gram_backward_of_set<scalar_t>(
          v.const_data_ptr<scalar_t>() + b * m * n, x.const_data_ptr<scalar_t>() + b * m * d,
          y.const_data_ptr<scalar_t>() + b * n * d, !y_in, m, n, d, h.const_data_ptr<scalar_t>()[b],
          dx.mutable_data_ptr<scalar_t>() + b * m * d,
          y_in ? dy.mutable_data_ptr<scalar_t>() + b * n * d : nullptr);
    });
  });
  const auto dtype = x_in.scalar_type();
  return {dx.to(dtype), dy.to(dtype), dh.to(bandwidth_in.scalar_type())};
}

}  // namespace stein

TORCH_LIBRARY_IMPL(stein_kernels, CPU, m) {
  m.impl("rbf_gram", &stein::rbf_gram);
  m.impl("rbf_gram_backward", &stein::rbf_gram_backward);
}
