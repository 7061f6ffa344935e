// out_j = sum_i coef_ij (g_i - c x_i) + c mass_j y_j + own_j g_j, x and y less a centre, or one
// step of Adam along it.
//
// A block takes 16 R targets and 64 features and walks over the sources, 32 at a time: x, grad and
// the coefficients stream through a ring of stages by asynchronous copies, g - c x is formed once
// and read by every target. The mean of the first 32 sources serves as the centre: any point inside
// the cloud does.
#include "long_rows.cuh"

namespace stein {
namespace {

using namespace long_rows;

constexpr int kFeatures = 64;
constexpr int kSources = 32;
constexpr int kMine = kFeatures / kSide;  // features of a thread

// How a stage lies in shared memory.
template <class T, class User, int R>
struct Tile {
  static constexpr int kTargets = kSide * R;
  static constexpr int kStages = sizeof(T) == 4 ? 3 : 2;
  static constexpr int kRows = kSources * kFeatures;  // of x, and of grad
  static constexpr int kCoef = kSources * kTargets;
  static constexpr size_t kBytes =
      sizeof(T) * (kStages * kCoef + kRows + kFeatures) + sizeof(User) * kStages * 2 * kRows;
};

// One step of Adam with decoupled decay on the gradient -phi; factors as in long_rows.py.
template <class T>
__device__ __forceinline__ void descend(T (&phi)[kMine], const T (&param)[kMine], T* first,
                                        T* second, const T* factors, Index left, bool aligned) {
  T moment[kMine], square[kMine];
  load(moment, first, left, aligned);
  load(square, second, left, aligned);
#pragma unroll
  for (int f = 0; f < kMine; ++f) {
    moment[f] = factors[2] * moment[f] - factors[3] * phi[f];
    square[f] = factors[4] * square[f] + factors[5] * phi[f] * phi[f];
    phi[f] = param[f] * factors[7] -
             factors[0] * moment[f] / (root(square[f]) * factors[1] + factors[6]);
  }
  store(first, moment, left, aligned);
  store(second, square, left, aligned);
}

template <int targets, class T, int R>
__device__ __forceinline__ void multiply(const T* coef, const T* drive, T (&part)[R][kMine]) {
  const int feature = static_cast<int>(threadIdx.x) % kSide * kMine;
  const int target = static_cast<int>(threadIdx.x) / kSide * R;
#pragma unroll 4
  for (int i = 0; i < kSources; ++i) {
    T u[kMine], weight[R];
    read(u, drive + i * kFeatures + feature);
    read(weight, coef + i * targets + target);
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int f = 0; f < kMine; ++f) part[r][f] += weight[r] * u[f];
    }
  }
}

