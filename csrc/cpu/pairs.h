// What every op shares on the CPU: the arguments of one set, scratch memory, packing, and the loop
// over sets.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>

#include <optional>
#include <utility>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include "plan.h"
#include "tile.h"

namespace stein {

constexpr Index kTargets = 64;   // lanes of a tile: one target each
constexpr Index kSources = 128;  // rows of a tile: 128 x 64 floats are 32 KB, half of an L1 cache

// Scratch memory of one thread, handed out and taken back in stack order: small sets would
// otherwise spend more time in the allocator than in arithmetic (eight buffers per set of 20
// particles).
class Arena {
 public:
  static constexpr std::size_t kBytes = std::size_t{1} << 20;
  static Arena& mine() {
    static thread_local Arena arena;
    return arena;
  }
  void* take(std::size_t bytes) {
    if (!block_) block_.reset(new (std::align_val_t(64)) unsigned char[kBytes]);
    if (bytes > kBytes - used_) return nullptr;
    void* p = block_.get() + used_;
    used_ += bytes;
    return p;
  }
  void give_back(std::size_t bytes) { used_ -= bytes; }

 private:
  struct Free {
    void operator()(unsigned char* p) const { ::operator delete[](p, std::align_val_t(64)); }
  };
  std::unique_ptr<unsigned char, Free> block_;
  std::size_t used_ = 0;
};

// Uninitialised, cache-line aligned memory for one scope of one thread.
template <class T>
class Buffer {
 public:
  explicit Buffer(Index n)
      : bytes_((sizeof(T) * static_cast<std::size_t>(n) + 63) / 64 * 64),
        data_(static_cast<T*>(Arena::mine().take(bytes_))),
        borrowed_(data_ != nullptr) {
    if (!borrowed_) data_ = static_cast<T*>(::operator new(bytes_, std::align_val_t(64)));
  }
  ~Buffer() {
    if (borrowed_)
      Arena::mine().give_back(bytes_);
    else
      ::operator delete(data_, std::align_val_t(64));
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return data_; }
  operator T*() const { return data_; }

 private:
  std::size_t bytes_;
  T* data_;
  bool borrowed_;
};

// at::parallel_for without its set-up cost where it would run serially anyway.
template <class F>
void parallel(Index end, Index grain, const F& f) {
  if (end <= 0) return;
  if (end <= grain || at::in_parallel_region())
    f(Index{0}, end);
  else
    at::parallel_for(0, end, grain, f);
}

// One set: M sources and N targets in d dimensions, all contiguous rows.
template <class T>
struct Set {
  const T* x;  // [M, d]
  const T* g;  // [M, d]
  const T* w;  // [M], or null for uniform weights
  const T* y;  // [N, d], where the targets are not the sources
  Index m, n, d;
  bool leave_one_out;
  bool own_targets;  // not y == nullptr: an empty query has no address either

  bool self() const { return own_targets; }
  const T* targets() const { return own_targets ? x : y; }
  // The factor of uniform weights; given weights are applied pair by pair.
  double factor() const {
    const Index others = m - (leave_one_out ? 1 : 0);
    return w ? 1.0 : 1.0 / static_cast<double>(others > 0 ? others : 1);
  }
};

inline bool is_half(const at::Tensor& t) {
  return t.scalar_type() == at::kHalf || t.scalar_type() == at::kBFloat16;
}

// Contiguous, in the dtype that sums are made in.
inline at::Tensor widened(const at::Tensor& t) {
  return (is_half(t) ? t.to(at::kFloat) : t).contiguous();
}

// The arguments that the direction, its divergence and their backwards have in common.
struct Arguments {
  at::Tensor x, grad, weights, query;  // undefined where not given
  Index batch, m, n, d;
  bool leave_one_out;

  Arguments(const at::Tensor& x_in, const at::Tensor& grad_in,
            const std::optional<at::Tensor>& weights_in, const std::optional<at::Tensor>& query_in,
            bool leave_one_out_in)
      : x(widened(x_in)), grad(widened(grad_in)), leave_one_out(leave_one_out_in) {
    if (weights_in) weights = widened(*weights_in);
    if (query_in) query = widened(*query_in);
    batch = x.size(0);
    m = x.size(1);
    d = x.size(2);
    n = query_in ? query.size(1) : m;
  }

