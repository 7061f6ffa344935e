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
      for (int c = 0; c < C; ++c) sum[r][c] = F::template step<T, typename S::V>(sum[r][c], value, column[c]);
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

// Long sums over k are cut every 64 terms: rounding grows with the root of 64 + k/64 and not of k (at k = 700
// 1e-6 of a distance otherwise, seven times that of a kernel value); the extra stores cost 2 %.
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

// --- the field summed by differences ----------------------------------------------------------------

template <class T, int R, int C>
STEIN_INLINE void field_block(Index k, const T* kernel, Index ldk, const T* x, const T* g, Index ldx,
                              const T* y, Index ldy, T c, T* out, Index ldo) {
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
                              const T* g, Index ldx, const T* y, Index ldy, T c, T* out, Index ldo) {
  Index f = 0;
  for (; f + 3 <= features; f += 3)
    field_block<T, 3, C>(k, kernel, ldk, x + f, g + f, ldx, y + f * ldy, ldy, c, out + f * ldo, ldo);
  if (features - f == 2)
    field_block<T, 2, C>(k, kernel, ldk, x + f, g + f, ldx, y + f * ldy, ldy, c, out + f * ldo, ldo);
  if (features - f == 1)
    field_block<T, 1, C>(k, kernel, ldk, x + f, g + f, ldx, y + f * ldy, ldy, c, out + f * ldo, ldo);
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
      double total = 0;
      for (int lane = 0; lane < S::W; ++lane) total += sum[i][j][lane];
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

// --- elementwise --------------------------------------------------------------------------------------

template <class T>
void radial(Index rows, Index lanes, T* tile, Index ld, const T* weight, T scale,
            double* column_sum) {
  using S = Simd<T>;
  for (Index l = 0; l + S::W <= lanes; l += S::W) {
    typename S::V sum = {};
    T* p = tile + l;
    for (Index r = 0; r < rows; ++r, p += ld) {
      typename S::V value =
          exp_nonpositive<T, typename S::V, typename S::I>(load(p) * scale);
      if (weight) value = value * weight[r];
      store(p, value);
      sum += value;
    }
    if (column_sum)
      for (int lane = 0; lane < S::W; ++lane) column_sum[l + lane] += sum[lane];
  }
}

template <class T>
void add(Index n, const T* tile, double* sum) {
  for (Index i = 0; i < n; ++i) sum[i] += tile[i];
}

template <class T>
void centre(Index rows, Index n, const T* x, Index ldx, T* out) {
  constexpr Index W = Simd<T>::W;
  Index l = 0;
  for (; l + W <= n; l += W) {
    const typename Simd<T>::V first = load(x + l);
    typename Simd<T>::V sum = {};
    for (Index r = 1; r < rows; ++r) sum += load(x + r * ldx + l) - first;
    store(out + l, first + sum / static_cast<T>(rows));
  }
  for (; l < n; ++l) {
    T sum = 0;
    for (Index r = 1; r < rows; ++r) sum += x[r * ldx + l] - x[l];
    out[l] = x[l] + sum / static_cast<T>(rows);
  }
}

template <class T>
void drive(Index rows, Index n, Index lanes, const T* x, const T* g, Index ld, const T* centre, T c,
           T* out, Index ldo) {
  for (Index r = 0; r < rows; ++r, x += ld, g += ld, out += ldo) {
    for (Index l = 0; l < n; ++l) out[l] = g[l] - c * (x[l] - centre[l]);
    for (Index l = n; l < lanes; ++l) out[l] = 0;
  }
}

template <class T>
void finish(Index rows, Index n, const T* tile, Index ldt, const T* mass, const T* y,
            const T* centre, const T* own, const T* g, T factor, T* out, Index ld) {
  for (Index r = 0; r < rows; ++r, tile += ldt, y += ld, g += ld, out += ld) {
    const T m = mass[r];
    if (own) {
      const T o = own[r];
      for (Index l = 0; l < n; ++l)
        out[l] = factor * (tile[l] + m * (y[l] - centre[l]) + o * g[l]);
    } else {
      for (Index l = 0; l < n; ++l) out[l] = factor * (tile[l] + m * (y[l] - centre[l]));
    }
  }
}

template <class T>
void subtract(Index rows, Index n, Index lanes, const T* x, Index ld, const T* centre, T* out, Index ldo) {
  for (Index r = 0; r < rows; ++r, x += ld, out += ldo) {
    for (Index l = 0; l < n; ++l) out[l] = x[l] - centre[l];
    for (Index l = n; l < lanes; ++l) out[l] = 0;
  }
}

template <class T>
double centred_dot(Index n, const T* a, const T* centre, const T* b) {
  using S = Simd<T>;
  constexpr Index kDotRun = 256;
  double total = 0;
  Index l = 0;
  while (l + S::W <= n) {
    typename S::V sum = {};
    const Index end = n - l < kDotRun ? n : l + kDotRun;
    for (; l + S::W <= end; l += S::W) {
      typename S::V value = load(a + l);
      if (centre) value -= load(centre + l);
      sum += value * load(b + l);
    }
    for (int lane = 0; lane < S::W; ++lane) total += sum[lane];
  }
  for (; l < n; ++l) total += static_cast<double>(a[l] - (centre ? centre[l] : T{0})) * b[l];
  return total;
}

template <class T>
void combine(Index n, T a, const T* x, T b, const T* y, T p, const T* u, T q, const T* v, T* out) {
  for (Index l = 0; l < n; ++l) out[l] = a * x[l] + b * y[l] + p * u[l] + q * v[l];
}

template <class T>
bool all_finite(Index n, const T* values) {
  using S = Simd<T>;
  typename S::V sum = {};  // stays 0 unless a term is NaN or infinite
  Index i = 0;
  for (; i + S::W <= n; i += S::W) sum += load(values + i) * T{0};
  T total = 0;
  for (int lane = 0; lane < S::W; ++lane) total += sum[lane];
  for (; i < n; ++i) total += values[i] * T{0};
  return total == 0;
}

template <class T>
STEIN_INLINE typename Simd<T>::I load_bits(const T* p) {
  typename Simd<T>::I bits;
  const typename Simd<T>::V v = load(p);
  __builtin_memcpy(&bits, &v, sizeof(bits));
  return bits;
}

template <class T>
STEIN_INLINE Index lane_sum(typename Simd<T>::I v) {
  Index total = 0;
  for (int lane = 0; lane < Simd<T>::W; ++lane) total += v[lane];
  return total;
}

constexpr Index kCountRun = Index{1} << 20;  // keeps 32-bit lane counters far from overflow

template <class T>
Index count_below(Index n, const T* values, typename TileOps<T>::Bits limit) {
  using S = Simd<T>;
  const auto bound = static_cast<typename S::Integer>(limit);
  Index total = 0, i = 0;
  while (i + S::W <= n) {
    const Index end = n - i < kCountRun ? n : i + kCountRun;
    typename S::I count = {};
    for (; i + S::W <= end; i += S::W) count -= load_bits(values + i) < bound;  // true is -1
    total += lane_sum<T>(count);
  }
  for (; i < n; ++i) {
    typename S::Integer bits;
    __builtin_memcpy(&bits, values + i, sizeof(bits));
    total += bits < bound;
  }
  return total;
}

// Bisection on bits: the bits of a value that is not negative order as the value.
template <class T>
T select(Index n, const T* values, Index rank) {
  using S = Simd<T>;
  using Integer = typename S::Integer;
  const Index whole = (n + kMaxWidth - 1) / kMaxWidth * kMaxWidth;
  typename S::I least = load_bits(values), most = {};
  for (Index i = 0; i < whole; i += S::W) {
    const typename S::I bits = load_bits(values + i);
    least = bits < least ? bits : least;
    most = bits > most ? bits : most;
  }
  Integer low = least[0], high = most[0];
  for (int lane = 1; lane < S::W; ++lane) {
    low = least[lane] < low ? least[lane] : low;
    high = most[lane] > high ? most[lane] : high;
  }
  ++high;
  while (high - low > 1) {
    const Integer middle = low + (high - low) / 2;
    if (count_below(whole, values, static_cast<typename TileOps<T>::Bits>(middle)) <= rank)
      low = middle;
    else
      high = middle;
  }
  T result;
  __builtin_memcpy(&result, &low, sizeof(result));
  return result;
}

template <class T>
Index collect(Index n, const T* values, typename TileOps<T>::Bits low, typename TileOps<T>::Bits high,
              Index* below, T* out) {
  using S = Simd<T>;
  const auto lower = static_cast<typename S::Integer>(low), upper = static_cast<typename S::Integer>(high);
  typename S::I under = {};
  Index kept = 0;
  for (Index i = 0; i < n; i += S::W) {
    const typename S::I bits = load_bits(values + i);
    const typename S::I less = bits < lower;
    under -= less;
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      const __mmask16 inside = _mm512_cmplt_epi32_mask((__m512i)bits, _mm512_set1_epi32(upper)) &
                               ~_mm512_movepi32_mask((__m512i)less);
      _mm512_storeu_si512(out + kept, _mm512_maskz_compress_epi32(inside, (__m512i)bits));
      kept += __builtin_popcount(inside);
      continue;
    }
#endif
    for (int lane = 0; lane < S::W; ++lane) {
      out[kept] = values[i + lane];
      kept += bits[lane] >= lower && bits[lane] < upper;
    }
  }
  *below += lane_sum<T>(under);
  return kept;
}

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
                                 &subtract<T>,
                                 &centred_dot<T>,
                                 &combine<T>,
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
