// The tile primitives in compiler vectors of STEIN_VECTOR_BYTES, in namespace stein::STEIN_ISA.
// Included by one source file per instruction set, inside that file's target pragma.
#include "../rbf.h"
#include "tile.h"

namespace stein {
namespace STEIN_ISA {

#define STEIN_INLINE static inline __attribute__((always_inline))
using Index = std::int64_t;

template <class T>
struct Simd {
  static constexpr int W = STEIN_VECTOR_BYTES / sizeof(T);
  typedef T V __attribute__((vector_size(STEIN_VECTOR_BYTES)));
  typedef T Loose __attribute__((vector_size(STEIN_VECTOR_BYTES), aligned(sizeof(T)), may_alias));
  using Integer = typename ExpConstants<T>::Integer;
  typedef Integer I __attribute__((vector_size(STEIN_VECTOR_BYTES)));
};

template <class T>
STEIN_INLINE typename Simd<T>::V load(const T* p) {
  return *reinterpret_cast<const typename Simd<T>::Loose*>(p);
}

template <class T>
STEIN_INLINE void store(T* p, typename Simd<T>::V v) {
  *reinterpret_cast<typename Simd<T>::Loose*>(p) = v;
}

// The sum of all lanes, by halves.
template <class T>
STEIN_INLINE T lane_total(typename Simd<T>::V v) {
  T lanes[Simd<T>::W];
  __builtin_memcpy(lanes, &v, sizeof(v));
#pragma GCC unroll 8
  for (int half = Simd<T>::W / 2; half > 0; half /= 2)
#pragma GCC unroll 16
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  return lanes[0];
}

// --- out[r][l] = sum_k f(a[k][r], b[k][l]), R x C vectors held in registers -------------------

struct Multiply {
  template <class T, class V>
  static inline __attribute__((always_inline)) V step(V sum, T a, V b) {
    return sum + a * b;
  }
};

struct SquareDifference {
  template <class T, class V>
  static inline __attribute__((always_inline)) V step(V sum, T a, V b) {
    const V difference = b - a;
    return sum + difference * difference;
  }
};

template <class F, class T, int R, int C>
STEIN_INLINE void block(Index k, const T* a, Index lda, const T* b, Index ldb, T* out, Index ldo,
                        bool accumulate) {
  using S = Simd<T>;
  typename S::V sum[R][C] = {};
  for (Index i = 0; i < k; ++i, a += lda, b += ldb) {
    typename S::V column[C];
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) column[c] = load(b + c * S::W);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const T value = a[r];
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c)
        sum[r][c] = F::template step<T, typename S::V>(sum[r][c], value, column[c]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
      T* p = out + r * ldo + c * S::W;
      store(p, accumulate ? load(p) + sum[r][c] : sum[r][c]);
    }
}

template <class F, class T, int C>
STEIN_INLINE void panel(Index k, Index rows, const T* a, Index lda, const T* b, Index ldb, T* out,
                        Index ldo, bool accumulate) {
  Index r = 0;
  for (; r + STEIN_ROWS <= rows; r += STEIN_ROWS)
    block<F, T, STEIN_ROWS, C>(k, a + r, lda, b, ldb, out + r * ldo, ldo, accumulate);
  if (r + 2 <= rows && STEIN_ROWS > 4 && rows - r >= 4) {
    block<F, T, 4, C>(k, a + r, lda, b, ldb, out + r * ldo, ldo, accumulate);
    r += 4;
  }
  if (rows - r >= 2) {
    block<F, T, 2, C>(k, a + r, lda, b, ldb, out + r * ldo, ldo, accumulate);
    r += 2;
  }
  if (rows - r >= 1) block<F, T, 1, C>(k, a + r, lda, b, ldb, out + r * ldo, ldo, accumulate);
}

// Long sums over k are cut every 64 terms: rounding grows with the root of 64 + k/64 and not of k
// (at k = 700 1e-6 of a distance otherwise, seven times that of a kernel value); the extra stores
// cost 2 %.
constexpr Index kDepth = 64;

template <class F, class T>
void reduce(Index k, Index rows, Index lanes, const T* a, Index lda, const T* b, Index ldb, T* out,
            Index ldo) {
  constexpr Index W = Simd<T>::W;
  Index depth = 0;
  do {
    const Index n = k - depth < kDepth ? k - depth : kDepth;
    const T* pa = a + depth * lda;
    const T* pb = b + depth * ldb;
    const bool more = depth > 0;
    Index l = 0;
    for (; l + STEIN_COLUMNS * W <= lanes; l += STEIN_COLUMNS * W)
      panel<F, T, STEIN_COLUMNS>(n, rows, pa, lda, pb + l, ldb, out + l, ldo, more);
#if STEIN_COLUMNS > 2
    if (lanes - l >= 3 * W) {
      panel<F, T, 3>(n, rows, pa, lda, pb + l, ldb, out + l, ldo, more);
      l += 3 * W;
    }
    if (lanes - l >= 2 * W) {
      panel<F, T, 2>(n, rows, pa, lda, pb + l, ldb, out + l, ldo, more);
      l += 2 * W;
    }
#endif
    if (lanes - l >= W) panel<F, T, 1>(n, rows, pa, lda, pb + l, ldb, out + l, ldo, more);
    depth += n;
  } while (depth < k);
}

// --- the field summed by differences
// ----------------------------------------------------------------

template <class T, int R, int C>
STEIN_INLINE void field_block(Index k, const T* kernel, Index ldk, const T* x, const T* g,
                              Index ldx, const T* y, Index ldy, T c, T* out, Index ldo) {
  using S = Simd<T>;
  typename S::V sum[R][C] = {}, target[R][C];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < C; ++v) target[r][v] = load(y + r * ldy + v * S::W);
  for (Index i = 0; i < k; ++i, kernel += ldk, x += ldx, g += ldx) {
    typename S::V weight[C];
#pragma GCC unroll 16
    for (int v = 0; v < C; ++v) weight[v] = load(kernel + v * S::W);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const T xr = x[r], gr = g[r];
#pragma GCC unroll 16
      for (int v = 0; v < C; ++v) sum[r][v] += weight[v] * ((target[r][v] - xr) * c + gr);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < C; ++v) store(out + r * ldo + v * S::W, sum[r][v]);
}

