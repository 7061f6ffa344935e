// torch.ops.stein_kernels_cuda.small_set and small_set_backward: checks, then the raw launchers.
#include "small_set.h"

#include <cmath>

#include "binding.h"

namespace stein {
namespace {

// Contiguous tensors of the shape and type of x.
void check_like(const at::Tensor& x, std::initializer_list<at::Tensor> tensors) {
  for (const at::Tensor& tensor : tensors) {
    TORCH_CHECK(tensor.is_contiguous() && tensor.sizes() == x.sizes() &&
                    tensor.scalar_type() == x.scalar_type(),
                "stein_kernels_cuda: expected a contiguous tensor ", x.sizes(), " of ",
                x.scalar_type(), ", got ", tensor.sizes(), " of ", tensor.scalar_type());
  }
}

// Contiguous tensors of T with at least `least` elements.
void check_wide(const at::Tensor& x, std::initializer_list<at::Tensor> tensors, Index least) {
  const auto wanted = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  for (const at::Tensor& tensor : tensors) {
    TORCH_CHECK(tensor.is_contiguous() && tensor.scalar_type() == wanted && tensor.numel() >= least,
                "stein_kernels_cuda: expected ", least, " elements of ", wanted, ", got ",
                tensor.sizes(), " of ", tensor.scalar_type());
  }
}

void check_sets(const at::Tensor& x, const at::Tensor& w, bool weighted) {
  TORCH_CHECK(x.dim() == 3, "stein_kernels_cuda: expected sets (B, M, d), got ", x.sizes());
  TORCH_CHECK(small_set_fits(scalar(x), static_cast<int>(x.size(1)), static_cast<int>(x.size(2))),
              "stein_kernels_cuda: sets ", x.sizes(), " of ", x.scalar_type(),
              " do not fit the shared memory of a block");
  TORCH_CHECK(!weighted || (w.is_contiguous() && w.scalar_type() == x.scalar_type() &&
                            w.sizes() == x.sizes().slice(0, 2)),
              "stein_kernels_cuda: expected weights (B, M) of ", x.scalar_type(), ", got ",
              w.sizes(), " of ", w.scalar_type());
}

void run_small_set(const at::Tensor& x, const at::Tensor& grad, const at::Tensor& w, at::Tensor h,
                   const at::Tensor& /*work*/, at::Tensor phi, bool weighted, Index rule,
                   bool leave_one_out, double uniform) {
  const Device device(x);
  device.check({grad, w, h, phi});
  check_like(x, {x, grad, phi});
  check_wide(x, {h}, x.size(0));
  check_sets(x, w, weighted);
  const SmallSetArguments arguments = {
      x.const_data_ptr(),
      grad.const_data_ptr(),
      w.const_data_ptr(),
      h.data_ptr(),
      phi.data_ptr(),
      x.size(0),
      static_cast<int>(x.size(1)),
      static_cast<int>(x.size(2)),
      weighted,
      leave_one_out,
      static_cast<int>(rule),
      rule == 0 ? 1 / std::log(static_cast<double>(x.size(1) + 1)) : 1.0,
      uniform,
  };
  check_launch(small_set(scalar(x), arguments, device.stream()), "small_set");
}

void run_small_set_backward(const at::Tensor& v, const at::Tensor& x, const at::Tensor& grad,
                            const at::Tensor& w, const at::Tensor& h, at::Tensor work,
                            at::Tensor dx, at::Tensor dg, at::Tensor dw, at::Tensor dh,
                            bool weighted, bool leave_one_out, double uniform) {
  const Device device(x);
  device.check({v, grad, w, h, work, dx, dg, dw, dh});
  check_like(x, {v, x, grad, dx, dg});
  check_wide(x, {h, dh}, x.size(0));
  check_wide(x, {work}, x.numel());
  check_sets(x, w, weighted);
  if (weighted) check_like(w, {dw});
  const SmallSetBackwardArguments arguments = {
      v.const_data_ptr(),
      x.const_data_ptr(),
      grad.const_data_ptr(),
      w.const_data_ptr(),
      h.const_data_ptr(),
      work.data_ptr(),
      dx.data_ptr(),
      dg.data_ptr(),
      dw.data_ptr(),
      dh.data_ptr(),
      x.size(0),
      static_cast<int>(x.size(1)),
      static_cast<int>(x.size(2)),
      weighted,
      leave_one_out,
      uniform,
  };
  check_launch(small_set_backward(scalar(x), arguments, device.stream()), "small_set_backward");
}

}  // namespace
}  // namespace stein

TORCH_LIBRARY_FRAGMENT(stein_kernels_cuda, m) {
  m.def(
      "small_set(Tensor x, Tensor grad, Tensor w, Tensor(a!) h, Tensor work, Tensor(b!) phi, "
      "bool weighted, int rule, bool leave_one_out, float uniform) -> ()",
      &stein::run_small_set);
  m.def(
      "small_set_backward(Tensor v, Tensor x, Tensor grad, Tensor w, Tensor h, Tensor(a!) work, "
      "Tensor(b!) dx, Tensor(c!) dg, Tensor(d!) dw, Tensor(e!) dh, bool weighted, "
      "bool leave_one_out, float uniform) -> ()",
      &stein::run_small_set_backward);
}
