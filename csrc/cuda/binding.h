// What every torch binding of csrc/cuda does before a launch: one device, one type, one stream.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <initializer_list>

#include "types.h"

namespace stein {

// The tensors of a launch must lie on one device, whose current stream the launch goes to. The
// guard refuses a device that is none of CUDA's.
class Device {
 public:
  explicit Device(const at::Tensor& first) : device_(first.device()), guard_(first.device()) {}

  void check(std::initializer_list<at::Tensor> tensors) const {
    for (const at::Tensor& tensor : tensors) {
      TORCH_CHECK(tensor.device() == device_, "stein_kernels_cuda: expected a tensor on ", device_,
                  ", got one on ", tensor.device());
    }
  }
  cudaStream_t stream() const { return c10::cuda::getCurrentCUDAStream(device_.index()); }

 private:
  c10::Device device_;
  c10::cuda::CUDAGuard guard_;
};

inline Scalar scalar(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return Scalar::kFloat;
    case at::kDouble:
      return Scalar::kDouble;
    case at::kHalf:
      return Scalar::kHalf;
    case at::kBFloat16:
      return Scalar::kBFloat16;
    default:
      TORCH_CHECK(false, "stein_kernels_cuda: no kernel for ", tensor.scalar_type());
  }
}

// Packed tensors: contiguous, of one type, 16-byte aligned.
inline void check_packed(std::initializer_list<at::Tensor> tensors) {
  for (const at::Tensor& tensor : tensors) {
    TORCH_CHECK(tensor.is_contiguous() && tensor.scalar_type() == tensors.begin()->scalar_type() &&
                    reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()) % 16 == 0,
                "stein_kernels_cuda: expected packed tensors of one type, got ", tensor.sizes(),
                " of ", tensor.scalar_type());
  }
}

// Bandwidths: read one at a time, so a user's may begin anywhere.
inline void check_scalars(const at::Tensor& h, const at::Tensor& like) {
  TORCH_CHECK(h.is_contiguous() && h.scalar_type() == like.scalar_type(),
              "stein_kernels_cuda: expected bandwidths of one type with the particles, ",
              like.scalar_type(), ", contiguous, got ", h.sizes(), " of ", h.scalar_type());
}

inline void check_launch(cudaError_t error, const char* name) {
  if (error != cudaSuccess) (void)cudaGetLastError();  // or the next launch would report it again
  TORCH_CHECK(error == cudaSuccess, "stein_kernels_cuda::", name, ": ", cudaGetErrorString(error));
}

}  // namespace stein
