// Batches of small sets: how a group of warps holds one set on chip. What both kernels share.
//
// Shared memory of a set: the upper triangle of an M x M matrix in tiles of 4 x 4, row after row, a
// tile's 16 values in a row; the mean of the set; three vectors of M; and a stage through which
// features pass. A thread computes whole tiles. Products of the matrix with rows of d features run
// the other way: a warp takes targets four at a time, its lanes take features, and every tile is
// read by broadcast.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "platform.cuh"
#include "small_set.h"

namespace stein {

// The one place where the half types are widened.
__device__ __forceinline__ float wide(float value) { return value; }
__device__ __forceinline__ double wide(double value) { return value; }
__device__ __forceinline__ float wide(__half value) { return __half2float(value); }
__device__ __forceinline__ float wide(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ void narrow(float value, float* to) { *to = value; }
__device__ __forceinline__ void narrow(double value, double* to) { *to = value; }
__device__ __forceinline__ void narrow(float value, __half* to) { *to = __float2half_rn(value); }
__device__ __forceinline__ void narrow(float value, __nv_bfloat16* to) {
  *to = __float2bfloat16_rn(value);
}
__device__ __forceinline__ float exponential_of(float x) { return expf(x); }
__device__ __forceinline__ double exponential_of(double x) { return exp(x); }

template <class T>
struct __align__(16) Quad {
  T v[4];
};

template <class T>
__device__ __forceinline__ void read4(T (&to)[4], const T* from) {
  const Quad<T> quad = *reinterpret_cast<const Quad<T>*>(from);
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = quad.v[i];
}

template <class T>
__device__ __forceinline__ void read_tile(T (&to)[4][4], const T* from) {
#pragma unroll
  for (int i = 0; i < 4; ++i) read4(to[i], from + 4 * i);
}

template <class T>
__device__ __forceinline__ void write_tile(T* to, const T (&from)[4][4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    Quad<T> quad;
#pragma unroll
    for (int j = 0; j < 4; ++j) quad.v[j] = from[i][j];
    *reinterpret_cast<Quad<T>*>(to + 4 * i) = quad;
  }
}

// Sizes of the arrays of a set, in elements of T. The same on host and device.
template <class T>
struct Layout {
  int particles, features, blocks, line, stage;  // line: of a staged feature

  __host__ __device__ Layout(int m, int d, int stage_)
      : particles(m), features(d), blocks((m + 3) / 4), line(4 * (blocks | 1)), stage(stage_) {}

  __host__ __device__ int tiles() const { return blocks * (blocks + 1) / 2; }
  __host__ __device__ int padded() const { return 4 * blocks; }
  __host__ __device__ int mean() const { return 16 * tiles(); }
  __host__ __device__ int vectors() const { return mean() + (features + 3) / 4 * 4; }
  __host__ __device__ int staged() const { return vectors() + 3 * padded(); }
  __host__ __device__ int size() const { return staged() + stage; }
};

// WARPS warps hold a set, SETS sets make a block; a warp has up to BLOCKS groups of four targets,
// a lane LANE_FEATURES features at a time.
template <class T_, class User_, int WARPS, int BLOCKS, int LANE_FEATURES, int SETS>
struct Group {
  using T = T_;
  using User = User_;
  static constexpr int kWarps = WARPS, kBlocks = BLOCKS, kLaneFeatures = LANE_FEATURES;
  static constexpr int kThreads = 32 * WARPS, kSets = SETS;
  static constexpr int kFeatures = 32 * LANE_FEATURES;  // of a product at a time
  static constexpr int kMost = 4 * WARPS * BLOCKS;      // particles
  static_assert(WARPS == 1 || SETS == 1, "a barrier is of a warp or of a block");

  Layout<T> layout;
  T* shared;   // of this set
  T* scratch;  // 32 values, for reductions
  int thread, warp, lane;

  __device__ Group(const Layout<T>& of, T* block) : layout(of) {
    const int set = static_cast<int>(threadIdx.x) / kThreads;
    thread = static_cast<int>(threadIdx.x) % kThreads;
    warp = thread / 32, lane = thread % 32;
    scratch = block + set * 32;
    shared = block + kSets * 32 + set * layout.size();
  }

  static std::size_t bytes(const Layout<T>& layout) {
    return sizeof(T) * kSets * static_cast<std::size_t>(32 + layout.size());
  }

  __device__ __forceinline__ T* triangle() const { return shared; }
  __device__ __forceinline__ T* mean() const { return shared + layout.mean(); }
  __device__ __forceinline__ T* weights() const { return shared + layout.vectors(); }
  __device__ __forceinline__ T* shifts() const { return weights() + layout.padded(); }
  __device__ __forceinline__ T* sums() const { return shifts() + layout.padded(); }
  __device__ __forceinline__ T* stage() const { return shared + layout.staged(); }

  __device__ __forceinline__ void sync() const {
    if constexpr (kWarps == 1) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }

  // Every thread of the group receives the reduction, in one order.
  template <class V, class Combine = Add>
  __device__ V reduce(V value, V identity, Combine combine = {}) const {
    static_assert(sizeof(V) <= sizeof(T), "scratch holds 32 values of T");
    value = warp_reduce(value, combine);
    if constexpr (kWarps > 1) {
      V* values = reinterpret_cast<V*>(scratch);
      sync();
      if (lane == 0) values[warp] = value;
      sync();
      value = warp_reduce(lane < kWarps ? values[lane] : identity, combine);
    }
    return value;
  }

  // Where tile (a, b), a <= b, lies.
  __device__ __forceinline__ int tile(int a, int b) const {
    return a * (2 * layout.blocks - a - 1) / 2 + b;
  }

  // The inverse; the root is off by at most one.
  __device__ __forceinline__ void place(int index, int& a, int& b) const {
    const int n = 2 * layout.blocks + 1;
    a = static_cast<int>((static_cast<float>(n) - sqrtf(static_cast<float>(n * n - 8 * index))) /
                         2);
    a = a < 0 ? 0 : a;
    if (tile(a, a) > index) --a;
    if (tile(a + 1, a + 1) <= index) ++a;
    b = index - tile(a, a) + a;
  }
};

// Calls visit(i, f) for rows i < rows and features f < features, neighbouring threads taking
// neighbouring features, without a division for every element.
template <class G, class Visit>
__device__ __forceinline__ void each_element(const G& g, int rows, int features,
                                             const Visit& visit) {
  int i = g.thread / features, f = g.thread % features;
  const int row_step = G::kThreads / features, step = G::kThreads % features;
  while (i < rows) {
    visit(i, f);
    i += row_step, f += step;
    if (f >= features) f -= features, ++i;
  }
}

// Brings features [first, first + count) of the set to `to`, feature-major.
template <class G>
__device__ __forceinline__ void copy_in(const G& g, typename G::T* to, const typename G::User* from,
                                        int first, int count) {
  const int d = g.layout.features, line = g.layout.line;
  each_element(g, g.layout.particles, count, [&](int i, int f) {
    const typename G::User* value = from + static_cast<Index>(i) * d + first + f;
    if constexpr (std::is_same<typename G::T, typename G::User>::value) {
      __pipeline_memcpy_async(to + f * line + i, value, sizeof(*value));
    } else {
      to[f * line + i] = wide(*value);
    }
  });
}

// Squared distances of all pairs, by differences: finish(a, b, tile, where it belongs) for every
// tile of the triangle. Where tiles are few, neighbouring lanes share one and split its features.
template <class G, class Finish>
__device__ __forceinline__ void squared_distances(const G& g, const typename G::User* x,
                                                  const Finish& finish) {
  using T = typename G::T;
  const int d = g.layout.features, line = g.layout.line, tiles = g.layout.tiles();
  const int chunk = min(d, g.layout.stage / (2 * line)), chunks = (d + chunk - 1) / chunk;
  int parts = 1;
  while (parts < 32 && 2 * parts * tiles <= G::kThreads) parts *= 2;
  const int part = g.thread % parts, count = G::kThreads / parts;
  const auto load = [&](int c) {
    copy_in(g, g.stage() + c % 2 * chunk * line, x, c * chunk, min(chunk, d - c * chunk));
    __pipeline_commit();
  };
  for (int first = 0; first < tiles; first += count) {
    const int own = first + g.thread / parts, index = min(own, tiles - 1);
    int a, b;
    g.place(index, a, b);
    T sum[4][4] = {};
    load(0);
    for (int c = 0; c < chunks; ++c) {
      if (c + 1 < chunks) {
        load(c + 1);
        __pipeline_wait_prior(1);
      } else {
        __pipeline_wait_prior(0);
      }
      g.sync();
      const T* values = g.stage() + c % 2 * chunk * line;
      for (int f = part; f < min(chunk, d - c * chunk); f += parts) {
        T xa[4], xb[4];
        read4(xa, values + f * line + 4 * a);
        read4(xb, values + f * line + 4 * b);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const T difference = xa[i] - xb[j];
            sum[i][j] += difference * difference;
          }
        }
      }
      g.sync();
    }
    for (int step = parts / 2; step > 0; step /= 2) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] += __shfl_xor_sync(kAllLanes, sum[i][j], step);
      }
    }
    if (own < tiles && part == 0) finish(a, b, sum, g.triangle() + 16 * own);
  }
}

