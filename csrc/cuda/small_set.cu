// The direction of small sets in one launch: distances, exact median, bandwidth, field.
//   phi_j = sum_i w_i k_ij [g_i + c (x_j - x_i)], k = exp(-r2/h), c = 2/h
// The pair (i, i) is added apart: its kernel value is exactly 1.
#include "small_set.h"

#include <limits>

#include "small_set_launch.cuh"
#include "small_set_select.cuh"

namespace stein {
namespace {

constexpr int kDirect = 16;  // features up to which the field is summed over differences

template <class T>
constexpr T kLeast = T(100) * std::numeric_limits<T>::min();  // of a bandwidth by a rule

template <class T, class User>
struct Forward {
  const User *x, *grad, *w;
  T* h;
  User* phi;
  Index batch;
  bool weighted, leave_one_out;
  int rule;
  T scale, uniform;
};

// Squared distances of the pairs i < j, kNone elsewhere; whether every coordinate is finite.
template <class G>
__device__ bool store_distances(const G& g, const typename G::User* x) {
  using T = typename G::T;
  const int m = g.layout.particles;
  const T none = BitsOf<T>::value(BitsOf<T>::kNone);
  unsigned bad = 0;
  squared_distances(g, x, [&](int a, int b, T(&sum)[4][4], T* to) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        // x - x is NaN for a coordinate that is not finite, and 0 for one that is.
        if (a == b && i == j && 4 * a + i < m && sum[i][j] != 0) bad = 1;
        const bool pair = 4 * a + i < 4 * b + j && 4 * b + j < m;
        if (!pair || sum[i][j] != sum[i][j]) sum[i][j] = none;
      }
    }
    write_tile(to, sum);
  });
  bad = g.reduce(bad, 0u, Most{});
  g.sync();  // before other threads' distances are read
  return bad == 0;
}

// Distances become kernel values, 0 where there is no pair; tiles of the diagonal are completed.
template <class G>
__device__ void distances_to_kernel(const G& g, typename G::T h) {
  using T = typename G::T;
  const T minus = -1 / h;
  for (int index = g.thread; index < g.layout.tiles(); index += G::kThreads) {
    int a, b;
    g.place(index, a, b);
    T e[4][4];
    read_tile(e, g.triangle() + 16 * index);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const bool pair = 4 * a + i < 4 * b + j && 4 * b + j < g.layout.particles;
        // Sets that are not finite go on with NaN: the places of their pairs hold it already.
        e[i][j] = pair ? exponential_of(e[i][j] * minus) : T(0);
      }
    }
    if (a == b) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < i; ++j) e[i][j] = e[j][i];
      }
    }
    write_tile(g.triangle() + 16 * index, e);
  }
}

// Four sums over a warp by six shuffles: lane / 8 % 4 says whose sum a lane has, its bits swapped.
template <class T>
__device__ __forceinline__ T reduce_four(const T (&sums)[4], int lane, int& which) {
  const bool high = lane & 16, middle = lane & 8;
  const T a = (high ? sums[2] : sums[0]) + __shfl_xor_sync(kAllLanes, high ? sums[0] : sums[2], 16);
  const T b = (high ? sums[3] : sums[1]) + __shfl_xor_sync(kAllLanes, high ? sums[1] : sums[3], 16);
  T sum = (middle ? b : a) + __shfl_xor_sync(kAllLanes, middle ? a : b, 8);
  sum = warp_reduce<8>(sum);
  which = (high ? 2 : 0) + (middle ? 1 : 0);
  return sum;
}

// Few features: a warp takes four targets, its lanes sources, and sums over differences.
template <class G>
__device__ void field_of_differences(const G& g, const Forward<typename G::T, typename G::User>& a,
                                     Index offset, typename G::T c, typename G::T own) {
  using T = typename G::T;
  constexpr int kTurns = (G::kWarps * G::kBlocks + 31) / 32;  // tiles of sources to a lane
  const int d = g.layout.features, line = g.layout.line, m = g.layout.particles;
  const int chunk = min(d, g.layout.stage / (2 * line));
  T *x = g.stage(), *score = g.stage() + chunk * line;
  for (int first = 0; first < d; first += chunk) {
    const int count = min(chunk, d - first);
    g.sync();
    for (int i = g.thread; i < chunk * line * 2; i += G::kThreads) g.stage()[i] = 0;
    g.sync();
    copy_in(g, x, a.x + offset, first, count);
    copy_in(g, score, a.grad + offset, first, count);
    __pipeline_commit();
    __pipeline_wait_prior(0);
    g.sync();
    for (int t = g.warp; t < g.layout.blocks; t += G::kWarps) {
      T e[kTurns][4][4];
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn) {
        const int s = g.lane + 32 * turn;
        if (s < g.layout.blocks) {
          T tile[4][4];
          read_tile(tile, g.triangle() + 16 * (s <= t ? g.tile(s, t) : g.tile(t, s)));
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const T weight = g.weights()[4 * s + i];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              e[turn][i][j] = weight * (s <= t ? tile[i][j] : tile[j][i]);
            }
          }
        }
      }
      for (int f = 0; f < count; ++f) {
        T sums[4] = {}, target[4];
        read4(target, x + f * line + 4 * t);
#pragma unroll
        for (int turn = 0; turn < kTurns; ++turn) {
          const int s = g.lane + 32 * turn;
          if (s < g.layout.blocks) {
            T source[4], drive[4];
            read4(source, x + f * line + 4 * s);
            read4(drive, score + f * line + 4 * s);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
#pragma unroll
              for (int j = 0; j < 4; ++j) {
                sums[j] += e[turn][i][j] * (drive[i] + c * (target[j] - source[i]));
              }
            }
          }
        }
        int which;
        const T sum = reduce_four(sums, g.lane, which);
        const int j = 4 * t + which;
        if (g.lane % 8 == 0 && j < m) {
          const T value = sum + own * g.weights()[j] * score[f * line + j];
          narrow(value, a.phi + offset + static_cast<Index>(j) * d + first + f);
        }
      }
    }
  }
}

