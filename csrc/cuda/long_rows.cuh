// What the kernels on long rows share: tiles of rows by asynchronous copies, widening, sums.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "long_rows.h"
#include "platform.cuh"

namespace stein {
namespace long_rows {

constexpr int kThreads = 256;
constexpr int kSide = 16;  // threads along either side of a tile

// The one place where the half types are widened.
__device__ __forceinline__ float wide(float value) { return value; }
__device__ __forceinline__ double wide(double value) { return value; }
__device__ __forceinline__ float wide(__half value) { return __half2float(value); }
__device__ __forceinline__ float wide(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ void narrow(float value, float& to) { to = value; }
__device__ __forceinline__ void narrow(double value, double& to) { to = value; }
__device__ __forceinline__ void narrow(float value, __half& to) { to = __float2half_rn(value); }
__device__ __forceinline__ void narrow(float value, __nv_bfloat16& to) {
  to = __float2bfloat16_rn(value);
}

__device__ __forceinline__ float root(float x) { return sqrtf(x); }
__device__ __forceinline__ double root(double x) { return sqrt(x); }

template <class T, int n>
struct __align__(sizeof(T) * n < 16 ? sizeof(T) * n : 16) Pack {
  T v[n];
};

template <class T, int n>
__device__ __forceinline__ void read(T (&to)[n], const T* from) {
  const Pack<T, n> pack = *reinterpret_cast<const Pack<T, n>*>(from);
#pragma unroll
  for (int i = 0; i < n; ++i) to[i] = pack.v[i];
}

// Four features of a row of which `left` are there; in one access where the row is aligned.
template <class T, class User>
__device__ __forceinline__ void load(T (&to)[4], const User* from, Index left, bool aligned) {
  User raw[4] = {};
  if (aligned && left >= 4) {
    read(raw, from);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < left) raw[i] = from[i];
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = wide(raw[i]);
}

template <class T, class User>
__device__ __forceinline__ void store(User* to, const T (&from)[4], Index left, bool aligned) {
  Pack<User, 4> raw;
#pragma unroll
  for (int i = 0; i < 4; ++i) narrow(from[i], raw.v[i]);
  if (aligned && left >= 4) {
    *reinterpret_cast<Pack<User, 4>*>(to) = raw;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < left) to[i] = raw.v[i];
    }
  }
}

// A sum of parts. Where kCompensated it carries what the last addition lost (Kahan).
template <class T, bool kCompensated>
struct Total {
  T value = 0;
  __device__ __forceinline__ void operator+=(T term) { value += term; }
};

template <>
struct Total<float, true> {
  float value = 0, lost = 0;
  __device__ __forceinline__ void operator+=(float term) {
    const float rest = term - lost;
    const float next = value + rest;
    lost = (next - value) - rest;
    value = next;
  }
};

// A tile in global memory: where it begins, and how many rows and columns of it there are.
template <class User>
struct Source {
  const User* from;
  Index step, rows, columns;
};

template <int bytes, int lines, int width, class User>
__device__ __forceinline__ void copy_pieces(User* to, const Source<User>& source) {
  constexpr int kPiece = bytes / static_cast<int>(sizeof(User)), kPieces = width / kPiece;
  for (int piece = static_cast<int>(threadIdx.x); piece < lines * kPieces; piece += kThreads) {
    const int row = piece / kPieces, column = piece % kPieces * kPiece;
    const Index left = row < source.rows ? source.columns - column : 0;
    const int there = static_cast<int>(left < 0 ? 0 : left < kPiece ? left : kPiece);
    const User* from = there ? source.from + row * source.step + column : source.from;
    copy_async<bytes>(to + row * width + column, from, there * static_cast<int>(sizeof(User)));
  }
}

// Starts the copies of a tile, [row][column] with zeros where there is nothing.
template <int lines, int width, class User>
__device__ __forceinline__ void copy_tile(User* to, const Source<User>& source, Copy copy) {
  if (copy == Copy::kWide) {
    copy_pieces<16, lines, width>(to, source);
  } else if (sizeof(User) >= 4 || copy == Copy::kNarrow) {
    copy_pieces<(sizeof(User) > 4 ? sizeof(User) : 4), lines, width>(to, source);
  } else {
    for (int i = static_cast<int>(threadIdx.x); i < lines * width; i += kThreads) {
      const int row = i / width, column = i % width;
      User value = {};
      if (row < source.rows && column < source.columns) {
        value = source.from[row * source.step + column];
      }
      to[i] = value;
    }
  }
}

// Where a set begins.
template <class User>
__device__ __forceinline__ User* begin(const LongRows& rows, Index set) {
  return static_cast<User*>(rows.data) + set * rows.total * rows.step;
}

// Calls run(a T, a User) for a user's type.
template <class Run>
auto with_types(Scalar scalar, const Run& run) {
  switch (scalar) {
    case Scalar::kDouble:
      return run(double(), double());
    case Scalar::kHalf:
      return run(float(), __half());
    case Scalar::kBFloat16:
      return run(float(), __nv_bfloat16());
    default:
      return run(float(), float());
  }
}

}  // namespace long_rows
}  // namespace stein
