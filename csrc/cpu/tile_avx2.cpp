// Tile primitives for the instruction set that torch calls AVX2.
#include <cstdint>
#include <limits>
#include <type_traits>

#if defined(__x86_64__) || defined(_M_X64)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define STEIN_ISA avx2
#define STEIN_ISA_NAME "AVX2"
#define STEIN_VECTOR_BYTES 32
#define STEIN_ROWS 4  // rows x columns of vectors held in registers by a product
#define STEIN_COLUMNS 2
#include "tile_impl.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
