// torch.ops.stein_kernels_cuda.long_products, long_direction and long_direction_adam.
#include "long_rows.h"

#include <string>

#include "binding.h"

namespace stein {
namespace {

// Rows (B, M, d) of the type of `like`; see LongRows for how they may lie.
LongRows rows_of(const at::Tensor& rows, const at::Tensor& like) {
  TORCH_CHECK(rows.dim() == 3 && rows.scalar_type() == like.scalar_type() &&
                  rows.size(0) == like.size(0) && rows.size(2) == like.size(2),
              "stein_kernels_cuda: expected rows like ", like.sizes(), " of ", like.scalar_type(),
              ", got ", rows.sizes(), " of ", rows.scalar_type());
  const Index step = rows.stride(1);
  const bool many = rows.size(0) > 1;
  TORCH_CHECK(rows.stride(2) == 1 && step >= rows.size(2) && !(many && rows.stride(0) % step),
              "stein_kernels_cuda: expected contiguous rows, got strides ", rows.strides());
  return {const_cast<void*>(rows.const_data_ptr()), many ? rows.stride(0) / step : 0, step};
}

// A contiguous tensor of T of this shape; the shape {0} stands for any.
void check_wide(const at::Tensor& value, const at::Tensor& like, at::IntArrayRef shape) {
  const auto type = like.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK(value.is_contiguous() && value.scalar_type() == type && value.sizes() == shape,
              "stein_kernels_cuda: expected a contiguous tensor ", shape, " of ", type, ", got ",
              value.sizes(), " of ", value.scalar_type());
}

bool aligned(const void* data, Index bytes) {
  return reinterpret_cast<std::uintptr_t>(data) % bytes == 0;
}

// The widest copies that every row of every tensor allows.
Copy copy_of(std::initializer_list<at::Tensor> tensors) {
  const auto all = [&](Index bytes) {
    for (const at::Tensor& rows : tensors) {
      const Index step = rows.stride(-2) * rows.element_size();
      if (!aligned(rows.const_data_ptr(), bytes) || step % bytes != 0) return false;
    }
    return true;
  };
  return all(16) ? Copy::kWide : all(4) ? Copy::kNarrow : Copy::kElements;
}

void check_precision(const std::string& precision) {
  TORCH_CHECK(precision == "ieee", "stein_kernels_cuda: expected precision \"ieee\", got \"",
              precision, "\"");
}

void run_long_products(const at::Tensor& row, const at::Tensor& column,
                       const at::Tensor& row_centre, const at::Tensor& column_centre,
                       at::Tensor partial, bool same, const std::string& precision) {
  const Device device(row);
  device.check({column, row_centre, column_centre, partial});
  check_precision(precision);
  const Index b = row.size(0), m = row.size(1), d = row.size(2);
  TORCH_CHECK(!same || column.size(1) == m, "stein_kernels_cuda: column must be row");
  check_wide(row_centre, row, {b, d});
  check_wide(column_centre, row, {b, d});
  check_wide(partial, row, {partial.size(0), b, m, column.size(1)});
  const LongProductsArguments arguments = {
      rows_of(row, row),
      rows_of(column, row),
      row_centre.const_data_ptr(),
      column_centre.const_data_ptr(),
      partial.data_ptr(),
      b,
      partial.size(0),
      m,
      column.size(1),
      d,
      same,
      copy_of({row, column}),
  };
  check_launch(long_products(scalar(row), arguments, device.stream()), "long_products");
}

LongDirectionArguments direction_of(const at::Tensor& coef, const at::Tensor& mass,
                                    const at::Tensor& own, const at::Tensor& x,
                                    const at::Tensor& grad, const at::Tensor& y,
                                    const at::Tensor& h, const at::Tensor& out, Index origin) {
  const Index b = x.size(0), m = x.size(1), n = y.size(1);
  check_wide(coef, x, {b, m, n});
  check_wide(mass, x, {b, n});
  check_wide(own, x, {b, n});
  check_wide(h, x, {b});
  TORCH_CHECK(grad.sizes() == x.sizes() && out.sizes() == y.sizes() &&
                  origin + n <= m + (origin < 0 ? n + 1 : 0),
              "stein_kernels_cuda: expected scores ", x.sizes(), " and a result ", y.sizes());
  return {
      coef.const_data_ptr(),
      mass.const_data_ptr(),
      own.const_data_ptr(),
      h.const_data_ptr(),
      rows_of(x, x),
      rows_of(grad, x),
      rows_of(y, x),
      rows_of(out, x),
      nullptr,
      nullptr,
      nullptr,
      b,
      m,
      n,
      x.size(2),
      origin,
      copy_of({x, grad, y, out}),
      copy_of({coef}),
  };
}

void run_long_direction(const at::Tensor& coef, const at::Tensor& mass, const at::Tensor& own,
                        const at::Tensor& x, const at::Tensor& grad, const at::Tensor& y,
                        const at::Tensor& h, at::Tensor out, Index origin,
                        const std::string& precision) {
  const Device device(x);
  device.check({coef, mass, own, grad, y, h, out});
  check_precision(precision);
  const auto arguments = direction_of(coef, mass, own, x, grad, y, h, out, origin);
  check_launch(long_direction(scalar(x), arguments, false, device.stream()), "long_direction");
}

void run_long_direction_adam(const at::Tensor& coef, const at::Tensor& mass, const at::Tensor& own,
                             at::Tensor x, const at::Tensor& grad, const at::Tensor& h,
                             at::Tensor first, at::Tensor second, const at::Tensor& factors,
                             const std::string& precision) {
  const Device device(x);
  device.check({coef, mass, own, grad, h, first, second, factors});
  check_precision(precision);
  TORCH_CHECK(x.size(1) <= kWholeSet, "stein_kernels_cuda::long_direction_adam: at most ",
              kWholeSet, " particles, got ", x.size(1));
  check_wide(first, x, x.sizes());
  check_wide(second, x, x.sizes());
  check_wide(factors, x, {9});
  x.mutable_data_ptr();  // a lazy clone gets memory of its own before rows_of takes its address
  auto arguments = direction_of(coef, mass, own, x, grad, x, h, x, 0);
  arguments.first = first.data_ptr();
  arguments.second = second.data_ptr();
  arguments.factors = factors.const_data_ptr();
  if (copy_of({first, second}) != Copy::kWide && arguments.copy == Copy::kWide) {
    arguments.copy = Copy::kNarrow;
  }
  check_launch(long_direction(scalar(x), arguments, true, device.stream()), "long_direction_adam");
}

}  // namespace
}  // namespace stein

TORCH_LIBRARY_FRAGMENT(stein_kernels_cuda, m) {
  m.def(
      "long_products(Tensor row, Tensor col, Tensor row_centre, Tensor col_centre, "
      "Tensor(a!) partial, bool same, str precision) -> ()",
      &stein::run_long_products);
  m.def(
      "long_direction(Tensor coef, Tensor mass, Tensor own, Tensor x, Tensor grad, Tensor y, "
      "Tensor h, Tensor(a!) out, int origin, str precision) -> ()",
      &stein::run_long_direction);
  m.def(
      "long_direction_adam(Tensor coef, Tensor mass, Tensor own, Tensor(a!) x, Tensor grad, "
      "Tensor h, Tensor(b!) first, Tensor(c!) second, Tensor factors, str precision) -> ()",
      &stein::run_long_direction_adam);
}
