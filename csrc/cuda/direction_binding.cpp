// torch.ops.stein_kernels_cuda.direction and direction_backward: checks, then the raw launchers.
#include "direction.h"

#include <string>

#include "packed.h"

namespace stein {
namespace {

void run_direction(const at::Tensor& y, const at::Tensor& x, const at::Tensor& u,
                   const at::Tensor& w, const at::Tensor& h, at::Tensor out, at::Tensor mass,
                   Index targets, Index sources, bool same, bool direct,
                   const std::string& precision) {
  const Device device(y);
  device.check({x, u, w, h, out, mass});
  check_packed({y, x, u, w, out, mass});
  check_scalars(h, y);
  check_precision(precision);
  TORCH_CHECK(!direct || y.size(1) <= 16, "stein_kernels_cuda::direction: at most 16 features");
  check_sizes(y, {x.size(0), x.size(1), y.size(2)}, targets);
  check_sizes(x, {y.size(0), y.size(1), x.size(2)}, sources);
  check_sizes(u, x.sizes(), sources);
  check_sizes(w, {x.size(0), x.size(2)}, sources);
  check_sizes(h, {x.size(0)}, 0);
  check_sizes(out, {out.size(0), y.size(0), y.size(1), y.size(2)}, targets);
  check_sizes(mass, {out.size(0), y.size(0), y.size(2)}, targets);
  const DirectionArguments arguments = {
      y.const_data_ptr(),
      x.const_data_ptr(),
      u.const_data_ptr(),
      w.const_data_ptr(),
      h.const_data_ptr(),
      out.data_ptr(),
      mass.data_ptr(),
      y.size(0),
      out.size(0),
      targets,
      sources,
      y.size(2),
      x.size(2),
      int(y.size(1)),
      same,
      direct,
  };
  check_launch(direction(scalar(y), arguments, device.stream()), "direction");
}

void run_direction_backward(const at::Tensor& row_x, const at::Tensor& row_u,
                            const at::Tensor& row_v, const at::Tensor& row_shift,
                            const at::Tensor& row_w, const at::Tensor& column_x,
                            const at::Tensor& column_u, const at::Tensor& column_v,
                            const at::Tensor& column_shift, const at::Tensor& column_w,
                            const at::Tensor& h, at::Tensor out, at::Tensor scalars, Index rows,
                            Index columns, bool same, bool as_source, bool as_target,
                            const std::string& precision) {
  const Device device(row_x);
  device.check({row_u, row_v, row_shift, row_w, column_x, column_u, column_v, column_shift});
  device.check({column_w, h, out, scalars});
  check_packed({row_x, row_u, row_v, row_shift, row_w, column_x, column_u, column_v, column_shift,
                column_w, out, scalars});
  check_scalars(h, row_x);
  check_precision(precision);
  const Index b = row_x.size(0), d = row_x.size(1), row_ld = row_x.size(2);
  const Index column_ld = column_x.size(2), splits = out.size(0);
  check_sizes(row_x, {b, d, row_ld}, rows);
  check_sizes(column_x, {b, d, column_ld}, columns);
  if (as_target) {
    check_sizes(row_v, row_x.sizes(), rows);
    check_sizes(row_shift, {b, row_ld}, rows);
    check_sizes(column_u, column_x.sizes(), columns);
    check_sizes(column_w, {b, column_ld}, columns);
  }
  if (as_source) {
    check_sizes(row_u, row_x.sizes(), rows);
    check_sizes(row_w, {b, row_ld}, rows);
    check_sizes(column_v, column_x.sizes(), columns);
    check_sizes(column_shift, {b, column_ld}, columns);
  }
  check_sizes(h, {b}, 0);
  check_sizes(out, {splits, 2, b, d, row_ld}, rows);
  check_sizes(scalars, {splits, 3, b, row_ld}, rows);
  const auto side = [](const at::Tensor& x, const at::Tensor& u, const at::Tensor& v,
                       const at::Tensor& shift, const at::Tensor& w, Index count) {
    return DirectionSide{
        x.const_data_ptr(), u.const_data_ptr(),
        v.const_data_ptr(), shift.const_data_ptr(),
        w.const_data_ptr(), count,
        x.size(2),
    };
  };
  const DirectionBackwardArguments arguments = {
      side(row_x, row_u, row_v, row_shift, row_w, rows),
      side(column_x, column_u, column_v, column_shift, column_w, columns),
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
  check_launch(direction_backward(scalar(row_x), arguments, device.stream()), "direction_backward");
}

}  // namespace
}  // namespace stein

TORCH_LIBRARY_FRAGMENT(stein_kernels_cuda, m) {
  m.def(
      "direction(Tensor y, Tensor x, Tensor u, Tensor w, Tensor h, Tensor(a!) out, "
      "Tensor(b!) mass, int targets, int sources, bool same, bool direct, str precision) -> ()",
      &stein::run_direction);
  m.def(
      "direction_backward(Tensor row_x, Tensor row_u, Tensor row_v, Tensor row_shift, "
      "Tensor row_w, Tensor col_x, Tensor col_u, Tensor col_v, Tensor col_shift, Tensor col_w, "
      "Tensor h, Tensor(a!) out, Tensor(b!) scalars, int rows, int cols, bool same, "
      "bool as_source, bool as_target, str precision) -> ()",
      &stein::run_direction_backward);
}
