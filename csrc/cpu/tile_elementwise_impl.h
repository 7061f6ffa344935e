// The tile primitives that treat each value on its own, and the counts; included by tile_impl.h
// inside its namespace.

#if defined(__clang__) || __GNUC__ >= 12
#define STEIN_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define STEIN_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Mask{__VA_ARGS__})
#endif

// 4 x 4 blocks in registers: a third of the time of a strided loop.
template <class T>
void transpose(Index rows, Index columns, const T* x, Index ldx, T* out, Index ldo) {
  typedef T Four __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T)), may_alias));
  typedef typename Simd<T>::Integer Mask __attribute__((vector_size(4 * sizeof(T)), unused));
  Index r = 0;
  for (; r + 4 <= rows; r += 4) {
    Index c = 0;
    for (; c + 4 <= columns; c += 4) {
      const T* p = x + r * ldx + c;
      T* q = out + c * ldo + r;
      const Four a = *reinterpret_cast<const Four*>(p);
      const Four b = *reinterpret_cast<const Four*>(p + ldx);
      const Four e = *reinterpret_cast<const Four*>(p + 2 * ldx);
      const Four f = *reinterpret_cast<const Four*>(p + 3 * ldx);
      const Four low = STEIN_SHUFFLE(a, b, 0, 4, 1, 5), low2 = STEIN_SHUFFLE(e, f, 0, 4, 1, 5);
      const Four high = STEIN_SHUFFLE(a, b, 2, 6, 3, 7), high2 = STEIN_SHUFFLE(e, f, 2, 6, 3, 7);
      *reinterpret_cast<Four*>(q) = STEIN_SHUFFLE(low, low2, 0, 1, 4, 5);
      *reinterpret_cast<Four*>(q + ldo) = STEIN_SHUFFLE(low, low2, 2, 3, 6, 7);
      *reinterpret_cast<Four*>(q + 2 * ldo) = STEIN_SHUFFLE(high, high2, 0, 1, 4, 5);
      *reinterpret_cast<Four*>(q + 3 * ldo) = STEIN_SHUFFLE(high, high2, 2, 3, 6, 7);
    }
    for (; c < columns; ++c)
      for (Index i = r; i < r + 4; ++i) out[c * ldo + i] = x[i * ldx + c];
  }
  for (; r < rows; ++r)
    for (Index c = 0; c < columns; ++c) out[c * ldo + r] = x[r * ldx + c];
}

template <class T>
void radial(Index rows, Index lanes, T* tile, Index ld, const T* weight, T scale,
            double* column_sum) {
  using S = Simd<T>;
  for (Index l = 0; l + S::W <= lanes; l += S::W) {
    typename S::V sum = {};
    T* p = tile + l;
    for (Index r = 0; r < rows; ++r, p += ld) {
      typename S::V value = exp_nonpositive<T, typename S::V, typename S::I>(load(p) * scale);
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
      for (Index l = 0; l < n; ++l) out[l] = factor * (tile[l] + m * (y[l] - centre[l]) + o * g[l]);
    } else {
      for (Index l = 0; l < n; ++l) out[l] = factor * (tile[l] + m * (y[l] - centre[l]));
    }
  }
}

template <class T>
void subtract(Index rows, Index n, Index lanes, const T* x, Index ld, const T* centre, T* out,
              Index ldo) {
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
    total += lane_total<T>(sum);
  }
  for (; l < n; ++l) total += static_cast<double>(a[l] - (centre ? centre[l] : T{0})) * b[l];
  return total;
}

template <class T>
void combine(Index n, T a, const T* x, T b, const T* y, T p, const T* u, T q, const T* v, T* out) {
  if (u && v) {
    for (Index l = 0; l < n; ++l) out[l] = a * x[l] + b * y[l] + p * u[l] + q * v[l];
  } else {
    for (Index l = 0; l < n; ++l) out[l] = a * x[l] + b * y[l];
  }
}

