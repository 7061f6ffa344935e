// Test only: the 16-bit brain float, as storage.
#pragma once

#include "cuda_runtime.h"

struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 v) { return shim_bits<float>(uint32_t(v.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16(float v) {
  const uint32_t bits = shim_bits<uint32_t>(v);
  if (v != v) return {uint16_t(0x7fff)};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return __float2bfloat16(v); }
