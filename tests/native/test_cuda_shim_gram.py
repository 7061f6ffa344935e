"""The CUDA Gram matrix and its backward on packed clouds, on a CPU, against float64 formulas."""

from __future__ import annotations

import pytest
import torch

from tests.native import cuda_shim
from tests.native.packed import check, pack, pairs, poisoned, sum_columns, unpack

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
HALVES = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
SIZES = [(1, 1, 1), (63, 130, 3), (64, 64, 16), (65, 300, 17), (130, 65, 33), (3, 2, 128)]


@pytest.fixture(scope="module")
def kernels():
    return cuda_shim.library()


@DTYPES
@pytest.mark.parametrize(("n", "m", "d"), SIZES)
def test_gram(kernels, dtype, n, m, d):
    x, y = torch.randn(2, n, d, dtype=dtype), torch.randn(2, m, d, dtype=dtype)
    h = torch.tensor([1.0 * d, 3.0 * d], dtype=dtype)
    out = poisoned(x, 2, n, m)
    kernels.gram(pack(x), pack(y), h, out, False)
    check(out.double(), pairs(x, y, h, False).k, TOLERANCE[dtype])
    out = poisoned(x, 2, n, n)
    kernels.gram(pack(x), pack(x), h, out, True)
    assert (out.diagonal(dim1=1, dim2=2) == 1).all()
    check(out.double(), pairs(x, x, h, False).k, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("m", [64, 67])
def test_gram_rounds_once(kernels, dtype, m):
    x, y, h = torch.randn(1, 50, 4), torch.randn(1, m, 4), torch.tensor([2.0])
    out = poisoned(x.to(dtype), 1, 50, m)
    kernels.gram(pack(x), pack(y), h, out, False)
    k = pairs(x, y, h, False).k
    assert ((out.double() - k).abs() <= HALVES[dtype] * k + 2**-25).all()


def test_gram_writes_rows_at_odd_addresses(kernels):
    x, h, m = torch.randn(1, 5, 3), torch.tensor([3.0]), 64
    memory = torch.full((5 * m + 2,), float("nan"))
    out = memory[1:-1].view(1, 5, m)
    y = torch.randn(1, m, 3)
    kernels.gram(pack(x), pack(y), h, out, False)
    check(out.double(), pairs(x, y, h, False).k, 2e-6)
    assert memory[[0, -1]].isnan().all()


@DTYPES
@pytest.mark.parametrize(("n", "m", "d"), [*SIZES, (40, 70, 60)])
def test_gram_backward(kernels, dtype, n, m, d):
    x, y = torch.randn(2, n, d, dtype=dtype), torch.randn(2, m, d, dtype=dtype)
    h = torch.tensor([1.0 * d, 3.0 * d], dtype=dtype)
    xs, ys = pack(x), pack(y)
    base = torch.randn(2, m, n, dtype=dtype)
    expanded = torch.randn(2, n, 1, dtype=dtype).expand(2, n, m)
    for v in (base.mT, base.mT.contiguous(), expanded):
        for splits in (1, 2):
            out = poisoned(xs, splits, *xs.shape)
            sums = poisoned(xs, splits, 2, xs.shape[2])
            kernels.gram_backward(xs, ys, v, h, out, sums, n, m, "ieee")
            q = pairs(x, y, h, False).k * v.double()
            check(unpack(out, n), sum_columns(q, y), TOLERANCE[dtype])
            check(unpack(sums, n), q.sum(-1), TOLERANCE[dtype])