// Many features: products with g - c x on coordinates centred on the mean of the set.
template <class G>
__device__ void field_of_products(const G& g, const Forward<typename G::T, typename G::User>& a,
                                  Index offset, typename G::T c, typename G::T own) {
  using T = typename G::T;
  const int d = g.layout.features, m = g.layout.particles;
  row_sums(g, [&](int i) { return c * g.weights()[i]; });
  for (int first = 0; first < d; first += G::kFeatures) {
    T sums[G::kBlocks][4][G::kLaneFeatures] = {};
    const auto drive = [&](int i, int f) {
      const Index at = offset + static_cast<Index>(i) * d + f;
      return g.weights()[i] * (wide(a.grad[at]) - c * (wide(a.x[at]) - g.mean()[f]));
    };
    product(g, first, drive, sums);
#pragma unroll
    for (int k = 0; k < G::kBlocks; ++k) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int target = 4 * targets_of(g, k) + j;
#pragma unroll
        for (int l = 0; l < G::kLaneFeatures; ++l) {
          const int f = first + g.lane + 32 * l;
          if (target >= m || f >= d) continue;
          const Index at = offset + static_cast<Index>(target) * d + f;
          const T value = sums[k][j][l] + g.sums()[target] * (wide(a.x[at]) - g.mean()[f]) +
                          own * g.weights()[target] * wide(a.grad[at]);
          narrow(value, a.phi + at);
        }
      }
    }
  }
}

template <class G>
__global__ void __launch_bounds__(G::kThreads* G::kSets, 1)
    small_set_kernel(Forward<typename G::T, typename G::User> a, Layout<typename G::T> layout) {
  using T = typename G::T;
  const G g(layout, dynamic_shared<T>());
  const Index set = static_cast<Index>(blockIdx.x) * G::kSets + threadIdx.x / G::kThreads;
  if (set >= a.batch) return;  // the group is a warp: no barrier waits for it
  const int m = layout.particles, d = layout.features;
  const Index offset = set * m * d;
  load_weights(g, a.w + (a.weighted ? set * m : 0), a.weighted, a.uniform);
  const bool finite = store_distances(g, a.x + offset);
  const T nan = BitsOf<T>::value(BitsOf<T>::kNone);
  T h = nan;
  if (a.rule < 0) {
    h = a.h[set];
  } else if (finite) {
    const T median = median_of_set(g);
    h = a.rule == 1 ? median : median * median * a.scale;
    h = h < kLeast<T> ? kLeast<T> : h;  // NaN stays NaN
  }
  g.sync();  // the distances are read here and overwritten below
  if (a.rule >= 0 && g.thread == 0) a.h[set] = h;
  distances_to_kernel(g, h);
  // Without a finite set or bandwidth the own pair is NaN, and with it the whole direction.
  const T own = finite && h == h ? (a.leave_one_out ? T(0) : T(1)) : nan;
  if (d <= kDirect) {
    field_of_differences(g, a, offset, 2 / h, own);
  } else {
    load_mean(g, a.x + offset);
    field_of_products(g, a, offset, 2 / h, own);
  }
}

}  // namespace

bool small_set_fits(Scalar scalar, int particles, int features) {
  if (particles < 1 || features < 1) return false;
  return with_types(scalar, [&](auto t, auto user) {
    return with_group<decltype(t), decltype(user)>(
        particles, features, [](auto*, const auto& layout) { return layout.stage > 0; });
  });
}

cudaError_t small_set(Scalar scalar, const SmallSetArguments& a, cudaStream_t stream) {
  return with_types(scalar, [&](auto t, auto user) {
    using T = decltype(t);
    using User = decltype(user);
    const auto in = [](const void* pointer) { return static_cast<const User*>(pointer); };
    const Forward<T, User> arguments = {
        in(a.x),
        in(a.grad),
        in(a.w),
        static_cast<T*>(a.h),
        static_cast<User*>(a.phi),
        a.batch,
        a.weighted,
        a.leave_one_out,
        a.rule,
        static_cast<T>(a.scale),
        static_cast<T>(a.uniform),
    };
    return with_group<T, User>(a.particles, a.features, [&](auto* group, const auto& layout) {
      using G = std::remove_pointer_t<decltype(group)>;
      if (layout.stage == 0) return cudaErrorInvalidConfiguration;
      return launch(small_set_kernel<G>, cdiv(a.batch, G::kSets), dim3(G::kThreads * G::kSets),
                    G::bytes(layout), stream, arguments, layout);
    });
  });
}

}  // namespace stein
