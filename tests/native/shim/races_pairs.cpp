// Test only: launches of csrc/cuda under ThreadSanitizer, each named on the command line.
#include <cstdio>
#include <cstring>
#include <vector>

#include "direction.h"
#include "divergence.h"
#include "gram.h"

namespace {

using namespace stein;

// Three chunks of features, three tiles of columns, two splits, a row tile that is not full.
constexpr Index kCount = 150, kLd = 256, kSplits = 2;
constexpr int kFeatures = 40;

struct Values : std::vector<float> {
  explicit Values(size_t size) : std::vector<float>(size) {
    for (size_t i = 0; i < size; ++i) (*this)[i] = float(i % 37) * 0.01f - 0.2f;
  }
};

Values x(kFeatures* kLd), u(kFeatures* kLd), v(kFeatures* kLd), w(kLd), shift(kLd), h(1);
Values out(kSplits * 3 * kFeatures * kLd), scalars(kSplits * 3 * kLd);

cudaError_t run_direction(bool direct) {
  return direction(Scalar::kFloat,
                   {x.data(), x.data(), u.data(), w.data(), h.data(), out.data(), scalars.data(), 1,
                    kSplits, kCount, kCount, kLd, kLd, direct ? 16 : kFeatures, true, direct},
                   nullptr);
}

cudaError_t run_direction_backward() {
  const DirectionSide side = {x.data(), u.data(), v.data(), shift.data(), w.data(), kCount, kLd};
  return direction_backward(
      Scalar::kFloat,
      {side, side, h.data(), out.data(), scalars.data(), 1, kSplits, kFeatures, true, true, true},
      nullptr);
}

cudaError_t run_divergence() {
  return divergence(Scalar::kFloat,
                    {x.data(), x.data(), u.data(), shift.data(), w.data(), h.data(), out.data(), 1,
                     kSplits, kCount, kCount, kLd, kLd, kFeatures, true},
                    nullptr);
}

cudaError_t run_divergence_backward() {
  const DivergenceSide side = {x.data(), u.data(), shift.data(), w.data(), v.data(), kCount, kLd};
  return divergence_backward(
      Scalar::kFloat,
      {side, side, h.data(), out.data(), scalars.data(), 1, kSplits, kFeatures, true, true, true},
      nullptr);
}

cudaError_t run_gram() {
  Values square(kCount * kCount);
  return gram(Scalar::kFloat,
              {x.data(), x.data(), h.data(), square.data(), Scalar::kFloat, 1, kCount, kCount, kLd,
               kLd, kFeatures},
              nullptr);
}

cudaError_t run_gram_backward() {
  Values square(kCount * kCount);
  return gram_backward(Scalar::kFloat,
                       {x.data(), x.data(), square.data(), h.data(), out.data(), scalars.data(), 0,
                        1, kCount, 1, kSplits, kCount, kCount, kLd, kLd, kFeatures},
                       nullptr);
}

cudaError_t run(const char* name) {
  if (!std::strcmp(name, "direction")) return run_direction(false);
  if (!std::strcmp(name, "direct")) return run_direction(true);
  if (!std::strcmp(name, "direction_backward")) return run_direction_backward();
  if (!std::strcmp(name, "divergence")) return run_divergence();
  if (!std::strcmp(name, "divergence_backward")) return run_divergence_backward();
  if (!std::strcmp(name, "gram")) return run_gram();
  if (!std::strcmp(name, "gram_backward")) return run_gram_backward();
  return cudaErrorInvalidValue;
}

}  // namespace

int main(int count, char** names) {
  h[0] = 1;
  for (int i = 1; i < count; ++i) {
    const cudaError_t error = run(names[i]);
    if (error != cudaSuccess) {
      std::fprintf(stderr, "%s: %s\n", names[i], cudaGetErrorString(error));
      return 2;
    }
  }
  return 0;
}
