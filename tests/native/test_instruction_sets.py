"""Every instruction set that the CPU kernels are compiled for gives the same results.

torch's own switch chooses: ATEN_CPU_CAPABILITY is read once per process, so each runs in its own.
"""

from __future__ import annotations

import pytest
import torch

from stein_kernels import _extension

CODE = """
import torch
import stein_kernels
from stein_kernels import _extension, median_bandwidth, reference
assert _extension.status().module.instruction_set() == {name!r}
torch.manual_seed(0)
worst = 0.0
for dtype, limit in ((torch.float32, 2e-6), (torch.float64, 1e-13)):
    for shape in ((3, 20, 32), (2, 101, 50), (1, 67, 3), (1, 300, 17), (1, 9, 5000)):
        x = torch.randn(shape, dtype=dtype, requires_grad=True)
        g = torch.randn(shape, dtype=dtype, requires_grad=True)
        v = torch.randn(shape, dtype=dtype)
        h = median_bandwidth(x)
        def all_of(library, x, g, v, h):
            phi = library.svgd_direction(x, g, bandwidth=h)
            yield phi
            yield from torch.autograd.grad(phi, (x, g), v)
            yield library.stein_divergence(x, g, bandwidth=h)
            yield library.rbf_gram(x, bandwidth=h)
            yield library.median_bandwidth(x)
        wide = [t.detach().double().requires_grad_(t.requires_grad) for t in (x, g, v, h)]
        for got, want in zip(all_of(stein_kernels, x, g, v, h), all_of(reference, *wide)):
            error = ((got - want).abs().max() / want.abs().max()).item()
            assert error <= limit, (dtype, shape, error)
            worst = max(worst, error)
print("worst", worst)
"""


@pytest.mark.parametrize(
    ("capability", "name"), [("default", "DEFAULT"), ("avx2", "AVX2"), ("avx512", "AVX512")]
)
def test_instruction_set(capability, name, fresh_python):
    if _extension.status().module is None:
        pytest.skip("the C++ kernels are not built")
    order = ["DEFAULT", "AVX2", "AVX512"]
    here = torch.backends.cpu.get_cpu_capability()
    if here not in order or order.index(here) < order.index(name):
        pytest.skip(f"this processor has no {name}")
    result = fresh_python(CODE.format(name=name), ATEN_CPU_CAPABILITY=capability)
    assert result.returncode == 0, result.stderr
