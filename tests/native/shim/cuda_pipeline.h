// Test only: asynchronous copies. What was copied arrives in __pipeline_wait_prior and no sooner;
// until then the destination is NaN.
#pragma once

#include "cuda_runtime.h"

inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes, size_t zeros = 0) {
  shim::copy_async(to, from, bytes, zeros);
}
inline void __pipeline_commit() { shim::copy_commit(); }
inline void __pipeline_wait_prior(unsigned newest) { shim::copy_wait(newest); }
