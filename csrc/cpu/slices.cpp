// squared_distances and weighted_direction: the two halves of svgd_direction where each process
// holds a slice of the features, between which the distances of all slices are added up.
//
// The M x N matrix is stored whatever its size; the arithmetic is that of the stored flow.
#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include "gram.h"
#include "pairs.h"

namespace stein {

namespace {

// The diagonal is 0, or NaN where a coordinate is not finite: it says so of every particle.
template <class T>
void distances_of_set(const Set<T>& s, T* out) {
  if (s.d == 0) std::fill_n(out, s.m * s.n, T{0});  // a process may have no feature
  if (s.m == 0 || s.n == 0 || s.d == 0) return;
  const auto& ops = tile_ops<T>();
  const Index ld = padded(s.n);
  Buffer<T> squared(s.m * ld);
  squared_distances(s, squared.get(), ld);
  if (s.self()) {
    mirror(squared.get(), ld, s.m);
    for (Index i = 0; i < s.m; ++i)
      squared[i * ld + i] =
          ops.all_finite(s.d, s.x + i * s.d) ? T{0} : std::numeric_limits<T>::quiet_NaN();
  }
  for (Index i = 0; i < s.m; ++i) std::copy_n(squared + i * ld, s.n, out + i * s.n);
}

// The diagonal of a set with itself has no difference: it is taken out and its scores added.
template <class T>
void direction_of_set(const Set<T>& s, const T* coefficients, double h, T* phi) {
  if (s.m == 0) std::fill_n(phi, s.n * s.d, T{0});
  if (s.m == 0 || s.n == 0 || s.d == 0) return;
  const Index ld = padded(s.n);
  Buffer<T> p(s.m * ld), own(s.n);
  for (Index i = 0; i < s.m; ++i) {
    std::copy_n(coefficients + i * s.n, s.n, p + i * ld);
    std::fill(p + i * ld + s.n, p + (i + 1) * ld, T{0});
    if (!s.self()) continue;
    own[i] = p[i * ld + i];
    p[i * ld + i] = 0;
  }
  const T* added = s.self() ? own.get() : nullptr;
  if (s.d <= kDirect)
    direct_sum(s, p.get(), ld, h, added, 1.0, phi);
  else
    weighted_sum(s, p.get(), ld, h, added, 1.0, phi);
}

}  // namespace

at::Tensor slice_squared_distances(const at::Tensor& x, const std::optional<at::Tensor>& y,
                                   c10::string_view /*backend*/) {
  const Arguments a(x, x, {}, y, false);
  at::Tensor out = at::empty({a.batch, a.m, a.n}, a.x.options());
  AT_DISPATCH_FLOATING_TYPES(a.x.scalar_type(), "squared_distances", [&] {
    scalar_t* values = out.mutable_data_ptr<scalar_t>();
    for_each_set(a.batch,
                 [&](Index b) { distances_of_set(a.set<scalar_t>(b), values + b * a.m * a.n); });
  });
  return out;
}

at::Tensor slice_weighted_direction(const at::Tensor& coefficients, const at::Tensor& x,
                                    const std::optional<at::Tensor>& grad,
                                    const std::optional<at::Tensor>& y,
                                    const at::Tensor& bandwidth, c10::string_view /*backend*/) {
  const Arguments a(x, grad ? *grad : at::zeros_like(x), {}, y, false);
  at::Tensor phi = at::empty({a.batch, a.n, a.d}, a.x.options());
  const at::Tensor p = coefficients.to(a.x.scalar_type()).contiguous();
  const at::Tensor h = bandwidth.to(a.x.scalar_type()).contiguous();
  AT_DISPATCH_FLOATING_TYPES(a.x.scalar_type(), "weighted_direction", [&] {
    const scalar_t* weights = p.const_data_ptr<scalar_t>();
    const scalar_t* widths = h.const_data_ptr<scalar_t>();
    scalar_t* out = phi.mutable_data_ptr<scalar_t>();
    for_each_set(a.batch, [&](Index b) {
      direction_of_set(a.set<scalar_t>(b), weights + b * a.m * a.n, static_cast<double>(widths[b]),
                       out + b * a.n * a.d);
    });
  });
  return phi.to(x.scalar_type());
}

}  // namespace stein

TORCH_LIBRARY_IMPL(stein_kernels, CPU, m) {
  m.impl("squared_distances", &stein::slice_squared_distances);
  m.impl("weighted_direction", &stein::slice_weighted_direction);
}
