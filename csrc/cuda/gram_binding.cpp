// torch.ops.stein_kernels_cuda.gram and gram_backward: checks, then the raw launchers.
#include "gram.h"

#include <string>

#include "packed.h"

namespace stein {
namespace {

void run_gram(const at::Tensor& x, const at::Tensor& y, const at::Tensor& h, at::Tensor out,
              bool same) {
  const Device device(x);
  device.check({y, h, out});
  check_packed({x, y});
  check_scalars(h, x);
  TORCH_CHECK(out.dim() == 3 && out.is_contiguous(), "stein_kernels_cuda::gram: expected out (",
              x.size(0), ", rows, columns), contiguous, got ", out.sizes());
  TORCH_CHECK(!same || out.size(1) == out.size(2),
              "stein_kernels_cuda::gram: of one cloud it is "
              "square, got ",
              out.sizes());
  check_sizes(x, {out.size(0), y.size(1), x.size(2)}, out.size(1));
  check_sizes(y, {out.size(0), x.size(1), y.size(2)}, out.size(2));
  check_sizes(h, {x.size(0)}, 0);
  const GramArguments arguments = {
      x.const_data_ptr(), y.const_data_ptr(), h.const_data_ptr(), out.data_ptr(),
      scalar(out),        x.size(0),          out.size(1),        out.size(2),
      x.size(2),          y.size(2),          int(x.size(1)),
  };
  check_launch(gram(scalar(x), arguments, device.stream()), "gram");
}

void run_gram_backward(const at::Tensor& row_x, const at::Tensor& column_x, const at::Tensor& v,
                       const at::Tensor& h, at::Tensor out, at::Tensor sums, Index rows,
                       Index columns, const std::string& precision) {
  const Device device(row_x);
  device.check({column_x, v, h, out, sums});
  check_packed({row_x, column_x, out, sums});
  check_scalars(h, row_x);
  check_precision(precision);
  const Index b = row_x.size(0), d = row_x.size(1), splits = out.size(0);
  check_sizes(row_x, {b, d, row_x.size(2)}, rows);
  check_sizes(column_x, {b, d, column_x.size(2)}, columns);
  TORCH_CHECK(
      v.sizes() == at::IntArrayRef({b, rows, columns}) && v.scalar_type() == row_x.scalar_type(),
      "stein_kernels_cuda::gram_backward: expected v (", b, ", ", rows, ", ", columns, ") of ",
      row_x.scalar_type(), ", got ", v.sizes(), " of ", v.scalar_type());
  check_sizes(h, {b}, 0);
  check_sizes(out, {splits, b, d, row_x.size(2)}, rows);
  check_sizes(sums, {splits, b, row_x.size(2)}, rows);
  const GramBackwardArguments arguments = {
      row_x.const_data_ptr(),
      column_x.const_data_ptr(),
      v.const_data_ptr(),
      h.const_data_ptr(),
      out.data_ptr(),
      sums.data_ptr(),
      v.stride(0),
      v.stride(1),
      v.stride(2),
      b,
      splits,
      rows,
      columns,
      row_x.size(2),
      column_x.size(2),
      int(d),
  };
  check_launch(gram_backward(scalar(row_x), arguments, device.stream()), "gram_backward");
}

}  // namespace
}  // namespace stein

TORCH_LIBRARY_FRAGMENT(stein_kernels_cuda, m) {
  m.def("gram(Tensor x, Tensor y, Tensor h, Tensor(a!) out, bool same) -> ()", &stein::run_gram);
  m.def(
      "gram_backward(Tensor row_x, Tensor col_x, Tensor v, Tensor h, Tensor(a!) out, "
      "Tensor(b!) sums, int rows, int cols, str precision) -> ()",
      &stein::run_gram_backward);
}
