// Test only: the small sets and the median of csrc/cuda under ThreadSanitizer, each launch named on
// the command line.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "median.h"
#include "small_set.h"

namespace {

using namespace stein;

std::vector<float> values(Index size) {
  std::vector<float> result(size);
  for (Index i = 0; i < size; ++i) result[i] = std::sin(float(i * i % 1009));
  return result;
}

// Sets of a lane's, a warp's and a block's size; the rule asks for the median.
constexpr int kSizes[][2] = {{3, 2}, {10, 3}, {20, 32}, {40, 7}, {100, 50}, {130, 20}};
constexpr Index kBatch = 3;

cudaError_t run_small_set(bool backward) {
  for (const auto& [m, d] : kSizes) {
    const Index size = kBatch * m * d;
    auto v = values(size), x = values(size), grad = values(size), w = values(kBatch * m);
    std::vector<float> h(kBatch, 1), phi(size), work(size), dx(size), dg(size), dw(kBatch * m);
    std::vector<float> dh(kBatch);
    if (!small_set_fits(Scalar::kFloat, m, d)) return cudaErrorInvalidValue;
    const cudaError_t error =
        backward ? small_set_backward(
                       Scalar::kFloat,
                       {v.data(), x.data(), grad.data(), w.data(), h.data(), work.data(), dx.data(),
                        dg.data(), dw.data(), dh.data(), kBatch, m, d, true, false, 1.0 / m},
                       nullptr)
                 : small_set(Scalar::kFloat,
                             {x.data(), grad.data(), w.data(), h.data(), phi.data(), kBatch, m, d,
                              true, false, 1, 1.0, 1.0 / m},
                             nullptr);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

// Every pair in the bracket at first, so that the search takes all its rounds.
cudaError_t run_median(bool stored, int depth) {
  constexpr Index kCount = 150, kLd = 256;
  constexpr int kFeatures = 20, kRows = 2, kBins = 2048, kFields = 8, kHigh = 1, kRounds = 4;
  auto points = values(stored ? kCount * kCount : kFeatures * kLd);
  for (float& value : points) value = std::fabs(value);
  for (int f = 0; f < kFeatures && !stored; ++f) {
    for (Index i = kCount; i < kLd; ++i) points[f * kLd + i] = std::nanf("");
  }
  std::vector<std::int64_t> state(kFields), histogram(kRows * kBins);
  std::vector<float> buckets(size_t{kRows} * kBins * depth), sample(1000);
  state[kHigh] = 0x7f800001;
  const MedianPoints cloud = {points.data(),          1,     kCount, stored ? kCount : kLd,
                              stored ? 0 : kFeatures, stored};
  const MedianSearch search = {state.data(), histogram.data(), buckets.data(), 1, kCount, kRows,
                               depth};
  cudaError_t error = median_sample(Scalar::kFloat, cloud, sample.data(), 1000, nullptr);
  for (int round = 0; round < kRounds && error == cudaSuccess; ++round) {
    error = median_pass(Scalar::kFloat, cloud, search, nullptr);
    if (error == cudaSuccess) error = median_refine(Scalar::kFloat, search, nullptr);
  }
  return error;
}

cudaError_t run(const char* name) {
  if (!std::strcmp(name, "small_set")) return run_small_set(false);
  if (!std::strcmp(name, "small_set_backward")) return run_small_set(true);
  if (!std::strcmp(name, "median")) return run_median(false, 64);
  if (!std::strcmp(name, "median_stored")) return run_median(true, 64);
  if (!std::strcmp(name, "median_counted")) return run_median(false, 0);
  return cudaErrorInvalidValue;
}

}  // namespace

int main(int count, char** names) {
  for (int i = 1; i < count; ++i) {
    const cudaError_t error = run(names[i]);
    if (error != cudaSuccess) {
      std::fprintf(stderr, "%s: %s\n", names[i], cudaGetErrorString(error));
      return 2;
    }
  }
  return 0;
}
