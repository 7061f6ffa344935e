// The pair functions of the tile primitives; included by tile_impl.h inside its namespace.
// Each walks its tile a vector of lanes at a time, so that the sums over rows stay in registers.

template <class T>
STEIN_INLINE typename Simd<T>::V lanes_or(const T* values, Index l, T fallback) {
  return values ? load(values + l) : typename Simd<T>::V{} + fallback;
}

template <class T>
STEIN_INLINE T row_or(const T* values, Index r, T fallback) {
  return values ? values[r] : fallback;
}

template <class T>
STEIN_INLINE void add_lanes(double* out, Index l, typename Simd<T>::V v) {
  if (out)
    for (int lane = 0; lane < Simd<T>::W; ++lane) out[l + lane] += v[lane];
}

template <class T>
STEIN_INLINE typename Simd<T>::V kernel_of(typename Simd<T>::V squared, T h) {
  using S = Simd<T>;
  return exp_nonpositive<T, typename S::V, typename S::I>(squared * (T{-1} / h));
}

// Pairs left out have an infinite distance and k = 0; a finite stand-in keeps 0 times it at 0.
template <class T>
STEIN_INLINE typename Simd<T>::V finite_square(typename Simd<T>::V squared) {
  return squared > std::numeric_limits<T>::max() ? typename Simd<T>::V{} : squared;
}

template <class T>
void direction_backward(const PairTile<T>& t) {
  using S = Simd<T>;
  using V = typename S::V;
  for (Index l = 0; l < t.lanes; l += S::W) {
    V sum = {}, mass = {}, weight = {}, spread = {};
    const V lane_weight = lanes_or(t.lane_weight, l, T{1});
    const V lane_shift = lanes_or(t.lane_shift, l, T{0}) * t.c;
    for (Index r = 0; r < t.rows; ++r) {
      const Index at = r * t.ld + l;
      const V squared = load(t.kernel + at);
      const V k = kernel_of<T>(squared, t.h);
      const T row_weight = row_or(t.row_weight, r, T{1});
      V s = {};
      if (t.p) s = (load(t.p + at) + lane_shift) * row_weight;
      if (t.q) {
        const V b = load(t.q + at) + t.c * row_or(t.row_shift, r, T{0});
        s += lane_weight * b;
        weight += k * b;
      }
      s = s * k;
      store(t.kernel + at, k);
      store((t.p ? t.p : t.q) + at, s);
      sum += s;
      mass += k * row_weight;
      spread += s * finite_square<T>(squared);
    }
    add_lanes<T>(t.sum, l, sum);
    add_lanes<T>(t.mass, l, mass);
    add_lanes<T>(t.weight, l, weight);
    add_lanes<T>(t.spread, l, spread);
  }
}

template <class T>
void lane_gradients(Index features, Index width, double c, const double* a, const double* b,
                    const T* x, Index ldx, const T* centre, const T* v, Index ldv,
                    const double* factors, T* dx, T* dg) {
  const double *first = factors, *of_x = first + width, *of_v = of_x + width,
               *second = of_v + width, *own = second + width;
  for (Index f = 0; f < features; ++f, a += width, x += ldx, v += ldv, dx += width) {
    const double middle = centre[f];
    if (!b) {
      for (Index l = 0; l < width; ++l)
        dx[l] = static_cast<T>(c * (first[l] * a[l] + of_x[l] * (x[l] - middle) + of_v[l] * v[l]));
      continue;
    }
    for (Index l = 0; l < width; ++l) {
      const double field = second[l] * b[l];
      dx[l] = static_cast<T>(
          c * (first[l] * a[l] + of_x[l] * (x[l] - middle) + of_v[l] * v[l] - field));
      dg[l] = static_cast<T>(field + own[l] * v[l]);
    }
    b += width, dg += width;
  }
}

template <class T>
STEIN_INLINE typename Simd<T>::V trace(typename Simd<T>::V squared, typename Simd<T>::V along, T c,
                                       T d) {
  return c * (d - c * finite_square<T>(squared) - along);
}

template <class T>
void divergence(const PairTile<T>& t) {
  using S = Simd<T>;
  using V = typename S::V;
  for (Index l = 0; l < t.lanes; l += S::W) {
    V sum = {};
    for (Index r = 0; r < t.rows; ++r) {
      const Index at = r * t.ld + l;
      const V squared = load(t.kernel + at);
      const V along = load(t.p + at) - row_or(t.row_shift, r, T{0});
      const V k = kernel_of<T>(squared, t.h) * row_or(t.row_weight, r, T{1});
      sum += k * trace<T>(squared, along, t.c, static_cast<T>(t.d));
    }
    add_lanes<T>(t.sum, l, sum);
  }
}

template <class T>
void divergence_backward(const PairTile<T>& t) {
  using S = Simd<T>;
  using V = typename S::V;
  const T inverse = T{1} / t.h, square = t.c * t.c, d = static_cast<T>(t.d);
  for (Index l = 0; l < t.lanes; l += S::W) {
    V sum = {}, mass = {}, weight = {}, spread = {};
    const V lane_weight = lanes_or(t.lane_weight, l, T{1});
    const V lane_shift = lanes_or(t.lane_shift, l, T{0});
    const V lane_cotangent = lanes_or(t.lane_cotangent, l, T{0});
    for (Index r = 0; r < t.rows; ++r) {
      const Index at = r * t.ld + l;
      const V squared = load(t.kernel + at);
      const V k = kernel_of<T>(squared, t.h);
      V radial = {};
      if (t.p) {
        const V along = load(t.p + at) - row_or(t.row_shift, r, T{0});
        const V a = lane_cotangent * k * row_or(t.row_weight, r, T{1});
        radial += a * (trace<T>(squared, along, t.c, d) * inverse + square);
        store(t.p + at, a);
      }
      if (t.q) {
        const V along = load(t.q + at) - lane_shift;
        const V b = k * row_or(t.row_cotangent, r, T{0});
        const V u = trace<T>(squared, along, t.c, d);
        radial += lane_weight * b * (u * inverse + square);
        store(t.q + at, b);
        mass += b;
        weight += b * u;
      }
      radial = radial * T{-2};
      store(t.kernel + at, radial);
      sum += radial;
      spread += radial * finite_square<T>(squared);
    }
    add_lanes<T>(t.sum, l, sum);
    add_lanes<T>(t.mass, l, mass);
    add_lanes<T>(t.weight, l, weight);
    add_lanes<T>(t.spread, l, spread);
  }
}
