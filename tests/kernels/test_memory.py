"""Peak memory in a fresh process: at most 64 MB and twice the inputs, where M x N would be 1.6 GB.

The torch kernels promise a fixed chunk of pairs, not this budget.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.parametrize("kernels", ["compiled"], indirect=True),
    pytest.mark.skipif(
        not Path("/proc/self/clear_refs").exists(),
        reason="no /proc/self/clear_refs, which resets the peak of the resident memory",
    ),
]
SHAPES = [(20000, 3), (10000, 16), (100, 200000)]
# 32,768 sampled pairs say too little of the median of these; see median_distance.cpp
SAMPLES_THAT_MISLEAD = [((20000, 3), 16), ((40000, 3), 1)]
MEASURE = """
import torch
import stein_kernels as sk

torch.manual_seed({seed})

def resident(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024

shape = {shape}
x, grad = torch.randn(shape), torch.randn(shape)
inputs = sum(value.numel() * value.element_size() for value in (x, {inputs}))

def call(x, grad):
    {call}

call(torch.randn(64, 3), torch.randn(64, 3))  # loads the library and warms the allocator
with open("/proc/self/clear_refs", "w") as reset:
    reset.write("5")
before = resident("VmRSS:")
kept = call(x, grad)
print(resident("VmHWM:") - before, inputs)
"""
BACKWARD = """x = x.requires_grad_(); grad = grad.requires_grad_()
    phi = sk.svgd_direction(x, grad, bandwidth=1.0)
    return torch.autograd.grad(phi, (x, grad), torch.ones_like(phi))"""


def extra_memory(fresh_python, shape, call, inputs="grad", seed=0):
    """(peak above the start, bytes of the inputs) of a call in a process of its own."""
    done = fresh_python(MEASURE.format(shape=shape, call=call, inputs=inputs, seed=seed))
    assert done.returncode == 0, done.stderr
    return (int(word) for word in done.stdout.split())


@pytest.mark.parametrize("bandwidth", ["1.0", "'liu_wang'"])
@pytest.mark.parametrize("shape", SHAPES)
def test_direction(kernels, fresh_python, shape, bandwidth):
    call = f"return sk.svgd_direction(x, grad, bandwidth={bandwidth})"
    extra, inputs = extra_memory(fresh_python, shape, call)
    assert extra <= 64 * 2**20 + 2 * inputs


@pytest.mark.parametrize(("shape", "seed"), SAMPLES_THAT_MISLEAD)
def test_median(kernels, fresh_python, shape, seed):
    call = "return sk.median_bandwidth(x)"
    extra, inputs = extra_memory(fresh_python, shape, call, inputs="", seed=seed)
    assert extra <= 64 * 2**20 + 2 * inputs


def test_divergence(kernels, fresh_python):
    call = "return sk.stein_divergence(x, grad, bandwidth=1.0)"
    extra, inputs = extra_memory(fresh_python, (10000, 16), call)
    assert extra <= 64 * 2**20 + 2 * inputs


def test_median_of_long_rows(kernels, fresh_python):
    call = "return sk.median_bandwidth(x)"
    extra, inputs = extra_memory(fresh_python, (6000, 4096), call, inputs="")
    assert extra <= 64 * 2**20 + 2 * inputs


def test_gram_of_long_rows(kernels, fresh_python):
    call = "return sk.rbf_gram(x, bandwidth=1e6)"
    extra, inputs = extra_memory(fresh_python, (5, 2000000), call, inputs="")
    assert extra <= 64 * 2**20 + 2 * inputs


def test_backward_of_few_targets(kernels, fresh_python):
    """17 targets are 32 lanes: four matrices of pairs would be eight times the inputs."""
    call = BACKWARD.replace("bandwidth=1.0", "query=x[:17].detach(), bandwidth=1.0")
    extra, inputs = extra_memory(fresh_python, (1000000, 17), call)
    assert extra <= 64 * 2**20 + 3 * inputs


@pytest.mark.parametrize("shape", [(20000, 3), (100, 200000)])
def test_backward(kernels, fresh_python, shape):
    """One more of the inputs' size: the gradient that comes in, and those that go out."""
    extra, inputs = extra_memory(fresh_python, shape, BACKWARD)
    assert extra <= 64 * 2**20 + 3 * inputs


def test_median_by_torch_kernels(kernels, fresh_python):
    """Chunks of 2**22 pairs and what counts them; pairs by features would be 16 GB."""
    call = """from stein_kernels import testing
    with testing.composite_kernels():
        return sk.median_bandwidth(x)"""
    extra, _ = extra_memory(fresh_python, (4000, 256), call, inputs="")
    assert extra <= 400 * 2**20


def test_the_measure_sees_what_is_allocated(kernels, fresh_python):
    """A naive Gram matrix of 20000 particles is 1.6 GB; here 5000 of them, 100 MB."""
    call = "return torch.cdist(x, x)"
    extra, _ = extra_memory(fresh_python, (5000, 3), call)
    assert extra >= 100 * 10**6
