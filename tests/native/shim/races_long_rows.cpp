// Test only: launches on long rows under ThreadSanitizer, each named on the command line.
#include <cstdio>
#include <cstring>
#include <vector>

#include "long_rows.h"

namespace {

using namespace stein;

struct Case {
  const char* name;
  Index particles, features;
  bool products, same, adam;
};

// A set that one block holds, and one that takes several tiles; more chunks than stages.
constexpr Case kCases[] = {
    {"products_whole", 33, 300, true, true, false},
    {"products_tiles", 130, 140, true, true, false},
    {"products_query", 40, 300, true, false, false},
    {"direction_whole", 33, 200, false, true, false},
    {"direction_tiles", 130, 140, false, true, false},
    {"direction_query", 40, 140, false, false, false},
    {"adam", 33, 200, false, true, true},
};

struct Values : std::vector<float> {
  explicit Values(Index size) : std::vector<float>(static_cast<size_t>(size)) {
    for (size_t i = 0; i < this->size(); ++i) (*this)[i] = float(i * i % 1009) * 1e-3f;
  }
};

cudaError_t run(const Case& c) {
  const Index m = c.particles, d = c.features;
  Values x(m * d), grad(m * d), y(m * d), out(m * d), centre(d);
  const LongRows sources{x.data(), m * d, d}, targets{c.same ? x.data() : y.data(), m * d, d};
  if (c.products) {
    Values partial(2 * m * m);
    return long_products(Scalar::kFloat,
                         {sources, targets, centre.data(), centre.data(), partial.data(), 1, 2, m,
                          m, d, c.same, Copy::kWide},
                         nullptr);
  }
  Values coef(m * m), mass(m), own(m), h(1), first(m * d), second(m * d), factors(9);
  h[0] = 2.0f;
  return long_direction(
      Scalar::kFloat,
      {coef.data(), mass.data(), own.data(), h.data(), sources, LongRows{grad.data(), m * d, d},
       targets, LongRows{out.data(), m * d, d}, first.data(), second.data(), factors.data(), 1, m,
       m, d, c.same ? 0 : -1, Copy::kWide, Copy::kNarrow},
      c.adam, nullptr);
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
