// Chooses the instruction set at run time: the one torch itself uses (ATEN_CPU_CAPABILITY
// included).
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include <ATen/Version.h>

#include "tile.h"

namespace stein {

#define STEIN_DECLARE(isa)               \
  namespace isa {                        \
  const TileOps<float>& table_float();   \
  const TileOps<double>& table_double(); \
  }
STEIN_DECLARE(generic)
#if defined(__x86_64__)
STEIN_DECLARE(avx2)
STEIN_DECLARE(avx512)
#endif

enum class Isa { kGeneric, kAvx2, kAvx512 };

static Isa best_isa() {
#if defined(__x86_64__)
  static const Isa isa = [] {
    const std::string torch = at::get_cpu_capability();
    if (torch == "AVX512" || torch == "AVX512_VNNI") return Isa::kAvx512;
    return torch == "AVX2" ? Isa::kAvx2 : Isa::kGeneric;
  }();
  return isa;
#else
  return Isa::kGeneric;
#endif
}

template <>
const TileOps<float>& tile_ops<float>() {
#if defined(__x86_64__)
  if (best_isa() == Isa::kAvx512) return avx512::table_float();
  if (best_isa() == Isa::kAvx2) return avx2::table_float();
#endif
  return generic::table_float();
}

template <>
const TileOps<double>& tile_ops<double>() {
#if defined(__x86_64__)
  if (best_isa() == Isa::kAvx512) return avx512::table_double();
  if (best_isa() == Isa::kAvx2) return avx2::table_double();
#endif
  return generic::table_double();
}

}  // namespace stein
