// Which group of warps holds a set of which size, and how much shared memory it takes.
#pragma once

#include <algorithm>

#include "small_set.cuh"

namespace stein {

// Particles up to which one warp, four, or 16 (8 in float64) hold a set: about a tile to a thread.
constexpr int kOneWarpSet = 28;
constexpr int kFourWarpsSet = 60;
constexpr int kMediumSet = 128;

template <class T, class User>
using OneWarp = Group<T, User, 1, 7, 1, 4>;
template <class T, class User>
using FourWarps = Group<T, User, 4, 4, sizeof(T) == 4 ? 2 : 1, 1>;
// A block of 16 warps leaves 128 registers to a thread: too few in float64, or for more targets.
template <class T, class User>
using MediumSet =
    std::conditional_t<sizeof(T) == 4, Group<T, User, 16, 2, 2, 1>, Group<T, User, 8, 4, 1, 1>>;
template <class T, class User>
using LargestSet =
    std::conditional_t<sizeof(T) == 4, Group<T, User, 16, 4, 1, 1>, Group<T, User, 8, 6, 1, 1>>;

// The stage takes what is wanted and no more than is left; 0 where too little is.
template <class G>
Layout<typename G::T> layout_of(int particles, int features, int wanted_bytes) {
  using T = typename G::T;
  const Layout<T> bare(particles, features, 0);
  const Index room = static_cast<Index>(kMostShared) - static_cast<Index>(G::bytes(bare));
  const Index elements =
      std::min<Index>(room / G::kSets, wanted_bytes) / static_cast<Index>(sizeof(T));
  const Index least = std::max({2 * bare.line, 256, 4 * G::kFeatures, G::kThreads});
  const bool fits = particles <= G::kMost && elements >= least;
  return Layout<T>(particles, features, fits ? static_cast<int>(elements / 4 * 4) : 0);
}

// Calls run(a group, its layout) for a set of this size.
template <class T, class User, class Run>
auto with_group(int particles, int features, const Run& run) {
  if (particles <= kOneWarpSet) {
    // Two buffers of 20 features of 28 particles: 30 sets to a multiprocessor.
    using G = OneWarp<T, User>;
    return run(static_cast<G*>(nullptr), layout_of<G>(particles, features, 4608));
  }
  if (particles <= kFourWarpsSet) {
    using G = FourWarps<T, User>;
    return run(static_cast<G*>(nullptr), layout_of<G>(particles, features, 16384));
  }
  // All 50 features of 100 particles in flight at once.
  if (particles <= kMediumSet) {
    using G = MediumSet<T, User>;
    return run(static_cast<G*>(nullptr), layout_of<G>(particles, features, 24576));
  }
  using G = LargestSet<T, User>;
  return run(static_cast<G*>(nullptr), layout_of<G>(particles, features, 24576));
}

// Calls run(a T, a User) for a user's type.
template <class Run>
auto with_types(Scalar scalar, const Run& run) {
  switch (scalar) {
    case Scalar::kDouble:
      return run(double(), double());
    case Scalar::kHalf:
      return run(float(), __half());
    case Scalar::kBFloat16:
      return run(float(), __nv_bfloat16());
    default:
      return run(float(), float());
  }
}

}  // namespace stein
