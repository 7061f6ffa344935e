// Test only: the 16-bit IEEE float, as storage.
#pragma once

#include "cuda_runtime.h"

struct __half {
  uint16_t bits;
};
using half = __half;

inline float __half2float(__half v) {
  const int exponent = v.bits >> 10 & 31, fraction = v.bits & 1023;
  float value = 0;
  if (exponent == 31) {
    value =
        fraction ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
  } else {
    value = exponent ? std::ldexp(float(1024 + fraction), exponent - 25)
                     : std::ldexp(float(fraction), -24);
  }
  return v.bits >> 15 ? -value : value;
}
inline __half __float2half(float v) {
  const uint16_t sign = uint16_t(shim_bits<uint32_t>(v) >> 16 & 0x8000);
  if (v != v) return {uint16_t(sign | 0x7e00)};
  const float size = std::fabs(v);
  if (size >= 65520.0f) return {uint16_t(sign | 0x7c00)};
  int exponent = 0;
  std::frexp(size, &exponent);  // size = f * 2^exponent, f in [0.5, 1)
  exponent = exponent < -13 || size == 0 ? -13 : exponent;
  // Ties to even by nearbyint; a fraction that rounds up to 2048 carries into the exponent.
  const int fraction = int(std::nearbyint(std::ldexp(size, 11 - exponent)));
  return {uint16_t(sign | (((exponent + 13) << 10) + fraction))};
}
inline __half __float2half_rn(float v) { return __float2half(v); }