template <class T>
bool all_finite(Index n, const T* values) {
  using S = Simd<T>;
  typename S::V sum = {};  // stays 0 unless a term is NaN or infinite
  Index i = 0;
  for (; i + S::W <= n; i += S::W) sum += load(values + i) * T{0};
  T total = lane_total<T>(sum);
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

// The sum of all lanes, by halves; below 2^31, as every count here is.
template <class T>
STEIN_INLINE Index lane_sum(typename Simd<T>::I v) {
  typename Simd<T>::Integer lanes[Simd<T>::W];
  __builtin_memcpy(lanes, &v, sizeof(v));
#pragma GCC unroll 8
  for (int half = Simd<T>::W / 2; half > 0; half /= 2)
#pragma GCC unroll 16
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  return lanes[0];
}

// On bits, as those of a value that is not negative order as the value.
template <class T>
T largest(Index rows, Index n, const T* x, Index ldx, const T* centre) {
  using S = Simd<T>;
  using Integer = typename S::Integer;
  const T infinity = std::numeric_limits<T>::infinity();
  Integer limit, most = 0;
  __builtin_memcpy(&limit, &infinity, sizeof(limit));
  constexpr Integer kSign = std::numeric_limits<Integer>::max();
  typename S::I lanes = {};
  for (Index r = 0; r < rows; ++r, x += ldx) {
    Index l = 0;
    for (; l + S::W <= n; l += S::W) {
      typename S::V apart = load(x + l);
      if (centre) apart -= load(centre + l);
      typename S::I bits;
      __builtin_memcpy(&bits, &apart, sizeof(bits));
      bits = bits & kSign;
      bits = bits < limit ? bits : typename S::I{};
      lanes = lanes < bits ? bits : lanes;
    }
    for (; l < n; ++l) {
      const T apart = x[l] - (centre ? centre[l] : T{0});
      Integer bits;
      __builtin_memcpy(&bits, &apart, sizeof(bits));
      bits &= kSign;
      if (bits < limit && most < bits) most = bits;
    }
  }
  for (int lane = 0; lane < S::W; ++lane) most = most < lanes[lane] ? lanes[lane] : most;
  T result;
  __builtin_memcpy(&result, &most, sizeof(result));
  return result;
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

// The least of n bits that is not below `from`.
template <class T>
typename Simd<T>::Integer least_from(Index n, const T* values, typename Simd<T>::Integer from) {
  using S = Simd<T>;
  constexpr auto kNone = std::numeric_limits<typename S::Integer>::max();
  typename S::I least = typename S::I{} + kNone;
  for (Index i = 0; i < n; i += S::W) {
    const typename S::I bits = load_bits(values + i);
    const typename S::I inside = bits < from ? typename S::I{} + kNone : bits;
    least = inside < least ? inside : least;
  }
  auto result = kNone;
  for (int lane = 0; lane < S::W; ++lane) result = least[lane] < result ? least[lane] : result;
  return result;
}

// Selection on bits: those of a value that is not negative order as the value. The bracket [low,
// high) shrinks by interpolating the rank and by halving in turn, until one value is in it: 5
// counts for 190 values, where halving alone needs 25.
template <class T>
T select(Index n, const T* values, Index rank, T* next) {
  using S = Simd<T>;
  using Integer = typename S::Integer;
  using Bits = typename TileOps<T>::Bits;
  const Index whole = (n + kMaxWidth - 1) / kMaxWidth * kMaxWidth;
  Integer low = least_from(whole, values, Integer{0}), high;
  const T infinity = std::numeric_limits<T>::infinity();
  __builtin_memcpy(&high, &infinity, sizeof(high));
  ++high;
  Index below_low = 0, below_high = whole;
  for (bool halve = true; high - low > 1 && below_high - below_low > 1; halve = !halve) {
    const double share = halve ? 0.5 : (rank - below_low + 0.5) / (below_high - below_low);
    const Integer step = static_cast<Integer>(share * static_cast<double>(high - low));
    const Integer last = high - low - 1;
    const Integer middle = low + (step < 1 ? 1 : step > last ? last : step);
    const Index below = count_below(whole, values, static_cast<Bits>(middle));
    if (below <= rank) {
      low = middle;
      below_low = below;
    } else {
      high = middle;
      below_high = below;
    }
  }
  const Integer found = least_from(whole, values, low);
  const Integer after = rank + 1 < below_high ? found : least_from(whole, values, high);
  T result;
  __builtin_memcpy(&result, &found, sizeof(result));
  __builtin_memcpy(next, &after, sizeof(result));
  return result;
}

template <class T>
Index collect(Index n, const T* values, typename TileOps<T>::Bits low,
              typename TileOps<T>::Bits high, Index* below, T* out) {
  using S = Simd<T>;
  const auto lower = static_cast<typename S::Integer>(low),
             upper = static_cast<typename S::Integer>(high);
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