// Source weights, zero in the padding.
template <class G>
__device__ __forceinline__ void load_weights(const G& g, const typename G::User* w, bool weighted,
                                             typename G::T uniform) {
  for (int i = g.thread; i < g.layout.padded(); i += G::kThreads) {
    g.weights()[i] = i >= g.layout.particles ? 0 : weighted ? wide(w[i]) : uniform;
  }
}

// The mean of the set, by features.
template <class G>
__device__ __forceinline__ void load_mean(const G& g, const typename G::User* x) {
  using T = typename G::T;
  const int d = g.layout.features, m = g.layout.particles;
  for (int first = 0; first < d; first += 32) {
    const int f = first + g.lane;
    T sum = 0;
    for (int i = g.warp; i < m && f < d; i += G::kWarps) {
      sum += wide(x[static_cast<Index>(i) * d + f]);
    }
    g.stage()[g.thread] = sum;
    g.sync();
    if (g.warp == 0 && f < d) {
      for (int other = 1; other < G::kWarps; ++other) sum += g.stage()[32 * other + g.lane];
      g.mean()[f] = sum / static_cast<T>(m);
    }
    g.sync();
  }
}

// The block of targets of this warp's k-th turn, and whether there is one.
template <class G>
__device__ __forceinline__ int targets_of(const G& g, int k) {
  return g.warp + k * G::kWarps;
}

