// torch.ops.stein_kernels_cuda.median_sample, median_pass and median_refine: checks, then the raw
// launchers.
#include "median.h"

#include "binding.h"

namespace stein {
namespace {

constexpr Index kBins = 2048, kFields = 8;

MedianPoints points_of(const at::Tensor& points, Index count, bool stored) {
  if (!stored) check_packed({points});  // a stored matrix is read one value at a time
  const Scalar type = scalar(points);
  TORCH_CHECK(type == Scalar::kFloat || type == Scalar::kDouble,
              "stein_kernels_cuda::median: expected float32 or float64, got ",
              points.scalar_type());
  TORCH_CHECK(points.dim() == 3 && points.is_contiguous() && count >= 2 &&
                  count <= points.size(2) &&
                  (stored ? points.size(1) == count && points.size(2) == count
                          : points.size(1) > 0 && points.size(2) % 128 == 0),
              "stein_kernels_cuda::median: ", count, " particles in a tensor of ", points.sizes());
  return {points.const_data_ptr(),
          points.size(0),
          count,
          points.size(2),
          stored ? 0 : static_cast<int>(points.size(1)),
          stored};
}

MedianSearch search_of(const at::Tensor& state, const at::Tensor& histogram,
                       const at::Tensor& buckets, Index count) {
  check_packed({state, histogram});
  TORCH_CHECK(state.scalar_type() == at::kLong, "stein_kernels_cuda::median: state is int64");
  const Index batch = state.size(0);
  TORCH_CHECK(buckets.dim() == 4 && buckets.is_contiguous() && state.numel() == batch * kFields &&
                  histogram.sizes() == buckets.sizes().slice(0, 3) && buckets.size(0) == batch &&
                  buckets.size(2) == kBins,
              "stein_kernels_cuda::median: state ", state.sizes(), ", histogram ",
              histogram.sizes(), " and buckets ", buckets.sizes(), " do not fit together");
  return {state.data_ptr<std::int64_t>(),
          histogram.data_ptr<std::int64_t>(),
          buckets.data_ptr(),
          batch,
          count,
          static_cast<int>(buckets.size(1)),
          static_cast<int>(buckets.size(3))};
}

void run_sample(const at::Tensor& points, at::Tensor sample, Index count, bool stored) {
  const Device device(points);
  device.check({sample});
  check_packed({sample});
  TORCH_CHECK(sample.dim() == 2 && sample.scalar_type() == points.scalar_type() &&
                  sample.size(0) == points.size(0),
              "stein_kernels_cuda::median_sample: a sample of ", sample.sizes(), " from points of ",
              points.sizes());
  check_launch(median_sample(scalar(points), points_of(points, count, stored), sample.data_ptr(),
                             sample.size(1), device.stream()),
               "median_sample");
}

void run_pass(const at::Tensor& points, at::Tensor state, at::Tensor histogram, at::Tensor buckets,
              Index count, bool stored) {
  const Device device(points);
  device.check({state, histogram, buckets});
  TORCH_CHECK(buckets.scalar_type() == points.scalar_type() && state.size(0) == points.size(0),
              "stein_kernels_cuda::median_pass: points ", points.sizes(), " of ",
              points.scalar_type(), ", state ", state.sizes(), ", buckets of ",
              buckets.scalar_type());
  check_launch(median_pass(scalar(points), points_of(points, count, stored),
                           search_of(state, histogram, buckets, count), device.stream()),
               "median_pass");
}

void run_refine(at::Tensor state, at::Tensor histogram, at::Tensor buckets, Index count) {
  const Device device(state);
  device.check({histogram, buckets});
  check_launch(
      median_refine(scalar(buckets), search_of(state, histogram, buckets, count), device.stream()),
      "median_refine");
}

}  // namespace
}  // namespace stein

TORCH_LIBRARY_FRAGMENT(stein_kernels_cuda, m) {
  m.def("median_sample(Tensor points, Tensor(a!) sample, int count, bool stored) -> ()",
        &stein::run_sample);
  m.def(
      "median_pass(Tensor points, Tensor(a!) state, Tensor(b!) histogram, Tensor(c!) buckets, "
      "int count, bool stored) -> ()",
      &stein::run_pass);
  m.def("median_refine(Tensor(a!) state, Tensor(b!) histogram, Tensor buckets, int count) -> ()",
        &stein::run_refine);
}
