// median_distance: exact selection over M(M-1)/2 squared distances.
//
// A squared distance is never negative, so its bits order as its value: selection bisects on bits,
// with a vectorised count per step. Few pairs are held in a buffer. Many are not: a sample of pairs
// brackets the two middle ranks, one pass over all tiles counts what lies below the bracket and
// collects what lies in it (2 % of the pairs, or what fits), and the counts prove the bracket. After
// a bracket that misses, or that holds too much, the counts say exactly where the rank lies from its
// ends, and the sampled pairs beside them bracket it again, more closely: one pass is enough for
// 40,000 particles, two for 200,000.
#include "median.h"

#include "gram.h"
#include "pair_sample.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>
#include <vector>

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace stein {

namespace {

constexpr Index kHeldPairs = Index{1} << 16;  // 256 KB of float32
constexpr Index kCollect = Index{1} << 22;    // 16 MB of float32
constexpr double kExpected = 0.75 * kCollect;  // what a bracket is meant to hold
constexpr Index kLeastSample = Index{1} << 11, kUsualSample = Index{1} << 15;
constexpr Index kMostSample = Index{1} << 20;
constexpr double kErrors = 4;     // half a bracket, in standard errors of the sample
constexpr Index kFewest = 256;    // sampled pairs that still place a rank
constexpr int kSampledTries = 8;  // then halving, which ends

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

// The root mean square of the distances, 2/(m - 1) times the sum of squared deviations; 1 for 0.
template <class T>
double degenerate(const T* x, Index m, Index d) {
  constexpr Index kRun = 256;
  std::vector<double> parts(at::divup(d, kRun), 0.0);
  parallel(at::divup(d, kRun), at::divup(Index{1} << 15, m * kRun), [&](Index begin, Index end) {
    double mean[kRun];
    for (Index run = begin; run < end; ++run) {
      const Index f0 = run * kRun, n = std::min(kRun, d - f0);
      const auto deviation = [&](Index i, Index f) {
        return static_cast<double>(x[i * d + f0 + f]) - x[f0 + f];
      };
      std::fill_n(mean, n, 0.0);
      for (Index i = 0; i < m; ++i)
        for (Index f = 0; f < n; ++f) mean[f] += deviation(i, f);
      for (Index f = 0; f < n; ++f) mean[f] /= static_cast<double>(m);
      double squares[kRun] = {};
      for (Index i = 0; i < m; ++i)
        for (Index f = 0; f < n; ++f) {
          const double apart = deviation(i, f) - mean[f];
          squares[f] += apart * apart;
        }
      for (Index f = 0; f < n; ++f) parts[run] += squares[f];
    }
  });
  double sum = 0;
  for (const double part : parts) sum += part;
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

// The pairs with bits in [low, high): `count` of them, above the `below` pairs with bits under low.
template <class T>
struct Interval {
  Bits<T> low, high;
  Index below, count;
  bool holds(Index rank) const { return below <= rank && rank < below + count; }
};

// One pair of 64; at least so many that kErrors standard errors to both sides of the sample's median
// hold as many pairs as should fit.
inline Index sample_size(Index pairs) {
  Index n = kLeastSample;
  while (n < kUsualSample && 64 * n < pairs) n *= 2;
  while (n < kMostSample && kErrors * pairs / std::sqrt(static_cast<double>(n)) > kExpected) n *= 2;
  return n;
}

template <class T>
class Selection {
 public:
  Selection(const T* x, Index m, Index d)
      : m_(m),
        d_(d),
        ld_(padded(m)),
        pairs_(m * (m - 1) / 2),
        capacity_(std::min(pairs_, kCollect)),
        packed_(d * ld_),
        inside_(padded(capacity_)),
        sample_(sample_of_pairs(x, m, d, sample_size(pairs_))),
        last_{0, above_all<T>(), 0, pairs_} {
    pack_features(x, m, d, packed_.get(), ld_);
  }

  // The squared distance of `rank`.
  double value(Index rank) {
    Interval<T> known{0, above_all<T>(), 0, pairs_};
    for (int tries = 0;; ++tries) {
      if (collected_ && last_.holds(rank)) return selected(rank - last_.below);
      known = narrowed(known, rank);
      if (known.high - known.low == 1) {
        last_ = known;
        collected_ = false;
        return value_of<T>(known.low);
      }
      const auto [low, high] = proposed(known, rank, tries);
      count_and_collect(low, high);
    }
  }

 private:
  // What the last pass, which looked into `known`, leaves of it for the rank.
  Interval<T> narrowed(const Interval<T>& known, Index rank) const {
    if (last_.holds(rank)) return last_;
    if (rank < last_.below) return {known.low, last_.low, known.below, last_.below - known.below};
    const Index below = last_.below + last_.count;
    return {last_.high, known.high, below, known.below + known.count - below};
  }

  // A part of `known` to look into: all of it where it fits; else between sampled pairs kErrors
  // standard errors to both sides of the rank's place, or fewer where those would not fit; the one
  // value of the sampled pair at its place where ties leave no less; a half in the end. Always less
  // than `known`, which then shrinks, or all of it, which is then collected.
  std::pair<Bits<T>, Bits<T>> proposed(const Interval<T>& known, Index rank, int tries) {
    if (tries > 0 && known.count <= capacity_) return {known.low, known.high};
    const auto first = sample_.begin();
    const auto last = std::partition(first, sample_.end(), [&](Bits<T> bits) {
      return known.low <= bits && bits < known.high;
    });
    const Index n = last - first;
    if (n >= kFewest && tries < kSampledTries) {
      const double pairs = static_cast<double>(known.count), share = (rank - known.below) / pairs;
      const double margin = std::min(kErrors * std::sqrt(share * (1 - share) * n) + 1,
                                     0.5 * kExpected / pairs * n);
      const auto at = [&](double place) {
        const auto chosen = first + static_cast<Index>(place);
        std::nth_element(first, chosen, last);
        return *chosen;
      };
      const double low_place = share * n - margin, high_place = share * n + margin;
      const Bits<T> low = low_place < 0 ? known.low : at(low_place);
      const Bits<T> high = high_place >= n ? known.high : at(high_place) + 1;
      if (low > known.low || high < known.high) return {low, high};
      const Bits<T> tied = at(std::min(share * n, n - 1.0));
      return {tied, tied + 1};
    }
    return {known.low, known.low + (known.high - known.low) / 2};
  }

  // Counts the pairs with bits below `low` and those in [low, high), and collects the latter if
  // they fit.
  void count_and_collect(Bits<T> low, Bits<T> high) {
    constexpr Index kTile = kTargets * kTargets;
    const auto& ops = tile_ops<T>();
    std::atomic<Index> below{0}, count{0};
    const Index panels = at::divup(m_, kTargets);
    parallel(panels, 1, [&](Index begin, Index end) {
      Buffer<T> tile(kTile), kept(2 * kTile + kMaxWidth);
      Index my_below = 0, held = 0;
      const auto hand_over = [&] {
        const Index place = count.fetch_add(held);
        if (place + held <= capacity_) std::copy_n(kept.get(), held, inside_ + place);
        held = 0;
      };
      const auto visit = [&](const T* values, Index n) {
        held += ops.collect(n, values, low, high, &my_below, kept + held);
        if (held >= kTile) hand_over();
      };
      for (Index turn = begin; turn < end; ++turn) {
        // First and last panels in turn: a contiguous share has as many long rows as short ones.
        const Index p = turn % 2 ? panels - 1 - turn / 2 : turn / 2;
        visit_pairs(packed_.get(), ld_, m_, d_, p * kTargets, std::min(m_, (p + 1) * kTargets),
                    tile.get(), visit);
      }
      hand_over();
      below += my_below;
    });
    last_ = {low, high, below, count};
    collected_ = count <= capacity_;
  }

  double selected(Index place) {
    const Index n = last_.count;
    std::fill(inside_ + n, inside_ + padded(n), std::numeric_limits<T>::infinity());
    T next;
    return tile_ops<T>().select(n, inside_.get(), place, &next);
  }

  Index m_, d_, ld_, pairs_, capacity_;
  Buffer<T> packed_, inside_;
  std::vector<Bits<T>> sample_;
  Interval<T> last_;        // of the last pass
  bool collected_ = false;  // inside_ holds its pairs
};

template <class T>
double median_of_many(const T* x, Index m, Index d) {
  const Index pairs = m * (m - 1) / 2, low_rank = (pairs - 1) / 2, high_rank = pairs / 2;
  Selection<T> selection(x, m, d);
  const double low = selection.value(low_rank);
  return midpoint(low, high_rank > low_rank ? selection.value(high_rank) : low);
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

template <class T>
double bandwidth_from_median(double median, Index m, const char* rule) {
  double h = median;
  if (std::strcmp(rule, "median") != 0) h *= median;
  if (std::strcmp(rule, "liu_wang") == 0)
    h /= std::log(static_cast<double>(std::max<Index>(m, 1)) + 1.0);
  const double least = 100.0 * static_cast<double>(std::numeric_limits<T>::min());
  return h < least ? least : h;  // NaN stays NaN
}

template double bandwidth_from_median<float>(double, Index, const char*);
template double bandwidth_from_median<double>(double, Index, const char*);

at::Tensor median_distance(const at::Tensor& x_in, c10::string_view /*backend*/) {
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
