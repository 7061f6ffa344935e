// Tile primitives: all the vector code of the CPU kernels, compiled once per instruction set.
//
// A tile has R rows and L lanes, row-major. Lanes are padded to a multiple of `width`; padded lanes
// hold finite garbage that nobody reads back. Ops are written in terms of these and need no vector
// code.
#pragma once

#include <cstdint>
#include <type_traits>

namespace stein {

constexpr std::int64_t kMaxWidth =
    16;  // floats in the widest vector: the padding every buffer uses

inline std::int64_t padded(std::int64_t n) { return (n + kMaxWidth - 1) / kMaxWidth * kMaxWidth; }

// Arguments of the pair functions below. Row r and lane l are one particle each. `p` belongs to the
// pair (source r, target l), `q` to (source l, target r); either may be null, and then its terms
// are left out.
template <class T>
struct PairTile {
  std::int64_t rows, lanes, ld;  // all tiles share ld
  T* kernel;                     // in: squared distances; out: k
  T* p;
  T* q;
  const T* row_weight;      // w_r, null: 1
  const T* lane_weight;     // w_l, null: 1
  const T* row_shift;       // added to q (direction) or taken from p (divergence), null: 0
  const T* lane_shift;      // added to p (direction) or taken from q (divergence), null: 0
  const T* row_cotangent;   // v_r of the target r (divergence)
  const T* lane_cotangent;  // v_l of the target l (divergence)
  T h, c;
  std::int64_t d;
  double* sum;  // per lane, over rows
  double* mass;
  double* weight;  // gradient of w_l
  double* spread;  // backward: of what goes into sum, times its squared distance
};

template <class T>
struct TileOps {
  using Index = std::int64_t;
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;

  const char* name;  // the instruction set

  // out[r][l] = sum_k a[k][r] * b[k][l]
  void (*product)(Index k, Index rows, Index lanes, const T* a, Index lda, const T* b, Index ldb,
                  T* out, Index ldo);
  // out[r][l] = sum_k (b[k][l] - a[k][r])^2: differences, so a common shift costs nothing
  void (*squared_distance)(Index k, Index rows, Index lanes, const T* a, Index lda, const T* b,
                           Index ldb, T* out, Index ldo);
  // out[f][l] = sum_k kernel[k][l] * (g[k][f] + c (y[f][l] - x[k][f])): no cancellation at small d
  void (*direct_field)(Index k, Index features, Index lanes, const T* kernel, Index ldk, const T* x,
                       const T* g, Index ldx, const T* y, Index ldy, T c, T* out, Index ldo);
  // sum over features of (a - b)^2 for each pair of rows a in [0, ra), b in [0, rb); ra, rb <= 4;
  // features are contiguous. out[a * 4 + b] += in double.
  void (*row_distance)(Index features, const T* a, Index lda, Index ra, const T* b, Index ldb,
                       Index rb, double* out);
  // The same with a * b in place of (a - b)^2.
  void (*row_product)(Index features, const T* a, Index lda, Index ra, const T* b, Index ldb,
                      Index rb, double* out);
  // tile = weight[r] * exp(scale * tile), weight may be null; column_sum[l] += over rows
  void (*radial)(Index rows, Index lanes, T* tile, Index ld, const T* weight, T scale,
                 double* column_sum);
  // sum[l] += tile[l], n values
  void (*add)(Index n, const T* tile, double* sum);
  // out[l] = x[0][l] + mean over rows of (x[r][l] - x[0][l]), n lanes
  void (*centre)(Index rows, Index n, const T* x, Index ldx, T* out);
  // out[r][l] = g[r][l] - c (x[r][l] - centre[l]) for l < n, 0 up to `lanes`
  void (*drive)(Index rows, Index n, Index lanes, const T* x, const T* g, Index ld, const T* centre,
                T c, T* out, Index ldo);
  // out[r][l] = factor (tile[r][l] + mass[r] (y[r][l] - centre[l]) + own[r] g[r][l]), n lanes;
  // own may be null
  void (*finish)(Index rows, Index n, const T* tile, Index ldt, const T* mass, const T* y,
                 const T* centre, const T* own, const T* g, T factor, T* out, Index ld);
  // out[c][r] = x[r][c]
  void (*transpose)(Index rows, Index columns, const T* x, Index ldx, T* out, Index ldo);
  // out[r][l] = x[r][l] - centre[l] for l < n, 0 up to `lanes`
  void (*subtract)(Index rows, Index n, Index lanes, const T* x, Index ld, const T* centre, T* out,
                   Index ldo);
  // sum over l of (a[l] - centre[l]) * b[l], centre null: 0; runs of 256 in T, their total in
  // double
  double (*centred_dot)(Index n, const T* a, const T* centre, const T* b);
  // out = a x + b y + p u + q v, n values; without the last two where u or v is null
  void (*combine)(Index n, T a, const T* x, T b, const T* y, T p, const T* u, T q, const T* v,
                  T* out);
  // the largest finite |x[r][l] - centre[l]|, n lanes; centre null: 0
  T (*largest)(Index rows, Index n, const T* x, Index ldx, const T* centre);
  // whether none of n values is NaN or infinite
  bool (*all_finite)(Index n, const T* values);
  // how many of n values have bits below `limit`
  Index (*count_below)(Index n, const T* values, Bits limit);
  // the value of rank `rank` (0 is the least) among n values that are not negative; padding is read
  // up to a multiple of kMaxWidth and must be inf. *next becomes the value of the rank after it,
  // where there is one.
  T (*select)(Index n, const T* values, Index rank, T* next);
  // counts the values with bits below `low` into *below and appends those in [low, high) to `out`,
  // which has room for n + kMaxWidth; returns how many were appended. n is a multiple of kMaxWidth.
  Index (*collect)(Index n, const T* values, Bits low, Bits high, Index* below, T* out);
  // Direction, backward: with a = p + c lane_shift and b = q + c row_shift,
  //   p = s = k (w_r a + w_l b); sum += s, mass += w_r k, weight += k b, spread += s r2
  void (*direction_backward)(const PairTile<T>& tile);
  // Gradients of lanes from their sums over rows, [features][width]; factors: first, x, v, second,
  // own:
  //   dx = c (first_l a + x_l (x - centre_f) + v_l v - second_l b), dg = second_l b + own_l v
  // b may be null (then dg is not made).
  void (*lane_gradients)(Index features, Index width, double c, const double* a, const double* b,
                         const T* x, Index ldx, const T* centre, const T* v, Index ldv,
                         const double* factors, T* dx, T* dg);
  // Divergence: with e = p - row_shift, sum += w_r k (c d - c^2 r2 - c e)
  void (*divergence)(const PairTile<T>& tile);
  // Divergence, backward: t = c d - c^2 r2 - c (p - row_shift), u the same of q - lane_shift,
  //   a = w_r v_l k, b = v_r k; kernel = radial = -2 (a (t/h + c^2) + w_l b (u/h + c^2)), p = a, q
  //   = b; sum += radial, mass += b, weight += b u, spread += radial r2
  void (*divergence_backward)(const PairTile<T>& tile);
};

template <class T>
const TileOps<T>& tile_ops();  // the best instruction set that torch would use on this machine

}  // namespace stein
