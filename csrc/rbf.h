// The radial profile, written once: k(r2) = exp(-r2 / h).
//
// `exp_nonpositive` works on scalars and on compiler vectors (GCC and Clang vector extensions).
// Error: at most 1 unit in the last place more than the rounding of its argument; arguments below
// the smallest normal result give 0; NaN stays NaN.
#pragma once

#include <cstdint>

namespace stein {

template <class T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  using Integer = std::int32_t;
  static constexpr float kLowest = -87.33654f;  // log of the smallest normal number
  static constexpr float kLog2e = 1.44269504088896341f;
  static constexpr float kLn2High = 0.693359375f;  // 9 bits: n * kLn2High is exact
  static constexpr float kLn2Low = -2.12194440e-4f;
  static constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr int kMantissa = 23;
  static constexpr Integer kOne = 0x3f800000;
};

template <>
struct ExpConstants<double> {
  using Integer = std::int64_t;
  static constexpr double kLowest = -708.3964185322641;
  static constexpr double kLog2e = 1.4426950408889634074;
  static constexpr double kLn2High = 6.93145751953125e-1;
  static constexpr double kLn2Low = 1.42860682030941723212e-6;
  static constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int kMantissa = 52;
  static constexpr Integer kOne = 0x3ff0000000000000;
};

// exp(f) for |f| <= log(2)/2. Taylor coefficients; float: degree 7 (remainder 5e-9), double: 13
// (4e-18).
template <class V>
inline __attribute__((always_inline)) V exp_fraction(V f, float) {
  V p = f * 1.9841270e-4f + 1.3888889e-3f;
  p = p * f + 8.3333333e-3f;
  p = p * f + 4.1666667e-2f;
  p = p * f + 1.6666667e-1f;
  p = p * f + 0.5f;
  return p * (f * f) + f + 1.0f;
}

template <class V>
inline __attribute__((always_inline)) V exp_fraction(V f, double) {
  V p = f * 1.6059043836821613e-10 + 2.08767569878681e-9;
  p = p * f + 2.505210838544172e-8;
  p = p * f + 2.755731922398589e-7;
  p = p * f + 2.7557319223985893e-6;
  p = p * f + 2.48015873015873e-5;
  p = p * f + 1.984126984126984e-4;
  p = p * f + 1.388888888888889e-3;
  p = p * f + 8.333333333333333e-3;
  p = p * f + 4.1666666666666664e-2;
  p = p * f + 1.6666666666666666e-1;
  p = p * f + 0.5;
  return p * (f * f) + f + 1.0;
}

// exp(t), t <= 0. V is T or a vector of T, I the integer (vector) of the same width.
template <class T, class V, class I>
inline __attribute__((always_inline)) V exp_nonpositive(V t) {
  using C = ExpConstants<T>;
  const auto tiny = t < C::kLowest;
  const V clamped = tiny ? (V{} + C::kLowest) : t;
  const V rounded = clamped * C::kLog2e + C::kMagic;
  const V n = rounded - C::kMagic;
  const V fraction = (clamped - n * C::kLn2High) - n * C::kLn2Low;
  I bits;
  __builtin_memcpy(&bits, &rounded, sizeof(V));
  bits = (bits << C::kMantissa) + C::kOne;
  V power;
  __builtin_memcpy(&power, &bits, sizeof(V));
  const V value = exp_fraction(fraction, T{}) * power;
  return tiny ? V{} : value;
}

}  // namespace stein
