// Distances and kernel values of one set, stored: M x N with rows of `ld` (N padded).
#pragma once

#include <algorithm>

#include "pairs.h"

namespace stein {

template <class T>
bool keeps_gram(const Set<T>& s) {
  return keeps_gram(s.m, s.n, s.d);
}

// The lower triangle from the upper one.
template <class T>
void mirror(T* matrix, Index ld, Index m);

// How long rows are cut: the number of chunks depends on the shape alone, each chunk has its own
// sums in double, and these are added in a fixed order: the same bits with any number of threads.
struct FeatureChunks {
  static constexpr Index kRun = 1024;  // features summed in T before they go into a double
  Index count, length;
  FeatureChunks(Index d, Index matrix_elements) {
    const Index fits = (Index{32} << 20) / (static_cast<Index>(sizeof(double)) * matrix_elements);
    count = std::max<Index>(1, std::min<Index>({d / 16384, 16, fits}));
    length = at::divup(at::divup(d, count), kRun) * kRun;
  }
};

// |x_i - y_j|^2. Where targets are the sources only the blocks on and above the diagonal are made,
// and the diagonal is inf (its kernel value is 0).
template <class T>
void squared_distances(const Set<T>& s, T* out, Index ld);

// In place: w_i exp(-r2 / h), mirrored where targets are the sources; w is applied where the set
// has it.
template <class T>
void radial_gram(const Set<T>& s, T* gram, Index ld, double h);

// mass[j] = c sum_i gram[i][j], summed in double.
template <class T>
void column_mass(const T* gram, Index ld, Index m, Index n, T c, T* mass);

// The largest squared distance from the first particle, by squared_distances.
template <class T>
T farthest(const Set<T>& s, const T* squared, Index ld);

// Whether a particle lies `radii` sqrt(h) and more from the first, by squared_distances, while some
// two are near enough to have a kernel value.
template <class T>
bool is_wide(const Set<T>& s, const T* squared, Index ld, double h, double radii);

// phi = factor (P^T (g - c x) + c mass y + own g), by blocks of features; P is M x N with rows of
// ld, mass its column sums; own may be null.
template <class T>
void weighted_sum(const Set<T>& s, const T* gram, Index ld, double h, const T* own, double factor,
                  T* phi);

// The same as factor (sum_i P_ij (g_i + c (y_j - x_i)) + own g): nothing cancels, in twice the time
template <class T>
void direct_sum(const Set<T>& s, const T* gram, Index ld, double h, const T* own, double factor,
                T* phi);

}  // namespace stein
