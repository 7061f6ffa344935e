// The Python module stein_kernels._CUDA. Importing it defines the launches of csrc/cuda as
// torch.ops.stein_kernels_cuda; the module itself only says what was built.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include "stein_kernels_build.h"  // written by stein_kernels/_build.py

namespace py = pybind11;

// Read from the file before the library is loaded, as in csrc/module.cpp.
extern "C" __attribute__((visibility("default"), used)) const char stein_kernels_build_id[] =
    "stein_kernels build: torch=" STEIN_KERNELS_TORCH ";source=" STEIN_KERNELS_SOURCE ";";

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "CUDA kernels of stein_kernels.";
  m.def(
      "build_info",
      [] {
        py::dict info;
        info["cuda"] = CUDART_VERSION;
        info["flags"] = STEIN_KERNELS_FLAGS;
        info["architectures"] = STEIN_KERNELS_ARCHITECTURES;
        info["torch"] = STEIN_KERNELS_TORCH;
        info["source"] = STEIN_KERNELS_SOURCE;
        return info;
      },
      "What this library was built from and for.");
}
