// Test only: launches of small sets under ThreadSanitizer, each named on the command line.
#include <cstdio>
#include <cstring>
#include <vector>

#include "small_set.h"

namespace {

using namespace stein;

struct Case {
  const char* name;
  Index batch;
  int particles, features;
  bool backward;
};

// A warp, four warps and 16 of them; features in several chunks, and few of them.
constexpr Case kCases[] = {
    {"warp", 5, 20, 40, false},    {"warp_backward", 5, 20, 40, true},
    {"four", 1, 33, 70, false},    {"four_backward", 1, 33, 70, true},
    {"sixteen", 1, 66, 70, false}, {"sixteen_backward", 1, 66, 70, true},
    {"direct", 1, 34, 5, false},   {"largest", 1, 132, 40, false},
    {"even", 1, 33, 3, false},
};

struct Values : std::vector<float> {
  explicit Values(Index size) : std::vector<float>(static_cast<size_t>(size)) {
    for (size_t i = 0; i < this->size(); ++i) (*this)[i] = float(i * i % 1009) * 1e-3f;
  }
};

cudaError_t run(const Case& c) {
  const Index size = c.batch * c.particles * c.features;
  Values x(size), grad(size), v(size), w(c.batch * c.particles), h(c.batch), phi(size);
  Values work(size), dx(size), dg(size), dw(c.batch * c.particles), dh(c.batch);
  const cudaError_t error = small_set(Scalar::kFloat,
                                      {x.data(), grad.data(), w.data(), h.data(), phi.data(),
                                       c.batch, c.particles, c.features, true, false, 0, 0.3, 0.0},
                                      nullptr);
  if (error != cudaSuccess || !c.backward) return error;
  return small_set_backward(
      Scalar::kFloat,
      {v.data(), x.data(), grad.data(), w.data(), h.data(), work.data(), dx.data(), dg.data(),
       dw.data(), dh.data(), c.batch, c.particles, c.features, true, false, 0.0},
      nullptr);
}

}  // namespace

int main(int count, char** names) {
  for (int i = 1; i < count; ++i) {
    bool found = false;
    for (const Case& c : kCases) {
      if (std::strcmp(c.name, names[i])) continue;
      found = true;
      const cudaError_t error = run(c);
      if (error != cudaSuccess) {
        std::fprintf(stderr, "%s: %s\n", c.name, cudaGetErrorString(error));
        return 1;
      }
    }
    if (!found) return 2;
  }
  return 0;
}
