// Squared distances of pseudo-random pairs of one set, the same whatever the number of threads.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "pairs.h"

namespace stein {

template <class T>
using Bits = typename TileOps<T>::Bits;

template <class T>
Bits<T> bits_of(T value) {
  Bits<T> bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// Bits of the squared distances of n pseudo-random pairs, n a multiple of kTargets: by the tile's
// own arithmetic, so that a distance that many pairs share has the same bits here as there.
template <class T>
std::vector<Bits<T>> sample_of_pairs(const T* x, Index m, Index d, Index n) {
  const auto& ops = tile_ops<T>();
  std::vector<Bits<T>> sample(n);
  parallel(n / kTargets, std::max<Index>(1, 4096 / d), [&](Index begin, Index end) {
    Buffer<T> origin(d), differences(d * kTargets), squares(kTargets);
    std::fill_n(origin.get(), d, T{0});
    for (Index block = begin; block < end; ++block) {
      for (Index lane = 0; lane < kTargets; ++lane) {
        const auto [i, j] = random_pair(block * kTargets + lane, m);
        for (Index f = 0; f < d; ++f)
          differences[f * kTargets + lane] = x[i * d + f] - x[j * d + f];
      }
      ops.squared_distance(d, 1, kTargets, origin, 1, differences, kTargets, squares, kTargets);
      for (Index lane = 0; lane < kTargets; ++lane)
        sample[block * kTargets + lane] = bits_of(squares[lane]);
    }
  });
  return sample;
}

}  // namespace stein
