// Test only: runs the threads of one CUDA block as fibers of one operating system thread.
//
// A fiber runs until it waits; when nobody can run, either a barrier is complete or the kernel is
// wrong, and the launch fails with a sentence instead of hanging. Under -DSHIM_TSAN each fiber is
// a thread to ThreadSanitizer, which switches between them without an order; only launches,
// barriers and __syncwarp order memory, so a missing one is a data race in every run. This file
// itself is compiled without the sanitizer: its own memory is nobody's race.
#include <sys/mman.h>

#include <cstdio>
#include <deque>
#include <string>
#include <unordered_map>
#include <vector>

#include "cuda_runtime.h"
#include "memory.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace shim {
namespace {

constexpr size_t kStack = size_t{256} << 10;
constexpr size_t kDefaultShared = size_t{48} << 10;
constexpr int kThreads = 1024;

enum class State { kReady, kBlock, kWarp, kDone };

struct Copy {
  void* to;
  const void* from;
  size_t bytes, zeros;
};

struct Fiber {
  void* stack = nullptr;  // the saved stack pointer
  void* memory = nullptr;
  void* tsan = nullptr;
  State state = State::kDone;
  uint3 index{};
  unsigned mask = 0;  // of the lanes it waits for
  uint64_t value = 0;
  uint64_t received[32] = {};
  unsigned warp_waits = 0;
  alignas(
      8) char fence[2][8] = {};  // ThreadSanitizer's name of its arrivals at __syncwarp, by parity
  std::vector<std::vector<Copy>> committed;
  std::vector<Copy> open;
};

std::deque<Fiber> fibers;
Fiber* current = nullptr;
void* scheduler = nullptr;  // its saved stack pointer
void* scheduler_tsan = nullptr;
void (*kernel_call)(void*) = nullptr;
void* kernel_body = nullptr;
int threads = 0;
unsigned block_waits = 0;
int block_count = 0, block_result = 0;
alignas(8) char block_fence[2][8], start_fence[8], end_fence[8];
std::string message;
std::unordered_map<const void*, size_t> allowed_shared;

void fail(const std::string& text) {
  if (message.empty()) message = text;
}

std::string name(const Fiber& fiber) {
  return "thread " + std::to_string(fiber.index.x) + "," + std::to_string(fiber.index.y) + "," +
         std::to_string(fiber.index.z) + " of block " + std::to_string(blockIdx.x) + "," +
         std::to_string(blockIdx.y);
}

#if defined(__x86_64__)
// Saves what a call preserves, stores the stack pointer at *from and continues at `to`.
extern "C" void stein_shim_switch(void** from, void* to);
asm(R"(
.text
.globl stein_shim_switch
.hidden stein_shim_switch
.type stein_shim_switch, @function
stein_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size stein_shim_switch, .-stein_shim_switch
)");
#else
#error "the shim's change of stacks is written for x86-64"
#endif

void to_scheduler() {
  Fiber* self = current;
  SHIM_ON_TSAN(__tsan_switch_to_fiber(scheduler_tsan, 1));
  stein_shim_switch(&self->stack, scheduler);
}

void run(Fiber& fiber) {
  current = &fiber;
  threadIdx = fiber.index;
  SHIM_ON_TSAN(__tsan_switch_to_fiber(fiber.tsan, 1));
  stein_shim_switch(&scheduler, fiber.stack);
}

[[noreturn]] void enter() {
  SHIM_ON_TSAN(__tsan_acquire(start_fence));
  kernel_call(kernel_body);
  SHIM_ON_TSAN(__tsan_release(end_fence));
  current->state = State::kDone;
  to_scheduler();
  __builtin_unreachable();
}

void prepare(Fiber& fiber, int i) {
  if (!fiber.memory) {
    fiber.memory = mmap(nullptr, kStack, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    SHIM_ON_TSAN(fiber.tsan = __tsan_create_fiber(0));
  }
  // Six registers, the address that `ret` takes, and a word that aligns the stack as a call does.
  void** top = reinterpret_cast<void**>(static_cast<char*>(fiber.memory) + kStack) - 8;
  for (int word = 0; word < 8; ++word) top[word] = nullptr;
  top[6] = reinterpret_cast<void*>(&enter);
  fiber.stack = top;
  fiber.state = State::kReady;
  const unsigned x = blockDim.x, y = blockDim.y;
  fiber.index = {unsigned(i) % x, unsigned(i) / x % y, unsigned(i) / (x * y)};
  fiber.committed.clear();
  fiber.open.clear();
}

// The lanes of `mask` that exist, of the warp of fiber i.
template <class F>
void each_lane(int i, unsigned mask, F&& visit) {
  const int first = i & ~31;
  for (int l = 0; l < 32 && first + l < threads; ++l) {
    if (mask >> l & 1) visit(fibers[first + l], l);
  }
}

bool release_warps() {
  bool any = false;
  for (int i = 0; i < threads; ++i) {
    const unsigned mask = fibers[i].mask;
    if (fibers[i].state != State::kWarp) continue;
    bool all = true;
    each_lane(i, mask,
              [&](Fiber& f, int) { all = all && f.state == State::kWarp && f.mask == mask; });
    if (!all) continue;
    any = true;
    each_lane(i, mask, [&](Fiber& f, int) {
      each_lane(i, mask, [&](Fiber& other, int l) { f.received[l] = other.value; });
    });
    each_lane(i, mask, [&](Fiber& f, int) { f.state = State::kReady; });
  }
  return any;
}

bool release_block() {
  for (int i = 0; i < threads; ++i) {
    if (fibers[i].state != State::kBlock) return false;
  }
  ++block_waits;
  block_result = block_count;
  block_count = 0;
  for (int i = 0; i < threads; ++i) fibers[i].state = State::kReady;
  return true;
}

void explain_deadlock() {
  const char* where[] = {"is ready", "waits in __syncthreads()", "waits for its warp", "is done"};
  const Fiber* first = nullptr;
  for (int i = 0; i < threads; ++i) {
    if (fibers[i].state != State::kDone) first = first ? first : &fibers[i];
  }
  for (int i = 0; i < threads; ++i) {
    if (fibers[i].state == first->state && fibers[i].mask == first->mask) continue;
    fail(name(*first) + " " + where[int(first->state)] + ", which " + name(fibers[i]) +
         " never reaches: it " + where[int(fibers[i].state)]);
  }
  fail(name(*first) + " waits for a warp of which it is no part");
}

void run_block() {
  SHIM_ON_TSAN(__tsan_release(start_fence));
  for (int i = 0; i < threads; ++i) prepare(fibers[i], i);
  while (message.empty()) {
    int done = 0;
    for (int i = 0; i < threads; ++i) {
      if (fibers[i].state == State::kReady) run(fibers[i]);
      done += fibers[i].state == State::kDone;
    }
    if (done == threads) break;
    const bool moved = release_warps();
    if (!release_block() && !moved) explain_deadlock();
  }
  SHIM_ON_TSAN(__tsan_acquire(end_fence));
}

bool refuse(const cudaLaunchConfig_t& c, const void* kernel) {
  const auto found = allowed_shared.find(kernel);
  const size_t limit = found == allowed_shared.end() ? kDefaultShared : found->second;
  const size_t size = size_t{c.blockDim.x} * c.blockDim.y * c.blockDim.z;
  if (size == 0 || size > kThreads) fail("a block of " + std::to_string(size) + " threads");
  if (c.gridDim.x == 0 || c.gridDim.y == 0 || c.gridDim.z == 0) fail("an empty grid");
  if (c.gridDim.x > 0x7fffffffu || c.gridDim.y > 65535 || c.gridDim.z > 65535) {
    fail("a grid that is too large");
  }
  if (c.dynamicSmemBytes > limit) {
    fail(std::to_string(c.dynamicSmemBytes) + " bytes of dynamic shared memory; allowed are " +
         std::to_string(limit));
  }
  return !message.empty();
}

}  // namespace

unsigned lane() {
  const uint3 i = current->index;
  return (i.x + blockDim.x * (i.y + blockDim.y * i.z)) % 32;
}

void barrier() { barrier_count(false); }

int barrier_count(bool value) {
  [[maybe_unused]] void* fence = block_fence[block_waits & 1];
  SHIM_ON_TSAN(__tsan_release(fence));
  block_count += value;
  current->state = State::kBlock;
  to_scheduler();
  SHIM_ON_TSAN(__tsan_acquire(fence));
  return block_result;
}

const uint64_t* exchange(unsigned mask, uint64_t value) {
  current->mask = mask;
  current->value = value;
  current->state = State::kWarp;
  to_scheduler();
  return current->received;
}

void warp_barrier(unsigned mask) {
  [[maybe_unused]] const unsigned parity = current->warp_waits++ & 1;
  SHIM_ON_TSAN(__tsan_release(current->fence[parity]));
  exchange(mask, uint64_t(reinterpret_cast<uintptr_t>(current->fence[parity])));
#ifdef SHIM_TSAN
  for (int l = 0; l < 32; ++l) {
    if (mask >> l & 1) __tsan_acquire(reinterpret_cast<void*>(current->received[l]));
  }
#endif
}

void copy_async(void* to, const void* from, size_t bytes, size_t zeros) {
  const auto address = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
  if ((bytes != 4 && bytes != 8 && bytes != 16) || address % bytes || zeros > bytes) {
    fail("an asynchronous copy of " + std::to_string(bytes) + " bytes is not aligned to them");
    bytes = 0;
  }
  SHIM_ON_TSAN(__tsan_write_range(to, bytes));
  fill(to, bytes, 0xff);
  current->open.push_back({to, from, bytes, zeros});
}

void copy_commit() {
  current->committed.push_back(std::move(current->open));
  current->open.clear();
}

void copy_wait(unsigned newest) {
  auto& groups = current->committed;
  while (groups.size() > newest) {
    for (const Copy& copy : groups.front()) {
      const size_t read = copy.bytes - copy.zeros;
      SHIM_ON_TSAN(__tsan_read_range(const_cast<void*>(copy.from), read));
      SHIM_ON_TSAN(__tsan_write_range(copy.to, copy.bytes));
      for (size_t i = 0; i < copy.bytes; ++i) {
        auto* to = static_cast<volatile unsigned char*>(copy.to);
        to[i] = i < read ? static_cast<const unsigned char*>(copy.from)[i] : 0;
      }
    }
    groups.erase(groups.begin());
  }
}

cudaError_t allow_shared(const void* kernel, int bytes) {
  if (bytes < 0 || size_t(bytes) > stein::kSharedLimit) {
    message = std::to_string(bytes) + " bytes of dynamic shared memory are more than a block has";
    return cudaErrorInvalidValue;
  }
  allowed_shared[kernel] = size_t(bytes);
  return cudaSuccess;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, void (*call)(void*),
                   void* body) {
  message.clear();
  if (refuse(config, kernel)) return cudaErrorInvalidConfiguration;
  blockDim = config.blockDim;
  gridDim = config.gridDim;
  threads = int(blockDim.x * blockDim.y * blockDim.z);
  while (int(fibers.size()) < threads) fibers.emplace_back();
  kernel_call = call;
  kernel_body = body;
  SHIM_ON_TSAN(scheduler_tsan = __tsan_get_current_fiber());
  const Range shared = shared_memory();
  for (unsigned z = 0; z < gridDim.z; ++z) {
    for (unsigned y = 0; y < gridDim.y; ++y) {
      for (unsigned x = 0; x < gridDim.x && message.empty(); ++x) {
        blockIdx = {x, y, z};
        fill(shared.begin, shared.bytes, 0xff);
        run_block();
        const size_t written = first_write_beyond(config.dynamicSmemBytes);
        if (written < stein::kSharedLimit) {
          fail("a thread wrote byte " + std::to_string(written) + " of dynamic shared memory, of " +
               "which " + std::to_string(config.dynamicSmemBytes) + " bytes were asked for");
        }
      }
    }
  }
  return message.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

}  // namespace shim

const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaSuccess) return "no error";
  return shim::message.empty() ? "refused by the shim" : shim::message.c_str();
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 2;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = 233472;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = int(stein::kSharedLimit);
      break;
  }
  return cudaSuccess;
}
