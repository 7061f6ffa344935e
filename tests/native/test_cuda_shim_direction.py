"""The CUDA direction and its backward on packed clouds, run on a CPU, against float64 formulas."""

from __future__ import annotations

import pytest
import torch

from tests.native import cuda_shim
from tests.native.packed import check, pack, pairs, poisoned, sum_columns, unpack

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
# (targets, sources, features): around the tiles of 64 rows, 64 columns and 16 features.
SIZES = [(1, 1, 1), (63, 130, 3), (64, 64, 16), (65, 63, 17), (130, 65, 33), (40, 200, 100)]
SIZES += [(3, 2, 128)]


@pytest.fixture(scope="module")
def kernels():
    return cuda_shim.library()


def cloud(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype)


def run_direction(kernels, y, x, u, w, h, *, same=False, direct=False, splits=1):
    (b, n, _), m = y.shape, x.shape[1]
    ys, xs = pack(y), pack(x)
    out = poisoned(ys, splits, *ys.shape)
    mass = poisoned(ys, splits, b, ys.shape[2])
    kernels.direction(
        *(ys, xs, pack(u), pack(w), h, out, mass, n, m, same, direct, "ieee"),
    )
    return unpack(out, n), unpack(mass, n)


def direction(y, x, u, w, h, same, direct):
    p = pairs(y, x, h, same)
    q = p.k * w.double()[:, None]
    out = sum_columns(q, u)
    if direct:
        out = out + p.c * (q.sum(-1)[:, None] * y.double().mT - sum_columns(q, x))
    return out, q.sum(-1)


@DTYPES
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("splits", [1, 2])
def test_direction(kernels, dtype, size, splits):
    n, m, d = size
    y, x, u = cloud(dtype, 2, n, d), cloud(dtype, 2, m, d), cloud(dtype, 2, m, d)
    w, h = torch.rand(2, m, dtype=dtype), torch.tensor([1.0 * d, 3.0 * d], dtype=dtype)
    for direct in (False, True)[: 2 if d <= 16 else 1]:
        found = run_direction(kernels, y, x, u, w, h, direct=direct, splits=splits)
        for actual, expected in zip(found, direction(y, x, u, w, h, False, direct), strict=True):
            check(actual, expected, TOLERANCE[dtype])


@DTYPES
@pytest.mark.parametrize(("m", "d"), [(1, 2), (64, 5), (130, 20), (129, 70)])
def test_direction_leaves_the_diagonal_out(kernels, dtype, m, d):
    x, u = cloud(dtype, 1, m, d), cloud(dtype, 1, m, d)
    w, h = torch.rand(1, m, dtype=dtype), torch.tensor([2.0 * d], dtype=dtype)
    found = run_direction(kernels, x, x, u, w, h, same=True, splits=2)
    for actual, expected in zip(found, direction(x, x, u, w, h, True, False), strict=True):
        check(actual, expected, TOLERANCE[dtype])


def test_a_long_sum_keeps_its_digits(kernels):
    """Weights of one sign: an uncompensated float32 sum would drift by a part in 1e6 and more."""
    m, dtype = 20000, torch.float32
    x = cloud(dtype, 1, m, 2) * 0.01
    w, h = torch.rand(1, m, dtype=dtype) + 0.3, torch.tensor([1.0])
    y, u = cloud(dtype, 1, 4, 2) * 0.01, torch.ones(1, m, 2, dtype=dtype)
    out, mass = run_direction(kernels, y, x, u, w, h)
    expected = direction(y, x, u, w, h, False, False)
    check(out, expected[0], 2e-7)
    check(mass, expected[1], 2e-7)


def test_direction_twice_gives_the_same_bits(kernels):
    x, w = cloud(torch.float32, 2, 100, 30), torch.rand(2, 100)
    first, second = (
        run_direction(kernels, x, x, x, w, torch.ones(2) * 30, same=True) for _ in range(2)
    )
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_nan_stays_in_its_set(kernels):
    x, w, h = cloud(torch.float32, 3, 70, 10), torch.rand(3, 70), torch.ones(3) * 10
    clean = run_direction(kernels, x, x, x, w, h, same=True)
    x[1, 5, 3] = float("nan")
    found = run_direction(kernels, x, x, x, w, h, same=True)
    for before, after in zip(clean, found, strict=True):
        assert torch.equal(before[[0, 2]], after[[0, 2]])
        assert after[1].isnan().any()


