// Tile primitives for the instruction set that torch calls AVX512.
#include <cstdint>
#include <limits>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__x86_64__) || defined(_M_X64)
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif
#define STEIN_ISA avx512
#define STEIN_ISA_NAME "AVX512"
#define STEIN_VECTOR_BYTES 64
#define STEIN_ROWS 6  // rows x columns of vectors held in registers by a product
#define STEIN_COLUMNS 4
#include "tile_impl.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
