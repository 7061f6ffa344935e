#include "gram.h"

#include <algorithm>
#include <cmath>

namespace stein {

namespace {

constexpr Index kSummed = 512;  // sources that are summed in T before they go into a double
constexpr Index kPanel =
    24;  // rows of a block of distances: a multiple of every register tile's rows

// The first lane that row block [i0, ...) computes: lanes left of it are mirrored.
template <class T>
Index first_lane(const Set<T>& s, Index i0) {
  return s.self() ? i0 / kMaxWidth * kMaxWidth : 0;
}

template <class T>
void distances_packed(const Set<T>& s, T* out, Index ld) {
  const auto& ops = tile_ops<T>();
  const Index ldm = padded(s.m);
  Buffer<T> x(s.d * ldm), y(s.self() ? 0 : s.d * ld);
  pack_features(s.x, s.m, s.d, x.get(), ldm);
  if (!s.self()) pack_features(s.y, s.n, s.d, y.get(), ld);
  const T* targets = s.self() ? x.get() : y.get();
  parallel(at::divup(s.m, kPanel), at::divup(Index{1} << 15, s.n * s.d),
           [&](Index begin, Index end) {
             for (Index i0 = begin * kPanel; i0 < std::min(s.m, end * kPanel); i0 += kPanel) {
               const Index rows = std::min(kPanel, s.m - i0), l0 = first_lane(s, i0);
               ops.squared_distance(s.d, rows, ld - l0, x + i0, ldm, targets + l0, ld,
                                    out + i0 * ld + l0, ld);
             }
           });
}

template <class T>
void distances_streamed(const Set<T>& s, T* out, Index ld) {
  const auto& ops = tile_ops<T>();
  constexpr Index kRows = 32;
  const Index panels = at::divup(s.m, kRows);
  constexpr Index kRun = FeatureChunks::kRun;
  const FeatureChunks cut(s.d, s.m * ld);
  const Index chunks = cut.count, length = cut.length;
  const bool whole = chunks == 1;  // sums of a panel are then complete, and no others are kept
  Buffer<double> partial(whole ? 0 : chunks * s.m * ld);
  const auto write = [&](Index i_begin, Index i_end, const auto& sum) {
    for (Index i = i_begin; i < i_end; ++i)
      for (Index j = first_lane(s, i); j < ld; ++j) {
        const Index row = s.self() ? std::min(i, j) : i, column = s.self() ? std::max(i, j) : j;
        out[i * ld + j] = static_cast<T>(column < s.n ? sum(row, column) : 0.0);
      }
  };
  parallel(chunks * panels, 1, [&](Index begin, Index end) {
    Buffer<double> panel(whole ? kRows * ld : 0);
    for (Index task = begin; task < end; ++task) {
      const Index chunk = task / panels, i_begin = task % panels * kRows;
      const Index i_end = std::min(s.m, i_begin + kRows);
      double* sums = whole ? panel.get() : partial + (chunk * s.m + i_begin) * ld;
      std::fill_n(sums, (i_end - i_begin) * ld, 0.0);
      const Index last = std::min(s.d, (chunk + 1) * length);
      for (Index f = chunk * length; f < last; f += kRun) {
        const Index run = std::min(kRun, last - f);
        for (Index j = s.self() ? i_begin : 0; j < s.n; j += 4)
          for (Index i = i_begin; i < (s.self() ? std::min(i_end, j + 4) : i_end); i += 4) {
            double block[16] = {};
            const Index ra = std::min<Index>(4, i_end - i), rb = std::min<Index>(4, s.n - j);
            ops.row_distance(run, s.x + i * s.d + f, s.d, ra, s.targets() + j * s.d + f, s.d, rb,
                             block);
            for (Index p = 0; p < ra; ++p)
              for (Index q = 0; q < rb; ++q)
                sums[(i - i_begin + p) * ld + j + q] += block[p * 4 + q];
          }
      }
      if (whole)
        write(i_begin, i_end,
              [&](Index row, Index column) { return sums[(row - i_begin) * ld + column]; });
    }
  });
  if (whole) return;
  parallel(s.m, 16, [&](Index begin, Index end) {
    write(begin, end, [&](Index row, Index column) {
      double total = 0;
      for (Index k = 0; k < chunks; ++k) total += partial[(k * s.m + row) * ld + column];
      return total;
    });
  });
}

}  // namespace

template <class T>
void squared_distances(const Set<T>& s, T* out, Index ld) {
  if (s.d >= kLongRow)
    distances_streamed(s, out, ld);
  else
    distances_packed(s, out, ld);
  if (s.self()) mask_diagonal(out, ld, 0, s.m, 0, s.n);
}

template <class T>
void mirror(T* matrix, Index ld, Index m) {
  for (Index i0 = kMaxWidth; i0 < m; i0 += kMaxWidth) {
    const Index rows = std::min(kMaxWidth, m - i0);
    for (Index j0 = 0; j0 < i0; j0 += kMaxWidth)
      tile_ops<T>().transpose(kMaxWidth, rows, matrix + j0 * ld + i0, ld, matrix + i0 * ld + j0,
                              ld);
  }
}

template <class T>
void radial_gram(const Set<T>& s, T* gram, Index ld, double h) {
  const auto& ops = tile_ops<T>();
  const T scale = static_cast<T>(-1.0 / h);
  parallel(at::divup(s.m, kPanel), at::divup(Index{1} << 12, s.n), [&](Index begin, Index end) {
    for (Index i0 = begin * kPanel; i0 < std::min(s.m, end * kPanel); i0 += kPanel) {
      const Index rows = std::min(kPanel, s.m - i0), l0 = first_lane(s, i0);
      ops.radial(rows, ld - l0, gram + i0 * ld + l0, ld, s.self() || !s.w ? nullptr : s.w + i0,
                 scale, nullptr);
    }
  });
  if (!s.self()) return;
  mirror(gram, ld, s.m);
  if (s.w)
    for (Index i = 0; i < s.m; ++i)
      for (Index j = 0; j < s.n; ++j) gram[i * ld + j] *= s.w[i];
}

template <class T>
void column_mass(const T* gram, Index ld, Index m, Index n, T c, T* mass) {
  const auto& ops = tile_ops<T>();
  Buffer<double> sum(ld);
  std::fill_n(sum.get(), ld, 0.0);
  for (Index i = 0; i < m; ++i) ops.add(n, gram + i * ld, sum);
  for (Index j = 0; j < n; ++j) mass[j] = static_cast<T>(c * sum[j]);
}

template <class T>
T farthest(const Set<T>& s, const T* squared, Index ld) {
  T most = tile_ops<T>().largest(1, s.n, squared, ld, nullptr);
  for (Index i = 0; i < s.m && !s.self(); ++i) {
    const T one = squared[i * ld];
    if (std::isfinite(one)) most = std::max(most, one);
  }
  return most;
}

template <class T>
bool is_wide(const Set<T>& s, const T* squared, Index ld, double h, double radii) {
  if (!(farthest(s, squared, ld) > radii * radii * h)) return false;
  for (Index i = 0; i < s.m; ++i)
    for (Index j = s.self() ? i + 1 : 0; j < s.n; ++j)
      if (squared[i * ld + j] < kNothing * h) return true;
  return false;
}

template <class T>
void weighted_sum(const Set<T>& s, const T* gram, Index ld, double h, const T* own, double factor,
                  T* phi) {
  const auto& ops = tile_ops<T>();
  const T c = static_cast<T>(2.0 / h);
  Buffer<T> mass(s.n);
  column_mass(gram, ld, s.m, s.n, c, mass.get());
  const Index block = std::min<Index>(padded(s.d), s.m <= 512 ? 256 : 128);
  parallel(at::divup(s.d, block), 1, [&](Index begin, Index end) {
    const bool many = s.m > kSummed;
    Buffer<T> centre(block), drive(s.m * block), field(s.n * block);
    Buffer<double> sum(many ? s.n * block : 0);
    for (Index k = begin; k < end; ++k) {
      const Index f0 = k * block, n = std::min(block, s.d - f0), lanes = padded(n);
      ops.centre(s.m, n, s.x + f0, s.d, centre);
      ops.drive(s.m, n, lanes, s.x + f0, s.g + f0, s.d, centre, c, drive, block);
      if (many) std::fill_n(sum.get(), s.n * block, 0.0);
      for (Index i0 = 0; i0 == 0 || i0 < s.m; i0 += kSummed) {
        ops.product(std::min(kSummed, s.m - i0), s.n, lanes, gram + i0 * ld, ld, drive + i0 * block,
                    block, field, block);
        for (Index j = 0; many && j < s.n; ++j) ops.add(lanes, field + j * block, sum + j * block);
      }
      for (Index j = 0; many && j < s.n; ++j)
        for (Index f = 0; f < lanes; ++f) field[j * block + f] = static_cast<T>(sum[j * block + f]);
      ops.finish(s.n, n, field, block, mass, s.targets() + f0, centre, own, s.g + f0,
                 static_cast<T>(factor), phi + f0, s.d);
    }
  });
}

template <class T>
void direct_sum(const Set<T>& s, const T* gram, Index ld, double h, const T* own, double factor,
                T* phi) {
  const auto& ops = tile_ops<T>();
  const T c = static_cast<T>(2.0 / h);
  const Index block = std::min<Index>(s.d, 256), tiles = at::divup(s.n, kTargets);
  parallel(at::divup(s.d, block) * tiles, 1, [&](Index begin, Index end) {
    Buffer<T> targets(block * kTargets), field(block * kTargets);
    Buffer<double> sum(block * kTargets);
    for (Index task = begin; task < end; ++task) {
      const Index f0 = task / tiles * block, features = std::min(block, s.d - f0);
      const Index j0 = task % tiles * kTargets, lanes = std::min(kTargets, ld - j0);
      const Index real = std::min(lanes, s.n - j0);
      std::fill_n(targets.get(), features * kTargets, T{0});
      ops.transpose(real, features, s.targets() + j0 * s.d + f0, s.d, targets, kTargets);
      std::fill_n(sum.get(), features * lanes, 0.0);
      for (Index i0 = 0; i0 < s.m; i0 += kSources) {
        ops.direct_field(std::min(kSources, s.m - i0), features, lanes, gram + i0 * ld + j0, ld,
                         s.x + i0 * s.d + f0, s.g + i0 * s.d + f0, s.d, targets, kTargets, c, field,
                         lanes);
        ops.add(features * lanes, field, sum);
      }
      for (Index j = 0; j < real; ++j)
        for (Index f = 0; f < features; ++f) {
          const Index at = (j0 + j) * s.d + f0 + f;
          const double alone = own ? static_cast<double>(own[j0 + j]) * s.g[at] : 0.0;
          phi[at] = static_cast<T>(factor * (sum[f * lanes + j] + alone));
        }
    }
  });
}

#define STEIN_INSTANTIATE(T)                                          \
  template void mirror<T>(T*, Index, Index);                          \
  template void squared_distances<T>(const Set<T>&, T*, Index);       \
  template void radial_gram<T>(const Set<T>&, T*, Index, double);     \
  template void column_mass<T>(const T*, Index, Index, Index, T, T*); \
  template T farthest<T>(const Set<T>&, const T*, Index);             \
  template bool is_wide<T>(const Set<T>&, const T*, Index, double, double);                    \
  template void weighted_sum<T>(const Set<T>&, const T*, Index, double, const T*, double, T*); \
  template void direct_sum<T>(const Set<T>&, const T*, Index, double, const T*, double, T*);
STEIN_INSTANTIATE(float)
STEIN_INSTANTIATE(double)

}  // namespace stein
