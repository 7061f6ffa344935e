"""The shim runs CUDA's execution model, and says so where a kernel breaks its rules."""

from __future__ import annotations

import ctypes
import math
import shutil

import pytest

from tests.native import cuda_shim

KERNELS = """
#include "platform.cuh"

using namespace stein;

// Sums of each block's threads, by shuffles through static shared memory.
__global__ void sums(const float* in, float* out) {
  __shared__ float scratch[32];
  const float sum = block_reduce(in[blockIdx.x * 96 + threadIdx.x], scratch, 0.0f);
  if (threadIdx.x == 95) out[blockIdx.x] = sum;
}

template <class T>
__global__ void reverse(T* values) {
  T* shared = dynamic_shared<T>();
  shared[threadIdx.x] = values[threadIdx.x];
  __syncthreads();
  values[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

__global__ void unequal_barrier(float*) {
  if (threadIdx.x < 40) __syncthreads();
}

__global__ void unequal_warp(float*) {
  if (threadIdx.x % 32 < 7) __syncwarp();
}

template <class T>
__global__ void read_unset(float* out) {
  __shared__ T unset[64];
  out[threadIdx.x] = unset[threadIdx.x];
  unset[threadIdx.x] = 1;
}

__global__ void overrun(float* out) {
  dynamic_shared<float>()[threadIdx.x + 1] = out[threadIdx.x];
}

template <bool wait>
__global__ void stream(float* values) {
  float* shared = dynamic_shared<float>();
  __pipeline_memcpy_async(shared + 4 * threadIdx.x, values + 4 * threadIdx.x, 16);
  __pipeline_commit();
  if (wait) __pipeline_wait_prior(0);
  for (int i = 0; i < 4; ++i) values[4 * threadIdx.x + i] = 2 * shared[4 * threadIdx.x + i];
}

__global__ void misaligned(float* values) {
  __pipeline_memcpy_async(dynamic_shared<float>() + threadIdx.x, values, 16);
}

__global__ void histogram(float* out) {
  __shared__ unsigned counts[4];
  if (threadIdx.x < 4) counts[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(&counts[threadIdx.x % 4], threadIdx.x);
  __syncthreads();
  if (threadIdx.x < 4) out[threadIdx.x] = counts[threadIdx.x];
  const unsigned low = __ballot_sync(kAllLanes, threadIdx.x % 32 < 5);
  if (threadIdx.x == 40) out[4] = low;
  const int next = __shfl_down_sync(kAllLanes, int(threadIdx.x), 1);
  if (threadIdx.x == 31) out[5] = next;
  if (threadIdx.x == 33) out[6] = next;
}

#define RUN(name, kernel, grid, block, shared, ...)                        \\
  extern "C" const char* name(float* a, float* b) {                        \\
    return cudaGetErrorString(                                             \\
        launch(kernel, Index{grid}, dim3(block), shared, nullptr, __VA_ARGS__)); \\
  }
RUN(run_sums, sums, 3, 96, 0, (const float*)a, b)
RUN(run_reverse, reverse<float>, 1, 64, 256, a)
RUN(run_reverse_small, reverse<float>, 1, 64, 252, a)
RUN(run_reverse_large, reverse<float>, 1, 64, 300000, a)
RUN(run_unequal_barrier, unequal_barrier, 1, 64, 0, a)
RUN(run_unequal_warp, unequal_warp, 1, 64, 0, a)
RUN(run_read_unset, read_unset<float>, 2, 64, 0, a)
RUN(run_overrun, overrun, 1, 64, 256, a)
RUN(run_stream, stream<true>, 1, 16, 1024, a)
RUN(run_stream_early, stream<false>, 1, 16, 1024, a)
RUN(run_misaligned, misaligned, 1, 16, 1024, a)
RUN(run_histogram, histogram, 1, 64, 0, b)
RUN(run_nothing, reverse<float>, 0, 64, 256, a)
RUN(run_too_many_threads, reverse<float>, 1, 1025, 0, a)
"""

N = 300


@pytest.fixture(scope="module")
def run():
    if shutil.which(cuda_shim.CXX) is None:
        pytest.skip(f"no C++ compiler: {cuda_shim.CXX} is not on the PATH")
    with cuda_shim.cache() as directory:
        source = directory / "toy.cu"
        source.write_text(KERNELS)
        files = [cuda_shim.SHIM / "runtime.cpp", source]
        objects = [
            cuda_shim.compile_object(path, cuda_shim.KERNEL, directory=directory) for path in files
        ]
        toy = ctypes.CDLL(str(cuda_shim.link(objects, ["-Wl,--no-undefined"], name="toy")))

    def call(name: str) -> tuple[str, list[float], list[float]]:
        a, b = (ctypes.c_float * N)(*range(N)), (ctypes.c_float * N)()
        function = getattr(toy, f"run_{name}")
        function.restype = ctypes.c_char_p
        return function(a, b).decode(), list(a), list(b)

    return call


def test_blocks_shuffles_and_barriers(run):
    error, a, b = run("sums")
    assert error == "no error"
    assert b[:3] == [sum(a[96 * i : 96 * i + 96]) for i in range(3)]


def test_dynamic_shared_memory(run):
    error, a, _ = run("reverse")
    assert error == "no error"
    assert a[:65] == [*range(63, -1, -1), 64]


def test_atomics_ballots_and_shuffles(run):
    error, _, b = run("histogram")
    assert error == "no error"
    assert b[:7] == [*(sum(range(i, 64, 4)) for i in range(4)), 31, 31, 34]


def test_asynchronous_copies_arrive_at_the_wait(run):
    error, a, _ = run("stream")
    assert error == "no error"
    assert a[:65] == [*range(0, 128, 2), 64]
    _, a, _ = run("stream_early")
    assert all(math.isnan(value) for value in a[:64])


def test_shared_memory_starts_as_nan_in_every_block(run):
    error, a, _ = run("read_unset")
    assert error == "no error"
    assert all(math.isnan(value) for value in a[:64])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("unequal_barrier", "waits in __syncthreads(), which"),
        ("unequal_warp", "waits for its warp, which"),
        ("overrun", "wrote byte 256 of dynamic shared memory"),
        ("reverse_small", "wrote byte 252 of dynamic shared memory"),
        ("reverse_large", "300000 bytes of dynamic shared memory"),
        ("misaligned", "is not aligned"),
        ("too_many_threads", "a block of 1025 threads"),
    ],
)
def test_broken_rules_are_errors(run, name, text):
    assert text in run(name)[0]


def test_a_launch_of_nothing_is_no_error(run):
    error, a, _ = run("nothing")
    assert error == "no error"
    assert a == list(range(N))
