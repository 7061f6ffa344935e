// torch.ops.stein_kernels_cuda.divergence and divergence_backward: checks, then the raw launchers.
#include "divergence.h"

#include <string>

#include "packed.h"

namespace stein {
namespace {

void run_divergence(const at::Tensor& y, const at::Tensor& x, const at::Tensor& g,
                    const at::Tensor& along, const at::Tensor& w, const at::Tensor& h,
                    at::Tensor out, Index targets, Index sources, bool same,
                    const std::string& precision) {
  const Device device(y);
  device.check({x, g, along, w, h, out});
  check_packed({y, x, g, along, w, out});
  check_scalars(h, y);
  check_precision(precision);
  check_sizes(y, {x.size(0), x.size(1), y.size(2)}, targets);
  check_sizes(x, {y.size(0), y.size(1), x.size(2)}, sources);
  check_sizes(g, x.sizes(), sources);
  check_sizes(along, {x.size(0), x.size(2)}, sources);
  check_sizes(w, {x.size(0), x.size(2)}, sources);
  check_sizes(h, {x.size(0)}, 0);
  check_sizes(out, {out.size(0), y.size(0), y.size(2)}, targets);
  const DivergenceArguments arguments = {
      y.const_data_ptr(),
      x.const_data_ptr(),
      g.const_data_ptr(),
      along.const_data_ptr(),
      w.const_data_ptr(),
      h.const_data_ptr(),
      out.data_ptr(),
      y.size(0),
      out.size(0),
      targets,
      sources,
      y.size(2),
      x.size(2),
      int(y.size(1)),
      same,
  };
  check_launch(divergence(scalar(y), arguments, device.stream()), "divergence");
}

void run_divergence_backward(const at::Tensor& row_x, const at::Tensor& row_g,
                             const at::Tensor& row_along, const at::Tensor& row_w,
                             const at::Tensor& row_v, const at::Tensor& column_x,
                             const at::Tensor& column_g, const at::Tensor& column_along,
                             const at::Tensor& column_w, const at::Tensor& column_v,
                             const at::Tensor& h, at::Tensor out, at::Tensor scalars, Index rows,
                             Index columns, bool same, bool as_source, bool as_target,
                             const std::string& precision) {
  const Device device(row_x);
  device.check({row_g, row_along, row_w, row_v, column_x, column_g, column_along, column_w});
  device.check({column_v, h, out, scalars});
  check_packed({row_x, row_g, row_along, row_w, row_v, column_x, column_g, column_along, column_w,
                column_v, out, scalars});
  check_scalars(h, row_x);
  check_precision(precision);
  const Index b = row_x.size(0), d = row_x.size(1), row_ld = row_x.size(2);
  const Index column_ld = column_x.size(2), splits = out.size(0);
  check_sizes(row_x, {b, d, row_ld}, rows);
  check_sizes(column_x, {b, d, column_ld}, columns);
  if (as_target) {
    check_sizes(row_v, {b, row_ld}, rows);
    check_sizes(column_g, column_x.sizes(), columns);
    check_sizes(column_along, {b, column_ld}, columns);
    check_sizes(column_w, {b, column_ld}, columns);
  }
  if (as_source) {
    check_sizes(row_g, row_x.sizes(), rows);
    check_sizes(row_along, {b, row_ld}, rows);
    check_sizes(row_w, {b, row_ld}, rows);
    check_sizes(column_v, {b, column_ld}, columns);
  }
  check_sizes(h, {b}, 0);
  check_sizes(out, {splits, 3, b, d, row_ld}, rows);
  check_sizes(scalars, {splits, 3, b, row_ld}, rows);
  const auto side = [](const at::Tensor& x, const at::Tensor& g, const at::Tensor& along,
                       const at::Tensor& w, const at::Tensor& v, Index count) {
    return DivergenceSide{
        x.const_data_ptr(), g.const_data_ptr(), along.const_data_ptr(),
        w.const_data_ptr(), v.const_data_ptr(), count,
        x.size(2),
    };
  };
  const DivergenceBackwardArguments arguments = {
      side(row_x, row_g, row_along, row_w, row_v, rows),
      side(column_x, column_g, column_along, column_w, column_v, columns),
      h.const_data_ptr(),
      out.data_ptr(),
      scalars.data_ptr(),
      b,
      splits,
      int(d),
      same,
      as_source,
      as_target,
  };
  check_launch(divergence_backward(scalar(row_x), arguments, device.stream()),
               "divergence_backward");
}

}  // namespace
}  // namespace stein

TORCH_LIBRARY_FRAGMENT(stein_kernels_cuda, m) {
  m.def(
      "divergence(Tensor y, Tensor x, Tensor g, Tensor along, Tensor w, Tensor h, Tensor(a!) out, "
      "int targets, int sources, bool same, str precision) -> ()",
      &stein::run_divergence);
  m.def(
      "divergence_backward(Tensor row_x, Tensor row_g, Tensor row_along, Tensor row_w, "
      "Tensor row_v, Tensor col_x, Tensor col_g, Tensor col_along, Tensor col_w, Tensor col_v, "
      "Tensor h, Tensor(a!) out, Tensor(b!) scalars, int rows, int cols, bool same, "
      "bool as_source, bool as_target, str precision) -> ()",
      &stein::run_divergence_backward);
}
