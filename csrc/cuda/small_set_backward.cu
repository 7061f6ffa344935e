// The backward of the direction of small sets in one launch. With v_j the cotangent of phi_j,
// a_ij = (g_i - c x_i) . v_j + c x_j . v_j on centred coordinates and, for pairs i != j,
// S_ij = k_ij (w_i a_ij + w_j a_ji):
//   dg_i = w_i sum_j k_ij v_j                      (+ w_i v_i of the pair (i, i))
//   dw_i = sum_j k_ij a_ij                         (+ g_i . v_i)
//   dx_i = c [q_i - p_i],  p_i = sum_j S_ij (x_i - x_j),  q_i = v_i sum_j w_j k_ij - dg_i
//   h^2 dh = sum_i x_i . (p_i - 2 q_i)
// dw needs no a_ij: it is (g_i - c x_i) . sum_j k_ij v_j + c sum_j k_ij (x_j . v_j). So the
// triangle holds k, then S. Between the two, q waits in device memory, in `work` (B, M, d), where
// the thread that wrote it reads it.
#include "small_set.h"

#include "small_set_launch.cuh"

namespace stein {
namespace {

template <class T, class User>
struct Backward {
  const User *v, *x, *grad, *w;
  const T* h;
  T* work;
  User *dx, *dg, *dw;
  T* dh;
  Index batch;
  bool weighted, leave_one_out;
  T uniform;
};

// One set of a launch: the arguments from where it starts.
template <class G>
struct Set {
  using T = typename G::T;
  using User = typename G::User;
  const User *v, *x, *grad;
  T* work;
  User *dx, *dg, *dw;
  T c, own;  // own: the kernel of pair (i, i)

  __device__ Set(const Backward<T, User>& a, Index set, const Layout<T>& layout) {
    const Index offset = set * layout.particles * layout.features;
    v = a.v + offset, x = a.x + offset, grad = a.grad + offset, work = a.work + offset;
    dx = a.dx + offset, dg = a.dg + offset, dw = a.dw + (a.weighted ? set * layout.particles : 0);
    c = 2 / a.h[set], own = a.leave_one_out ? 0 : 1;
  }
  __device__ __forceinline__ T centred(const G& g, Index at, int f) const {
    return wide(x[at]) - g.mean()[f];
  }
};

// Kernel values of all pairs, complete on the diagonal.
template <class G>
__device__ void store_kernel(const G& g, const typename G::User* x, typename G::T h) {
  using T = typename G::T;
  const T minus = -1 / h;
  const int m = g.layout.particles;
  squared_distances(g, x, [&](int a, int b, T(&sum)[4][4], T* to) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const bool pair = 4 * a + i != 4 * b + j && 4 * a + i < m && 4 * b + j < m;
        sum[i][j] = pair ? exponential_of(sum[i][j] * minus) : T(0);
      }
    }
    write_tile(to, sum);
  });
}

// x_j . v_j into the shifts, by the warp of target j.
template <class G>
__device__ void store_shifts(const G& g, const Set<G>& s) {
  using T = typename G::T;
  const int d = g.layout.features, m = g.layout.particles;
  for (int i = g.warp; i < g.layout.padded(); i += G::kWarps) {
    T sum = 0;
    for (int f = g.lane; f < d && i < m; f += 32) {
      const Index at = static_cast<Index>(i) * d + f;
      sum += s.centred(g, at, f) * wide(s.v[at]);
    }
    sum = warp_reduce(sum);
    if (g.lane == 0) g.shifts()[i] = sum;
  }
}

// dg, q into `work` and dw. Returns this thread's part of -2 sum x . q.
template <class G>
__device__ typename G::T gradients_of_scores(const G& g, const Set<G>& s, bool weighted) {
  using T = typename G::T;
  const int d = g.layout.features, m = g.layout.particles;
  T slope[G::kBlocks][4] = {}, scaling = 0;
  row_sums(g, [&](int i) { return g.weights()[i]; });
  for (int first = 0; first < d; first += G::kFeatures) {
    T sums[G::kBlocks][4][G::kLaneFeatures] = {};
    product(g, first, [&](int i, int f) { return wide(s.v[static_cast<Index>(i) * d + f]); }, sums);
#pragma unroll
    for (int k = 0; k < G::kBlocks; ++k) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int i = 4 * targets_of(g, k) + j;
#pragma unroll
        for (int l = 0; l < G::kLaneFeatures; ++l) {
          const int f = first + g.lane + 32 * l;
          if (i >= m || f >= d) continue;
          const Index at = static_cast<Index>(i) * d + f;
          const T x = s.centred(g, at, f), score = wide(s.grad[at]), v = wide(s.v[at]);
          const T w = g.weights()[i], carried = w * sums[k][j][l], q = g.sums()[i] * v - carried;
          slope[k][j] += (score - s.c * x) * sums[k][j][l] + s.own * score * v;
          scaling -= 2 * x * q;
          s.work[at] = q;
          narrow(carried + s.own * w * v, s.dg + at);
        }
      }
    }
  }
  if (!weighted) return scaling;
  __syncwarp();  // the sums are read above and overwritten below
  row_sums(g, [&](int i) { return g.shifts()[i]; });
#pragma unroll
  for (int k = 0; k < G::kBlocks; ++k) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int i = 4 * targets_of(g, k) + j;
      const T sum = warp_reduce(slope[k][j]);
      if (g.lane == 0 && i < m) narrow(sum + s.c * g.sums()[i], s.dw + i);
    }
  }
  return scaling;
}

