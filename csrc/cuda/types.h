// What raw launchers and torch bindings share: host types alone, so that both compilers read it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace stein {

using Index = std::int64_t;

enum class Scalar : int { kFloat, kDouble, kHalf, kBFloat16 };

}  // namespace stein
