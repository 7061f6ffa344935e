// median_distance: exact selection over M(M-1)/2 squared distances.
//
// A squared distance is never negative, so its bits order as its value: selection bisects on bits,
// with a vectorised count per step. Few pairs are held in a buffer. Many are not: a sample of pairs
// brackets the two middle ranks, one pass over all tiles counts what lies below the bracket and
// collects what lies in it (about 2 % of the pairs), and the counts prove the bracket. A bracket
// that misses or that would collect too much is replaced by the part of the line that holds the
// rank, and the pass is repeated.
#include "median.h"

#include "gram.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace stein {

namespace {

constexpr Index kHeldPairs = Index{1} << 16;  // 256 KB of float32
constexpr Index kSample = Index{1} << 15;
constexpr Index kCollect = Index{1} << 22;  // 16 MB of float32

template <class T>
using Bits = typename TileOps<T>::Bits;

template <class T>
Bits<T> bits_of(T value) {
  Bits<T> bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

template <class T>
T value_of(Bits<T> bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

template <class T>
Bits<T> above_all() {
  return bits_of(std::numeric_limits<T>::infinity()) + 1;
}

// The smallest bits b with count(b + 1) > rank, searched in [low, high).
template <class T, class Count>
Bits<T> bisect(Index rank, Bits<T> low, Bits<T> high, const Count& count) {
  while (high - low > 1) {
    const Bits<T> middle = low + (high - low) / 2;
    if (count(middle) <= rank)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// Midpoint of the two middle distances from their squares.
double midpoint(double low, double high) { return 0.5 * (std::sqrt(low) + std::sqrt(high)); }

// values: n of them, then room for padding.
template <class T>
double middle_of_buffer(T* values, Index n, Index low_rank, Index high_rank) {
  const auto& ops = tile_ops<T>();
  std::fill(values + n, values + padded(n), std::numeric_limits<T>::infinity());
  T next;
  const T low = ops.select(n, values, low_rank, &next);
  return midpoint(low, high_rank == low_rank ? low : next);
}

template <class T>
double degenerate(const T* x, Index m, Index d) {
  double sum = 0;
  for (Index f = 0; f < d; ++f) {
    double mean = 0;
    for (Index i = 0; i < m; ++i) mean += (static_cast<double>(x[i * d + f]) - x[f]) / m;
    for (Index i = 0; i < m; ++i) {
      const double deviation = static_cast<double>(x[i * d + f]) - x[f] - mean;
      sum += deviation * deviation;
    }
  }
  return m > 1 && sum > 0 ? std::sqrt(2.0 * sum / static_cast<double>(m - 1)) : 1.0;
}

// Calls visit(tile, n) with tiles of squared distances, n a multiple of kMaxWidth, that cover every
// pair i < j of the rows [row_begin, row_end) once; the other places hold inf.
template <class T, class Visit>
void visit_pairs(const T* packed, Index ld, Index m, Index d, Index row_begin, Index row_end,
                 T* tile, const Visit& visit) {
  const auto& ops = tile_ops<T>();
  constexpr T kNone = std::numeric_limits<T>::infinity();
  for (Index i0 = row_begin; i0 < row_end; i0 += kTargets) {
    const Index rows = std::min(kTargets, row_end - i0);
    for (Index j0 = i0; j0 < m; j0 += kTargets) {
      const Index lanes = std::min(kTargets, ld - j0), real = std::min(kTargets, m - j0);
      ops.squared_distance(d, rows, lanes, packed + i0, ld, packed + j0, ld, tile, lanes);
      for (Index r = 0; r < rows; ++r) {
        if (j0 == i0) std::fill_n(tile + r * lanes, std::min(lanes, r + 1), kNone);
        if (real < lanes) std::fill(tile + r * lanes + real, tile + (r + 1) * lanes, kNone);
      }
      visit(tile, rows * lanes);
    }
  }
}

template <class T>
struct Pass {
  Index below = 0;        // pairs below the bracket
  Index count = 0;        // pairs in it
  std::vector<T> inside;  // those pairs, unless they are more than kCollect
  bool complete() const { return count == static_cast<Index>(inside.size()); }
};

// Counts the pairs below bits `low`, and counts and collects those in [low, high).
template <class T>
Pass<T> count_and_collect(const T* packed, Index ld, Index m, Index d, Bits<T> low, Bits<T> high) {
  const auto& ops = tile_ops<T>();
  Pass<T> total;
  std::mutex mutex;
  const Index panels = at::divup(m, kTargets);
  parallel(panels, 1, [&](Index begin, Index end) {
    Buffer<T> tile(kTargets * kTargets), kept(kTargets * kTargets + kMaxWidth);
    Pass<T> mine;
    const auto visit = [&](const T* values, Index n) {
      const Index inside = ops.collect(n, values, low, high, &mine.below, kept);
      mine.count += inside;
      if (static_cast<Index>(mine.inside.size()) + inside <= kCollect)
        mine.inside.insert(mine.inside.end(), kept.get(), kept.get() + inside);
    };
    for (Index turn = begin; turn < end; ++turn) {
      // First and last panels in turn: a contiguous share has as many long rows as short ones.
      const Index p = turn % 2 ? panels - 1 - turn / 2 : turn / 2;
      visit_pairs(packed, ld, m, d, p * kTargets, std::min(m, (p + 1) * kTargets), tile.get(),
                  visit);
    }
    const std::lock_guard<std::mutex> guard(mutex);
    total.below += mine.below;
    total.count += mine.count;
    if (static_cast<Index>(total.inside.size() + mine.inside.size()) <= kCollect)
      total.inside.insert(total.inside.end(), mine.inside.begin(), mine.inside.end());
  });
  return total;
}

// A bracket of the middle ranks from a fixed pseudo-random sample of pairs: +- `spread` standard
// errors.
template <class T>
std::pair<Bits<T>, Bits<T>> sample_bracket(const T* x, Index m, Index d, double spread) {
  std::vector<T> values(kSample);
  std::uint64_t state = 0x9e3779b97f4a7c15u;
  const auto draw = [&](Index range) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<Index>((state >> 33) % static_cast<std::uint64_t>(range));
  };
  for (T& value : values) {
    const Index i = draw(m), j = (i + 1 + draw(m - 1)) % m;
    T sum = 0;
    for (Index f = 0; f < d; ++f) {
      const T difference = x[i * d + f] - x[j * d + f];
      sum += difference * difference;
    }
    value = sum;
  }
  const Index margin = static_cast<Index>(spread * 0.5 * std::sqrt(static_cast<double>(kSample)));
  const Index low = std::max<Index>(0, kSample / 2 - margin);
  const Index high = std::min(kSample - 1, kSample / 2 + margin);
  std::nth_element(values.begin(), values.begin() + low, values.end());
  const Bits<T> low_bits = bits_of(values[low]);
  std::nth_element(values.begin(), values.begin() + high, values.end());
  return {low_bits, bits_of(values[high]) + 1};
}

// Narrows [low, high) until it holds `rank` and its pairs fit the buffer, or is one value wide.
template <class T>
struct Search {
  const T* packed;
  Index ld, m, d;
  Bits<T> low, high;
  Pass<T> pass;

  void find(Index rank) {
    Bits<T> outer_low = 0, outer_high = above_all<T>();  // holds the rank for certain
    for (;;) {
      pass = count_and_collect<T>(packed, ld, m, d, low, high);
      if (rank < pass.below) {
        outer_high = low;
      } else if (rank >= pass.below + pass.count) {
        outer_low = high;
      } else if (pass.complete() || high - low == 1) {
        return;
      } else {
        outer_low = low;
        outer_high = high;
        high = low + (outer_high - low) / 2;
        continue;
      }
      low = outer_low;
      high = outer_high;
    }
  }

  bool holds(Index rank) const { return rank >= pass.below && rank < pass.below + pass.count; }
};

template <class T>
double median_of_many(const T* x, Index m, Index d) {
  const Index ld = padded(m), pairs = m * (m - 1) / 2;
  const Index low_rank = (pairs - 1) / 2, high_rank = pairs / 2;
  Buffer<T> packed(d * ld);
  pack_features(x, m, d, packed.get(), ld);
  // +- 4 standard errors of the sample median hold 2.2 % of the pairs; fewer where those would not
  // fit.
  const double share = std::min(0.022, 0.5 * kCollect / static_cast<double>(pairs));
  const auto bracket = sample_bracket(x, m, d, share * std::sqrt(static_cast<double>(kSample)));
  Search<T> search{packed.get(), ld, m, d, bracket.first, bracket.second, {}};
  const auto value = [&](Index rank) {
    if (!search.holds(rank)) search.find(rank);
    if (!search.pass.complete()) return static_cast<double>(value_of<T>(search.low));
    auto& inside = search.pass.inside;
    inside.resize(padded(search.pass.count), std::numeric_limits<T>::infinity());
    T next;
    const Index place = rank - search.pass.below;
    const T found = tile_ops<T>().select(search.pass.count, inside.data(), place, &next);
    inside.resize(search.pass.count);
    return static_cast<double>(found);
  };
  const double low = value(low_rank);
  return midpoint(low, high_rank > low_rank ? value(high_rank) : low);
}

template <class T>
double median_of_few(const T* x, Index m, Index d) {
  const Index ld = padded(m), pairs = m * (m - 1) / 2, panels = at::divup(m, kTargets);
  Buffer<T> packed(d * ld), tile(kTargets * kTargets), values(panels * kTargets * ld);
  pack_features(x, m, d, packed.get(), ld);
  Index count = 0;
  visit_pairs<T>(packed, ld, m, d, 0, m, tile.get(), [&](const T* run, Index n) {
    std::memcpy(values + count, run, sizeof(T) * n);
    count += n;  // with its places of inf, which rank last
  });
  return middle_of_buffer<T>(values, count, (pairs - 1) / 2, pairs / 2);
}

template <class T>
T settle(double median, const T* x, Index m, Index d) {
  return static_cast<T>(median > 0 ? median : degenerate(x, m, d));
}

}  // namespace

template <class T>
T median_from_gram(const T* squared, Index ld, const T* x, Index m, Index d) {
  if (!tile_ops<T>().all_finite(m * d, x)) return std::numeric_limits<T>::quiet_NaN();
  if (m < 2 || d == 0) return T{1};
  const Index pairs = m * (m - 1) / 2, low_rank = (pairs - 1) / 2, high_rank = pairs / 2;
  if (pairs <= kHeldPairs) {
    Buffer<T> values(padded(pairs));
    Index count = 0;
    for (Index i = 0; i < m; ++i) {
      std::memcpy(values + count, squared + i * ld + i + 1, sizeof(T) * (m - 1 - i));
      count += m - 1 - i;
    }
    return settle(middle_of_buffer<T>(values, pairs, low_rank, high_rank), x, m, d);
  }
  const auto& ops = tile_ops<T>();
  const auto count = [&](Bits<T> limit) {
    Index total = 0;
    for (Index i = 0; i < m; ++i)
      total += ops.count_below(m - 1 - i, squared + i * ld + i + 1, limit);
    return total;
  };
  const Bits<T> first = bisect<T>(low_rank, 0, above_all<T>(), count);
  const bool apart = high_rank > low_rank && count(first + 1) <= high_rank;
  const Bits<T> second = apart ? bisect<T>(high_rank, first, above_all<T>(), count) : first;
  return settle(midpoint(value_of<T>(first), value_of<T>(second)), x, m, d);
}

template <class T>
T median_distance_of_set(const T* x, Index m, Index d) {
  if (!tile_ops<T>().all_finite(m * d, x)) return std::numeric_limits<T>::quiet_NaN();
  if (m < 2 || d == 0) return T{1};
  if (d >= kLongRow &&
      m <= 2 * d) {  // the Gram matrix is smaller than x, and long sums are made in double
    const Set<T> set{x, nullptr, nullptr, nullptr, m, m, d, false, true};
    const Index ld = padded(m);
    Buffer<T> squared(m * ld);
    squared_distances(set, squared.get(), ld);
    return median_from_gram(squared.get(), ld, x, m, d);
  }
  const bool few = m * (m - 1) / 2 <= kHeldPairs;
  return settle(few ? median_of_few(x, m, d) : median_of_many(x, m, d), x, m, d);
}

template float median_distance_of_set(const float*, Index, Index);
template double median_distance_of_set(const double*, Index, Index);
template float median_from_gram(const float*, Index, const float*, Index, Index);
template double median_from_gram(const double*, Index, const double*, Index, Index);

double bandwidth_from_median(double median, Index m, const char* rule) {
  if (std::strcmp(rule, "median") == 0) return median;
  const double squared = median * median;
  if (std::strcmp(rule, "median_squared") == 0) return squared;
  return squared / std::log(static_cast<double>(std::max<Index>(m, 1)) + 1.0);
}

at::Tensor median_distance(const at::Tensor& x_in) {
  const bool half = x_in.scalar_type() == at::kHalf || x_in.scalar_type() == at::kBFloat16;
  const at::Tensor x = (half ? x_in.to(at::kFloat) : x_in).contiguous();
  const Index batch = x.size(0), m = x.size(1), d = x.size(2);
  at::Tensor out = at::empty({batch}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "median_distance", [&] {
    const scalar_t* data = x.const_data_ptr<scalar_t>();
    scalar_t* result = out.mutable_data_ptr<scalar_t>();
    for_each_set(batch, [&](Index b) {
      result[b] = median_distance_of_set<scalar_t>(data + b * m * d, m, d);
    });
  });
  return out;
}

}  // namespace stein

TORCH_LIBRARY_IMPL(stein_kernels, CPU, m) { m.impl("median_distance", &stein::median_distance); }