template <class T, class User, int R, bool adam>
__global__ void __launch_bounds__(kThreads, 1) direction_kernel(LongDirectionArguments a) {
  using Shape = Tile<T, User, R>;
  constexpr int kTargets = Shape::kTargets, kStages = Shape::kStages;
  const Index tiles = cdiv(a.targets, kTargets), runs = cdiv(a.features, kFeatures);
  const Index target = blockIdx.x % tiles * kTargets;
  const Index at = blockIdx.x / tiles % runs * kFeatures, set = blockIdx.x / tiles / runs;
  const Index left = a.features - at, chunks = cdiv(a.sources, kSources);
  const T c = 2 / static_cast<const T*>(a.h)[set];
  const T* factors = static_cast<const T*>(a.factors);
  const T sign = adam ? factors[8] : T(1);
  const User* x = begin<User>(a.x, set) + at;
  const User* grad = begin<User>(a.grad, set) + at;
  const T* coef = static_cast<const T*>(a.coef) + set * a.sources * a.targets + target;

  T* coefs = dynamic_shared<T>();                           // [stage][source][target]
  T* drive = coefs + kStages * Shape::kCoef;                // [source][feature]
  T* centre = drive + Shape::kRows;                         // [feature]
  User* raw = reinterpret_cast<User*>(centre + kFeatures);  // [stage][x, grad][source][feature]
  const auto start = [&](Index chunk) {
    const Index stage = chunk % kStages, i = chunk * kSources, there = a.sources - i;
    if (chunk < chunks) {
      User* to = raw + stage * 2 * Shape::kRows;
      copy_tile<kSources, kFeatures>(to, Source<User>{x + i * a.x.step, a.x.step, there, left},
                                     a.copy);
      copy_tile<kSources, kFeatures>(to + Shape::kRows,
                                     Source<User>{grad + i * a.grad.step, a.grad.step, there, left},
                                     a.copy);
      const Source<T> source = {coef + i * a.targets, a.targets, there, a.targets - target};
      copy_tile<kSources, kTargets>(coefs + stage * Shape::kCoef, source, a.coef_copy);
    }
    __pipeline_commit();
  };
  for (Index chunk = 0; chunk < kStages - 1; ++chunk) start(chunk);

  Total<T, true> total[R][kMine];
  for (Index chunk = 0; chunk < chunks; ++chunk) {
    __pipeline_wait_prior(kStages - 2);
    __syncthreads();
    const User* lines = raw + chunk % kStages * 2 * Shape::kRows;
    const Index there = a.sources - chunk * kSources;
    if (chunk == 0) {
      if (threadIdx.x < kFeatures) {
        const Index rows = there < kSources ? there : kSources;
        T sum = 0;
        for (Index i = 0; i < rows; ++i) sum += wide(lines[i * kFeatures + threadIdx.x]);
        centre[threadIdx.x] = sum / static_cast<T>(rows);
      }
      __syncthreads();
    }
    for (int i = static_cast<int>(threadIdx.x); i < Shape::kRows; i += kThreads) {
      const T score = sign * wide(lines[Shape::kRows + i]);
      const T apart = wide(lines[i]) - centre[i % kFeatures];
      drive[i] = i / kFeatures < there ? score - c * apart : T(0);
    }
    __syncthreads();
    start(chunk + kStages - 1);  // into the stage before this one, which all threads have read
    T part[R][kMine] = {};
    multiply<kTargets>(coefs + chunk % kStages * Shape::kCoef, drive, part);
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int f = 0; f < kMine; ++f) total[r][f] += part[r][f];
    }
  }

  const bool aligned = a.copy == Copy::kWide;
  const Index feature = threadIdx.x % kSide * kMine, rest = left - feature;
  const User* y = begin<User>(a.y, set) + at + feature;
  User* out = begin<User>(a.out, set) + at + feature;
  const T* mass = static_cast<const T*>(a.mass) + set * a.targets;
  const T* own = static_cast<const T*>(a.own) + set * a.targets;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const Index j = target + threadIdx.x / kSide * R + r;
    if (j >= a.targets || rest <= 0) continue;
    T phi[kMine], place[kMine], score[kMine] = {};
    load(place, y + j * a.y.step, rest, aligned);
    if (a.origin >= 0) {
      load(score, grad + feature + (a.origin + j) * a.grad.step, rest, aligned);
    }
    const T pull = c * mass[j], factor = a.origin >= 0 ? sign * own[j] : T(0);
#pragma unroll
    for (int f = 0; f < kMine; ++f) {
      const T apart = place[f] - centre[feature + f];
      phi[f] = total[r][f].value + (pull * apart + factor * score[f]);
    }
    if constexpr (adam) {
      const Index offset = (set * a.sources + j) * a.features + at + feature;
      descend(phi, place, static_cast<T*>(a.first) + offset, static_cast<T*>(a.second) + offset,
              factors, rest, aligned);
    }
    store(out + j * a.out.step, phi, rest, aligned);
  }
}

template <class T, class User, int R>
cudaError_t run(const LongDirectionArguments& a, bool adam, cudaStream_t stream) {
  using Shape = Tile<T, User, R>;
  const Index blocks = cdiv(a.targets, Shape::kTargets) * cdiv(a.features, kFeatures) * a.batch;
  const auto kernel =
      adam ? direction_kernel<T, User, R, true> : direction_kernel<T, User, R, false>;
  return launch(kernel, blocks, dim3(kThreads), Shape::kBytes, stream, a);
}

}  // namespace

cudaError_t long_direction(Scalar scalar, const LongDirectionArguments& a, bool adam,
                           cudaStream_t stream) {
  return with_types(scalar, [&](auto t, auto user) {
    using T = decltype(t);
    using User = decltype(user);
    if (a.targets <= 32) return run<T, User, 2>(a, adam, stream);
    if (a.targets <= 64) return run<T, User, 4>(a, adam, stream);
    return run<T, User, 8>(a, adam, stream);
  });
}

}  // namespace stein
