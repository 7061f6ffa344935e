// The Python module stein_kernels._C. Importing it registers the kernels of cpu/ with torch's
// dispatcher (their TORCH_LIBRARY_IMPL blocks run while the library loads); the module itself only
// says what was built. No torch header here: this file compiles in seconds.
#include <pybind11/pybind11.h>

#include "cpu/plan.h"
#include "cpu/tile.h"
#include "stein_kernels_build.h"  // written by stein_kernels/_build.py

namespace py = pybind11;

// stein_kernels/_extension.py reads this from the file before it loads the library: a library built
// for another torch must not be loaded at all.
extern "C" __attribute__((visibility("default"), used)) const char stein_kernels_build_id[] =
    "stein_kernels build: torch=" STEIN_KERNELS_TORCH ";source=" STEIN_KERNELS_SOURCE ";";

namespace {

// Instruction sets that the kernels are compiled for; csrc/cpu/tile.cpp chooses among them.
py::list instruction_sets() {
  py::list names;
  names.append("generic");
#if defined(__x86_64__)
  names.append("avx2");
  names.append("avx512");
#endif
  return names;
}

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
  info["cxx_standard"] = __cplusplus / 100 % 100;
  info["flags"] = STEIN_KERNELS_FLAGS;
  info["torch"] = STEIN_KERNELS_TORCH;
  info["source"] = STEIN_KERNELS_SOURCE;
#if defined(_OPENMP)
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  info["instruction_sets"] = instruction_sets();
  return info;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Compiled kernels of stein_kernels.";
  m.def("build_info", &build_info, "What this library was built from and for.");
  m.def(
      "instruction_set", [] { return stein::tile_ops<float>().name; },
      "The instruction set that the kernels run on this machine.");
  m.def("flow", &stein::flow, py::arg("particles"), py::arg("targets"), py::arg("features"),
        "The flow that the direction takes on the CPU for a shape.");
}