  template <class T>
  Set<T> set(Index b) const {
    return {x.const_data_ptr<T>() + b * m * d,
            grad.const_data_ptr<T>() + b * m * d,
            weights.defined() ? weights.const_data_ptr<T>() + b * m : nullptr,
            query.defined() ? query.const_data_ptr<T>() + b * n * d : nullptr,
            m,
            n,
            d,
            leave_one_out,
            !query.defined()};
  }
};

// Asks for the rows of the next set ahead of their use: the processor's own prefetchers give up at
// the end of every small set.
template <class T>
void prefetch(const T* begin, Index n) {
  constexpr Index kLine = 64 / static_cast<Index>(sizeof(T));
  for (Index i = 0; i < n; i += kLine) __builtin_prefetch(begin + i);
}

// The mean of the sources, up to rounding that every user of it shares; 0 where there are none.
template <class T>
void centre_of(const Set<T>& s, T* out) {
  for (Index f = 0; f < s.d && s.m == 0; ++f) out[f] = 0;
  if (s.m > 0) tile_ops<T>().centre(s.m, s.d, s.x, s.d, out);
}

// Whether a sum over particles that splits y_j - x_i at the mean would round at the distance of
// far-off coordinates, where kernel values are 0.
template <class T>
bool is_scattered(const Set<T>& s, double h) {
  Buffer<T> centre(s.d);
  centre_of(s, centre.get());
  return tile_ops<T>().largest(s.m, s.d, s.x, s.d, centre) > kScattered * std::sqrt(h);
}

// 64 pseudo-random bits of place k (splitmix64).
inline std::uint64_t hashed(Index k) {
  std::uint64_t bits = (static_cast<std::uint64_t>(k) + 1) * 0x9e3779b97f4a7c15u;
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
  return bits ^ (bits >> 31);
}

// Two different particles of m, pseudo-randomly.
inline std::pair<Index, Index> random_pair(Index k, Index m) {
  const auto scaled = [](std::uint64_t random32, Index range) {
    return static_cast<Index>((random32 * static_cast<std::uint64_t>(range)) >> 32);
  };
  const std::uint64_t bits = hashed(k);
  const Index i = scaled(bits >> 32, m);
  return {i, (i + 1 + scaled(bits & 0xffffffffu, m - 1)) % m};
}

// Whether an eighth of some pseudo-random pairs of m particles have a squared distance below limit.
template <class Distance>
bool has_near_pairs(Index m, double limit, const Distance& squared) {
  if (m < 2) return false;
  const Index count = std::clamp<Index>(m / 2, 8, 64);
  Index near = 0;
  for (Index k = 0; k < count; ++k) {
    const auto [i, j] = random_pair(k, m);
    near += squared(i, j) < limit;
  }
  return 8 * near >= count;
}

// The same of sums over features, which round at the distance of far-off particles, beside what is
// near: pairs with a kernel value, or, where a rule's h knows of the modes, pairs within them. And
// whether products of 1 / h leave the range of float32.
template <class T>
bool is_far_off(const Set<T>& s, double h) {
  if (h < 1e-12 || h > 1e12) return true;
  Buffer<T> centre(s.d);
  centre_of(s, centre.get());
  double most = 0;
  for (Index i = 0; i < s.m; i += 4) {
    double squared[16] = {};
    const Index rows = std::min<Index>(4, s.m - i);
    tile_ops<T>().row_distance(s.d, s.x + i * s.d, s.d, rows, centre, s.d, 1, squared);
    for (Index r = 0; r < rows; ++r) most = std::max(most, squared[4 * r]);
  }
  const auto between = [&](Index i, Index j) {
    double squared[16] = {};
    tile_ops<T>().row_distance(s.d, s.x + i * s.d, s.d, 1, s.x + j * s.d, s.d, 1, squared);
    return squared[0];
  };
  return most > kFarOff * kFarOff * h || has_near_pairs(s.m, most / (kModes * kModes), between);
}

// A copy in double, where the same forms lose nothing that float32 would show.
class WideSet {
 public:
  explicit WideSet(const Set<float>& s)
      : narrow_(s),
        x_(s.x, s.x + s.m * s.d),
        g_(s.g, s.g + (s.g ? s.m * s.d : 0)),
        w_(s.w, s.w + (s.w ? s.m : 0)),
        y_(s.y, s.y + (s.self() ? 0 : s.n * s.d)) {}
  Set<double> set() const {
    return {x_.data(),
            g_.data(),
            narrow_.w ? w_.data() : nullptr,
            narrow_.self() ? nullptr : y_.data(),
            narrow_.m,
            narrow_.n,
            narrow_.d,
            narrow_.leave_one_out,
            narrow_.self()};
  }

 private:
  const Set<float>& narrow_;
  std::vector<double> x_, g_, w_, y_;
};

// out[f][i] = x[i][f], rows of out padded to `ld` with zeros.
template <class T>
void pack_features(const T* x, Index rows, Index d, T* out, Index ld) {
  const auto& ops = tile_ops<T>();
  parallel(d, at::divup(Index{1} << 16, rows + 1), [&](Index begin, Index end) {
    ops.transpose(rows, end - begin, x + begin, d, out + begin * ld, ld);
    for (Index f = begin; f < end; ++f) std::fill(out + f * ld + rows, out + (f + 1) * ld, T{0});
  });
}

// Sets in parallel when there are enough of them; otherwise each set runs its own loops in
// parallel.
template <class F>
void for_each_set(Index batch, const F& run) {
  if (batch >= at::get_num_threads()) {
    at::parallel_for(0, batch, 1, [&](Index begin, Index end) {
      for (Index b = begin; b < end; ++b) run(b);
    });
  } else {
    for (Index b = 0; b < batch; ++b) run(b);
  }
}

// Gives the pairs (j, j) inside a tile of rows [i0, i0 + rows) and lanes [j0, j0 + lanes) the
// distance inf, whose kernel is 0: the diagonal is added apart, exactly.
template <class T>
void mask_diagonal(T* tile, Index ld, Index i0, Index rows, Index j0, Index lanes) {
  const Index begin = i0 > j0 ? i0 : j0;
  const Index end = i0 + rows < j0 + lanes ? i0 + rows : j0 + lanes;
  for (Index j = begin; j < end; ++j)
    tile[(j - i0) * ld + (j - j0)] = std::numeric_limits<T>::infinity();
}

}  // namespace stein
