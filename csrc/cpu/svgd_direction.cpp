// svgd_direction and its backward.
//
// Two flows, chosen by shape:
//   tiled    kernel values live in one 128 x 64 tile; lanes are targets. For large M.
//   stored   the M x N Gram matrix of one set is kept where it is smaller than the inputs or fits
//   L2;
//            distances by upper blocks only, the median from the same matrix; lanes are features.
// The diagonal of a set with itself (k = 1, difference 0) never enters a sum: it is added apart, so
// the repulsion of a particle on itself is exactly 0 and not a rounding error.
#include <algorithm>
#include <string>
#include <vector>

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "gram.h"
#include "median.h"
#include "pairs.h"

namespace stein {

namespace {

// --- forward, tiled
// ---------------------------------------------------------------------------------

template <class T>
void direction_tiled(const Set<T>& s, double h, T* phi) {
  const auto& ops = tile_ops<T>();
  const Index ldm = padded(s.m), ldn = padded(s.n);
  const T c = static_cast<T>(2.0 / h), scale = static_cast<T>(-1.0 / h);
  Buffer<T> x_packed(s.d * ldm), y_packed(s.self() ? 0 : s.d * ldn), centre(s.d);
  centre_of(s, centre.get());
  const bool direct = s.d <= kDirect || is_scattered(s, h);
  Buffer<T> drive(direct ? 0 : s.m * s.d);
  pack_features(s.x, s.m, s.d, x_packed.get(), ldm);
  if (!s.self()) pack_features(s.y, s.n, s.d, y_packed.get(), ldn);
  const T* targets = s.self() ? x_packed.get() : y_packed.get();
  if (!direct)
    parallel(s.m, 512, [&](Index begin, Index end) {
      ops.drive(end - begin, s.d, s.d, s.x + begin * s.d, s.g + begin * s.d, s.d, centre, c,
                drive + begin * s.d, s.d);
    });
  parallel(at::divup(s.n, kTargets), 1, [&](Index begin, Index end) {
    Buffer<T> tile(kSources * kTargets), field(s.d * kTargets);
    Buffer<double> sum(s.d * kTargets), mass(kTargets);
    for (Index t = begin; t < end; ++t) {
      const Index j0 = t * kTargets, lanes = std::min(kTargets, ldn - j0);
      std::fill_n(sum.get(), s.d * lanes, 0.0);
      std::fill_n(mass.get(), kTargets, 0.0);
      for (Index i0 = 0; i0 < s.m; i0 += kSources) {
        const Index rows = std::min(kSources, s.m - i0);
        ops.squared_distance(s.d, rows, lanes, x_packed + i0, ldm, targets + j0, ldn, tile, lanes);
        if (s.self()) mask_diagonal(tile.get(), lanes, i0, rows, j0, lanes);
        ops.radial(rows, lanes, tile, lanes, s.w ? s.w + i0 : nullptr, scale, mass);
        if (direct)
          ops.direct_field(rows, s.d, lanes, tile, lanes, s.x + i0 * s.d, s.g + i0 * s.d, s.d,
                           targets + j0, ldn, c, field, lanes);
        else
          ops.product(rows, s.d, lanes, drive + i0 * s.d, s.d, tile, lanes, field, lanes);
        ops.add(s.d * lanes, field, sum);
      }
      const double factor = s.factor();
      for (Index j = 0; j < std::min(kTargets, s.n - j0); ++j) {
        const T* y = s.targets() + (j0 + j) * s.d;
        const double pull = direct ? 0.0 : c * mass[j];
        const double own = s.self() && !s.leave_one_out ? (s.w ? s.w[j0 + j] : 1.0) : 0.0;
        const T* g = s.g + (own != 0.0 ? (j0 + j) * s.d : 0);
        for (Index f = 0; f < s.d; ++f) {
          double value = sum[f * lanes + j];
          if (!direct) value += pull * (static_cast<double>(y[f]) - centre[f]);
          if (own != 0.0) value += own * g[f];
          phi[(j0 + j) * s.d + f] = static_cast<T>(factor * value);
        }
      }
    }
  });
}

// --- forward, stored
// -----------------------------------------------------------------------------------

// phi from the weighted kernel values; the pair (j, j), whose value is 1, is added apart.
template <class T>
void apply_gram(const Set<T>& s, const T* gram, Index ld, double h, bool direct, T* phi) {
  Buffer<T> own(s.n);
  const bool add_own = s.self() && !s.leave_one_out;
  for (Index j = 0; j < s.n; ++j) own[j] = s.w && add_own ? s.w[j] : T{1};
  const auto sum = direct ? &direct_sum<T> : &weighted_sum<T>;
  sum(s, gram, ld, h, add_own ? own.get() : nullptr, s.factor(), phi);
}

// h is taken where it is not NaN-marked by `rule`; otherwise the rule makes it from the same
// distances.
template <class T>
double direction_of_set(const Set<T>& s, const double* h_given, const char* rule, T* phi) {
  if (!keeps_gram(s)) {
    const double h = h_given ? *h_given
                             : static_cast<double>(static_cast<T>(bandwidth_from_median<T>(
                                   median_distance_of_set(s.x, s.m, s.d), s.m, rule)));
    direction_tiled(s, h, phi);
    return h;
  }
  const Index ld = padded(s.n);
  Buffer<T> gram(s.m * ld);
  double h = h_given ? *h_given : 0.0;
  if (!h_given && !s.self())
    h = bandwidth_from_median<T>(median_distance_of_set(s.x, s.m, s.d), s.m, rule);
  squared_distances(s, gram.get(), ld);
  if (!h_given) {
    if (s.self())
      h = bandwidth_from_median<T>(median_from_gram(gram.get(), ld, s.x, s.m, s.d), s.m, rule);
    h = static_cast<double>(static_cast<T>(h));
  }
  const bool direct = is_wide(s, gram.get(), ld, h, kScattered);
  radial_gram(s, gram.get(), ld, h);
  apply_gram(s, gram.get(), ld, h, direct, phi);
  return h;
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> svgd_direction(const at::Tensor& x_in, const at::Tensor& grad_in,
                                                  const std::optional<at::Tensor>& weights_in,
                                                  const std::optional<at::Tensor>& query_in,
                                                  const std::optional<at::Tensor>& bandwidth_in,
                                                  c10::string_view rule_in, bool leave_one_out,
                                                  c10::string_view /*backend*/) {
  const Arguments a(x_in, grad_in, weights_in, query_in, leave_one_out);
  const std::string rule(rule_in);
  at::Tensor phi = at::empty({a.batch, a.n, a.d}, a.x.options());
  at::Tensor h_out = at::empty({a.batch}, a.x.options());
  const at::Tensor h_in = bandwidth_in ? bandwidth_in->to(a.x.scalar_type()).contiguous() : h_out;
  AT_DISPATCH_FLOATING_TYPES(a.x.scalar_type(), "svgd_direction", [&] {
    const scalar_t* given = h_in.const_data_ptr<scalar_t>();
    scalar_t* used = h_out.mutable_data_ptr<scalar_t>();
    scalar_t* out = phi.mutable_data_ptr<scalar_t>();
    for_each_set(a.batch, [&](Index b) {
      const Set<scalar_t> set = a.set<scalar_t>(b);
      const double h = bandwidth_in ? static_cast<double>(given[b]) : 0.0;
      used[b] = static_cast<scalar_t>(
          direction_of_set(set, bandwidth_in ? &h : nullptr, rule.c_str(), out + b * a.n * a.d));
    });
  });
  return {phi.to(x_in.scalar_type()), h_out};
}

}  // namespace stein

TORCH_LIBRARY_IMPL(stein_kernels, CPU, m) { m.impl("svgd_direction", &stein::svgd_direction); }