// The triangle of k becomes that of S.
template <class G>
__device__ void kernel_to_moves(const G& g, const Set<G>& s) {
  using T = typename G::T;
  const int d = g.layout.features, line = g.layout.line, tiles = g.layout.tiles();
  const int m = g.layout.particles, chunk = min(d, g.layout.stage / (2 * line));
  T *u = g.stage(), *v = g.stage() + chunk * line;
  for (int first_tile = 0; first_tile < tiles; first_tile += G::kThreads) {
    const int own = first_tile + g.thread, index = min(own, tiles - 1);
    int a, b;
    g.place(index, a, b);
    T ab[4][4] = {}, ba[4][4] = {};  // u_i . v_j and u_j . v_i
    for (int first = 0; first < d; first += chunk) {
      const int count = min(chunk, d - first);
      g.sync();
      each_element(g, g.layout.padded(), count, [&](int i, int f) {
        const Index at = static_cast<Index>(i) * d + first + f;
        u[f * line + i] = i < m ? wide(s.grad[at]) - s.c * s.centred(g, at, first + f) : T(0);
        v[f * line + i] = i < m ? wide(s.v[at]) : T(0);
      });
      g.sync();
      for (int f = 0; f < count; ++f) {
        T ua[4], ub[4], va[4], vb[4];
        read4(ua, u + f * line + 4 * a), read4(ub, u + f * line + 4 * b);
        read4(va, v + f * line + 4 * a), read4(vb, v + f * line + 4 * b);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            ab[i][j] += ua[i] * vb[j];
            ba[i][j] += ub[j] * va[i];
          }
        }
      }
    }
    if (own >= tiles) continue;
    T e[4][4], wa[4], wb[4], shift_a[4], shift_b[4];
    read_tile(e, g.triangle() + 16 * own);
    read4(wa, g.weights() + 4 * a), read4(wb, g.weights() + 4 * b);
    read4(shift_a, g.shifts() + 4 * a), read4(shift_b, g.shifts() + 4 * b);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        e[i][j] *= wa[i] * (ab[i][j] + s.c * shift_b[j]) + wb[j] * (ba[i][j] + s.c * shift_a[i]);
      }
    }
    write_tile(g.triangle() + 16 * own, e);
  }
}

// dx from S and q. Returns this thread's part of sum x . p.
template <class G>
__device__ typename G::T gradients_of_particles(const G& g, const Set<G>& s) {
  using T = typename G::T;
  const int d = g.layout.features, m = g.layout.particles;
  T scaling = 0;
  row_sums(g, [](int) { return T(1); });
  for (int first = 0; first < d; first += G::kFeatures) {
    T sums[G::kBlocks][4][G::kLaneFeatures] = {};
    const auto centred = [&](int i, int f) {
      return s.centred(g, static_cast<Index>(i) * d + f, f);
    };
    product(g, first, centred, sums);
#pragma unroll
    for (int k = 0; k < G::kBlocks; ++k) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int i = 4 * targets_of(g, k) + j;
#pragma unroll
        for (int l = 0; l < G::kLaneFeatures; ++l) {
          const int f = first + g.lane + 32 * l;
          if (i >= m || f >= d) continue;
          const Index at = static_cast<Index>(i) * d + f;
          const T x = s.centred(g, at, f), p = g.sums()[i] * x - sums[k][j][l];
          scaling += x * p;
          narrow(s.c * (s.work[at] - p), s.dx + at);
        }
      }
    }
  }
  return scaling;
}

template <class G>
__global__ void __launch_bounds__(G::kThreads* G::kSets, 1)
    small_set_backward_kernel(Backward<typename G::T, typename G::User> a,
                              Layout<typename G::T> layout) {
  using T = typename G::T;
  const G g(layout, dynamic_shared<T>());
  const Index set = static_cast<Index>(blockIdx.x) * G::kSets + threadIdx.x / G::kThreads;
  if (set >= a.batch) return;  // the group is a warp: no barrier waits for it
  const Set<G> s(a, set, layout);
  load_weights(g, a.w + (a.weighted ? set * layout.particles : 0), a.weighted, a.uniform);
  load_mean(g, s.x);
  store_kernel(g, s.x, a.h[set]);
  store_shifts(g, s);
  g.sync();
  T scaling = gradients_of_scores(g, s, a.weighted);
  g.sync();  // k has been read
  kernel_to_moves(g, s);
  g.sync();
  scaling += gradients_of_particles(g, s);
  scaling = g.reduce(scaling, T(0));
  if (g.thread == 0) a.dh[set] = scaling / a.h[set] / a.h[set];
}

}  // namespace

cudaError_t small_set_backward(Scalar scalar, const SmallSetBackwardArguments& a,
                               cudaStream_t stream) {
  return with_types(scalar, [&](auto t, auto user) {
    using T = decltype(t);
    using User = decltype(user);
    const auto in = [](const void* pointer) { return static_cast<const User*>(pointer); };
    const auto out = [](void* pointer) { return static_cast<User*>(pointer); };
    const Backward<T, User> arguments = {
        in(a.v),
        in(a.x),
        in(a.grad),
        in(a.w),
        static_cast<const T*>(a.h),
        static_cast<T*>(a.work),
        out(a.dx),
        out(a.dg),
        out(a.dw),
        static_cast<T*>(a.dh),
        a.batch,
        a.weighted,
        a.leave_one_out,
        static_cast<T>(a.uniform),
    };
    return with_group<T, User>(a.particles, a.features, [&](auto* group, const auto& layout) {
      using G = std::remove_pointer_t<decltype(group)>;
      if (layout.stage == 0) return cudaErrorInvalidConfiguration;
      return launch(small_set_backward_kernel<G>, cdiv(a.batch, G::kSets),
                    dim3(G::kThreads * G::kSets), G::bytes(layout), stream, arguments, layout);
    });
  });
}

}  // namespace stein