// sums[j][l] += sum over the sources of a tile of e(i, j) u[i][l]; a tile below the diagonal is the
// one above, transposed.
template <bool transposed, class T, int L>
__device__ __forceinline__ void accumulate(const T (&e)[4][4], const T (&u)[4][L],
                                           T (&sums)[4][L]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int l = 0; l < L; ++l) sums[j][l] += (transposed ? e[j][i] : e[i][j]) * u[i][l];
    }
  }
}

// sums[k][j][l] = sum over sources i of matrix(i, target j of block k) row_i[feature], where
// row(i, f, l) is the source's value at feature f = first + lane + 32 l, below d.
template <class G, class Row>
__device__ __forceinline__ void product(const G& g, int first, const Row& row,
                                        typename G::T (&sums)[G::kBlocks][4][G::kLaneFeatures]) {
  using T = typename G::T;
  const int padded = g.layout.padded(), blocks = g.layout.blocks, m = g.layout.particles;
  const int room = g.layout.stage / G::kFeatures / 4 * 4;
  for (int start = 0; start < padded; start += room) {
    const int end = min(start + room, padded);
    g.sync();
    for (int i = start + g.warp; i < end; i += G::kWarps) {
#pragma unroll
      for (int l = 0; l < G::kLaneFeatures; ++l) {
        const int f = first + g.lane + 32 * l;
        g.stage()[(i - start) * G::kFeatures + g.lane + 32 * l] =
            i < m && f < g.layout.features ? row(i, f) : T(0);
      }
    }
    g.sync();
    for (int s = start / 4; s < end / 4; ++s) {
      T u[4][G::kLaneFeatures];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int l = 0; l < G::kLaneFeatures; ++l) {
          u[i][l] = g.stage()[(4 * s + i - start) * G::kFeatures + g.lane + 32 * l];
        }
      }
#pragma unroll
      for (int k = 0; k < G::kBlocks; ++k) {
        const int t = targets_of(g, k);
        if (t >= blocks) continue;
        T e[4][4];
        if (s <= t) {
          read_tile(e, g.triangle() + 16 * g.tile(s, t));
          accumulate<false>(e, u, sums[k]);
        } else {
          read_tile(e, g.triangle() + 16 * g.tile(t, s));
          accumulate<true>(e, u, sums[k]);
        }
      }
    }
  }
}

// g.sums()[j] = sum over sources i of matrix(i, j) vector(i), for the targets of this warp alone.
template <class G, class Vector>
__device__ __forceinline__ void row_sums(const G& g, const Vector& vector) {
  using T = typename G::T;
  for (int t = g.warp; t < g.layout.blocks; t += G::kWarps) {
    T sums[4] = {};
    for (int s = g.lane; s < g.layout.blocks; s += 32) {
      T e[4][4];
      read_tile(e, g.triangle() + 16 * (s <= t ? g.tile(s, t) : g.tile(t, s)));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[j] += (s <= t ? e[i][j] : e[j][i]) * vector(4 * s + i);
      }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const T sum = warp_reduce(sums[j]);
      if (g.lane == 0) g.sums()[4 * t + j] = sum;
    }
  }
  __syncwarp();
}

}  // namespace stein
