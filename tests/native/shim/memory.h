// Test only, part of runtime.cpp: shared memory as thread-local storage, and ThreadSanitizer's
// functions.
#pragma once

#include <link.h>

#include "cuda_runtime.h"

#ifdef SHIM_TSAN
extern "C" {
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void* __tsan_get_current_fiber();
void __tsan_acquire(void* at);
void __tsan_release(void* at);
void __tsan_read_range(void* at, unsigned long bytes);
void __tsan_write_range(void* at, unsigned long bytes);
}
#define SHIM_ON_TSAN(call) call
#else
#define SHIM_ON_TSAN(call)
#endif

namespace stein {
constexpr size_t kSharedLimit = 232448;  // of a block, on sm_90
__shared__ __align__(128) unsigned char stein_dynamic_shared[kSharedLimit];
}  // namespace stein

namespace shim {
namespace {

struct Range {
  unsigned char* begin = nullptr;
  size_t bytes = 0;
};

// The thread-local storage of this library: every __shared__ variable, and nothing else.
Range shared_memory() {
  stein::stein_dynamic_shared[0] = 0;  // allocated on first use
  Range range;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        auto* found = static_cast<Range*>(data);
        auto* begin = static_cast<unsigned char*>(info->dlpi_tls_data);
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const size_t bytes = info->dlpi_phdr[i].p_memsz;
          if (info->dlpi_phdr[i].p_type != PT_TLS || !begin) continue;
          const unsigned char* dynamic = stein::stein_dynamic_shared;
          if (begin <= dynamic && dynamic < begin + bytes) *found = {begin, bytes};
        }
        return 0;
      },
      &range);
  return range;
}

// By hand: ThreadSanitizer would count a memcpy or memset as the kernel's own access.
__attribute__((optimize("no-tree-loop-distribute-patterns"))) void fill(void* to, size_t bytes,
                                                                        unsigned char value) {
  if (reinterpret_cast<uintptr_t>(to) % 8 == 0 && bytes % 8 == 0) {
    const uint64_t word = 0x0101010101010101u * value;
    for (size_t i = 0; i < bytes / 8; ++i) static_cast<uint64_t*>(to)[i] = word;
    return;
  }
  for (size_t i = 0; i < bytes; ++i) static_cast<unsigned char*>(to)[i] = value;
}

// The first byte of dynamic shared memory that changed, of those nobody asked for.
size_t first_write_beyond(size_t asked) {
  size_t i = asked;
  while (i < stein::kSharedLimit && stein::stein_dynamic_shared[i] == 0xff) ++i;
  return i;
}

}  // namespace
}  // namespace shim