def test_direction_refuses_what_it_does_not_do(kernels):
    x = pack(cloud(torch.float32, 1, 5, 20))
    w, out, mass, h = x[:, 0].clone(), x[None].clone(), x[None, :, 0].clone(), torch.ones(1)
    arguments = [x, x, x, w, h, out, mass, 5, 5, True, False, "ieee"]

    def refused(text, **changed):
        now = [changed.get(f"a{i}", value) for i, value in enumerate(arguments)]
        with pytest.raises(RuntimeError, match=text):
            kernels.direction(*now)

    kernels.direction(*arguments)
    refused("precision", a11="tf32")
    refused("16 features", a10=True)
    refused("129 particles", a7=129)
    refused("shape", a3=w[:, :64])
    refused("one type", a4=h.double())
    refused("one type", a1=x.mT)
    refused("multiple|packed tensor", a0=x[..., :64].clone(), a5=out[..., :64].clone())


# --- the backward --------------------------------------------------------------------------------


def backward(rows, columns, h, same, as_source, as_target):
    """(out, scalars) by the formulas of csrc/cuda/direction_backward.cu; None where unwritten."""
    p = pairs(rows["x"], columns["x"], h, same)
    r = {key: value.double() for key, value in rows.items()}
    c = {key: value.double() for key, value in columns.items()}
    s, carried, mass, product = torch.zeros_like(p.k), None, None, None
    if as_target:
        a = r["v"] @ c["u"].mT + p.c * r["shift"][:, :, None]
        s = s + c["w"][:, None] * p.k * a
        mass = (c["w"][:, None] * p.k).sum(-1)
    if as_source:
        a = r["u"] @ c["v"].mT + p.c * c["shift"][:, None]
        s = s + r["w"][:, :, None] * p.k * a
        product = (p.k * a).sum(-1)
        carried = sum_columns(p.k, c["v"])
    return (sum_columns(s, c["x"]), carried), (s.sum(-1), mass, product)


def side(dtype, b, n, d):
    values = {key: cloud(dtype, b, n, d) for key in "xuv"}
    return {**values, "shift": cloud(dtype, b, n), "w": torch.rand(b, n, dtype=dtype)}


def run_backward(kernels, rows, columns, h, roles, splits):
    same, (as_source, as_target) = all(roles), roles
    (b, n, _), m = rows["x"].shape, columns["x"].shape[1]
    r = {key: pack(value) for key, value in rows.items()}
    c = {key: pack(value) for key, value in columns.items()}
    unread_row = (() if as_source else ("u", "w")) + (() if as_target else ("v", "shift"))
    unread_column = (() if as_target else ("u", "w")) + (() if as_source else ("v", "shift"))
    r |= dict.fromkeys(unread_row, r["x"])
    c |= dict.fromkeys(unread_column, c["x"])
    out = poisoned(r["x"], splits, 2, *r["x"].shape)
    scalars = poisoned(r["x"], splits, 3, b, r["x"].shape[2])
    keys = ("x", "u", "v", "shift", "w")
    kernels.direction_backward(
        *(r[key] for key in keys),
        *(c[key] for key in keys),
        *(h, out, scalars, n, m, same, as_source, as_target, "ieee"),
    )
    return unpack(out, n), unpack(scalars, n)


@DTYPES
@pytest.mark.parametrize("roles", [(True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize(
    ("n", "m", "d"), [(1, 1, 1), (65, 63, 16), (31, 130, 20), (64, 65, 40), (33, 70, 128)]
)
def test_direction_backward(kernels, dtype, roles, n, m, d):
    same = all(roles)
    rows = side(dtype, 2, n, d)
    columns = rows if same else side(dtype, 2, m, d)
    h = torch.tensor([2.0 * d, 4.0 * d], dtype=dtype)
    for splits in (1, 2):
        found = run_backward(kernels, rows, columns, h, roles, splits)
        expected = backward(rows, columns, h, same, roles[0], roles[1])
        for slots, wanted in zip(found, expected, strict=True):
            for slot, value in zip(slots, wanted, strict=True):
                if value is None:
                    assert slot.isnan().all()
                else:
                    check(slot, value, TOLERANCE[dtype])