template <class T, int C>
STEIN_INLINE void field_panel(Index k, Index features, const T* kernel, Index ldk, const T* x,
                              const T* g, Index ldx, const T* y, Index ldy, T c, T* out,
                              Index ldo) {
  Index f = 0;
  for (; f + 3 <= features; f += 3)
    field_block<T, 3, C>(k, kernel, ldk, x + f, g + f, ldx, y + f * ldy, ldy, c, out + f * ldo,
                         ldo);
  if (features - f == 2)
    field_block<T, 2, C>(k, kernel, ldk, x + f, g + f, ldx, y + f * ldy, ldy, c, out + f * ldo,
                         ldo);
  if (features - f == 1)
    field_block<T, 1, C>(k, kernel, ldk, x + f, g + f, ldx, y + f * ldy, ldy, c, out + f * ldo,
                         ldo);
}

template <class T>
void direct_field(Index k, Index features, Index lanes, const T* kernel, Index ldk, const T* x,
                  const T* g, Index ldx, const T* y, Index ldy, T c, T* out, Index ldo) {
  constexpr Index W = Simd<T>::W;
  constexpr int C = STEIN_COLUMNS > 2 ? 4 : 2;
  Index l = 0;
  for (; l + C * W <= lanes; l += C * W)
    field_panel<T, C>(k, features, kernel + l, ldk, x, g, ldx, y + l, ldy, c, out + l, ldo);
  for (; l + W <= lanes; l += W)
    field_panel<T, 1>(k, features, kernel + l, ldk, x, g, ldx, y + l, ldy, c, out + l, ldo);
}

// --- sums over features that are contiguous ---------------------------------------------

template <class F, class T, int A, int B>
STEIN_INLINE void row_block(Index features, const T* a, Index lda, const T* b, Index ldb,
                            double* out) {
  using S = Simd<T>;
  typename S::V sum[A][B] = {};
  Index f = 0;
  for (; f + S::W <= features; f += S::W) {
    typename S::V column[B];
#pragma GCC unroll 8
    for (int j = 0; j < B; ++j) column[j] = load(b + j * ldb + f);
#pragma GCC unroll 8
    for (int i = 0; i < A; ++i) {
      const typename S::V row = load(a + i * lda + f);
#pragma GCC unroll 8
      for (int j = 0; j < B; ++j)
        sum[i][j] = F::template step<typename S::V, typename S::V>(sum[i][j], row, column[j]);
    }
  }
  for (int i = 0; i < A; ++i)
    for (int j = 0; j < B; ++j) {
      double total = lane_total<T>(sum[i][j]);
      for (Index t = f; t < features; ++t)
        total = F::template step<double, double>(total, a[i * lda + t], b[j * ldb + t]);
      out[i * 4 + j] += total;
    }
}

template <class F, class T>
void row_sums(Index features, const T* a, Index lda, Index ra, const T* b, Index ldb, Index rb,
              double* out) {
  if (ra == 4 && rb == 4) return row_block<F, T, 4, 4>(features, a, lda, b, ldb, out);
  for (Index i = 0; i < ra; ++i)
    for (Index j = 0; j < rb; ++j)
      row_block<F, T, 1, 1>(features, a + i * lda, lda, b + j * ldb, ldb, out + i * 4 + j);
}

#include "tile_elementwise_impl.h"
#include "tile_pairs_impl.h"

template <class T>
const TileOps<T>& table(const char* name) {
  static const TileOps<T> ops = {name,
                                 &reduce<Multiply, T>,
                                 &reduce<SquareDifference, T>,
                                 &direct_field<T>,
                                 &row_sums<SquareDifference, T>,
                                 &row_sums<Multiply, T>,
                                 &radial<T>,
                                 &add<T>,
                                 &centre<T>,
                                 &drive<T>,
                                 &finish<T>,
                                 &transpose<T>,
                                 &subtract<T>,
                                 &centred_dot<T>,
                                 &combine<T>,
                                 &largest<T>,
                                 &all_finite<T>,
                                 &count_below<T>,
                                 &select<T>,
                                 &collect<T>,
                                 &direction_backward<T>,
                                 &lane_gradients<T>,
                                 &divergence<T>,
                                 &divergence_backward<T>};
  return ops;
}

const TileOps<float>& table_float() { return table<float>(STEIN_ISA_NAME); }
const TileOps<double>& table_double() { return table<double>(STEIN_ISA_NAME); }

}  // namespace STEIN_ISA
}  // namespace stein
