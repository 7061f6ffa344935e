"""The CUDA divergence and its backward on packed clouds, run on a CPU, against float64 formulas."""

from __future__ import annotations

import pytest
import torch

from tests.native import cuda_shim
from tests.native.packed import check, pack, pairs, poisoned, sum_columns, unpack

TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-13}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


@pytest.fixture(scope="module")
def kernels():
    return cuda_shim.library()


def run_divergence(kernels, y, x, g, w, h, *, same=False, splits=1):
    n, m = y.shape[1], x.shape[1]
    ys, xs = pack(y), pack(x)
    out = poisoned(ys, splits, *ys[:, 0].shape)
    along = pack((g * x).sum(-1))
    kernels.divergence(ys, xs, pack(g), along, pack(w), h, out, n, m, same, "ieee")
    return unpack(out, n)


def divergence(y, x, g, w, h, same):
    p = pairs(y, x, h, same)
    e = y.double() @ g.double().mT - (g.double() * x.double()).sum(-1)[:, None]
    t = p.c * x.shape[-1] - p.c**2 * p.r2 - p.c * e
    return (w.double()[:, None] * p.k * t).sum(-1)


@DTYPES
@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize(
    ("n", "m", "d"),
    [(1, 1, 1), (63, 130, 3), (64, 64, 16), (65, 63, 17), (130, 65, 33), (3, 2, 128)],
)
def test_divergence(kernels, dtype, splits, n, m, d):
    y, x, g = (torch.randn(2, count, d, dtype=dtype) for count in (n, m, m))
    w, h = torch.rand(2, m, dtype=dtype), torch.tensor([1.0 * d, 3.0 * d], dtype=dtype)
    found = run_divergence(kernels, y, x, g, w, h, splits=splits)
    check(found, divergence(y, x, g, w, h, False), TOLERANCE[dtype])
    found = run_divergence(kernels, x, x, g, w, h, same=True, splits=splits)
    check(found, divergence(x, x, g, w, h, True), TOLERANCE[dtype])


def test_nan_stays_in_its_set(kernels):
    x, w, h = torch.randn(3, 70, 10), torch.rand(3, 70), torch.ones(3) * 10
    clean = run_divergence(kernels, x, x, x, w, h, same=True)
    x[1, 5, 3] = float("nan")
    found = run_divergence(kernels, x, x, x, w, h, same=True)
    assert torch.equal(clean[[0, 2]], found[[0, 2]])
    assert found[1].isnan().any()


# --- the backward --------------------------------------------------------------------------------


def side(dtype, b, n, d):
    x, g = torch.randn(2, b, n, d, dtype=dtype)
    w, v = torch.rand(b, n, dtype=dtype), torch.randn(b, n, dtype=dtype)
    return {"x": x, "g": g, "along": (g * x).sum(-1), "w": w, "v": v}


def backward(rows, columns, h, same, as_source, as_target):
    """(out, scalars) by the formulas of csrc/cuda/divergence_backward.cu; None where unwritten."""
    p = pairs(rows["x"], columns["x"], h, same)
    r = {key: value.double() for key, value in rows.items()}
    c = {key: value.double() for key, value in columns.items()}
    near = p.c * r["x"].shape[-1] - p.c**2 * p.r2
    moving, scored, carried, mass, product = torch.zeros_like(p.k), None, None, None, None
    if as_target:
        t = near - p.c * (r["x"] @ c["g"].mT - c["along"][:, None])
        q = c["w"][:, None] * p.k * r["v"][:, :, None]
        moving = moving - 2 * q * (t / p.h + p.c**2)
        scored = sum_columns(q, c["g"])
    if as_source:
        t = near - p.c * (r["g"] @ c["x"].mT - r["along"][:, :, None])
        q = r["w"][:, :, None] * p.k * c["v"][:, None]
        moving = moving - 2 * q * (t / p.h + p.c**2)
        carried, mass = sum_columns(q, c["x"]), q.sum(-1)
        product = (p.k * c["v"][:, None] * t).sum(-1)
    return (sum_columns(moving, c["x"]), scored, carried), (moving.sum(-1), mass, product)


@DTYPES
@pytest.mark.parametrize("roles", [(True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize(
    ("n", "m", "d"), [(1, 1, 1), (65, 63, 16), (31, 130, 20), (64, 65, 40), (33, 70, 128)]
)
def test_divergence_backward(kernels, dtype, roles, n, m, d):
    same, (as_source, as_target) = all(roles), roles
    rows = side(dtype, 2, n, d)
    columns = rows if same else side(dtype, 2, m, d)
    m = n if same else m
    h = torch.tensor([2.0 * d, 4.0 * d], dtype=dtype)
    r, c = ({key: pack(value) for key, value in end.items()} for end in (rows, columns))
    r |= dict.fromkeys((() if as_source else ("g", "along", "w")), r["x"])
    r |= dict.fromkeys((() if as_target else ("v",)), r["x"])
    c |= dict.fromkeys((() if as_target else ("g", "along", "w")), c["x"])
    c |= dict.fromkeys((() if as_source else ("v",)), c["x"])
    for splits in (1, 2):
        out = poisoned(r["x"], splits, 3, *r["x"].shape)
        scalars = poisoned(r["x"], splits, 3, 2, r["x"].shape[2])
        kernels.divergence_backward(
            *(r[key] for key in ("x", "g", "along", "w", "v")),
            *(c[key] for key in ("x", "g", "along", "w", "v")),
            *(h, out, scalars, n, m, same, as_source, as_target, "ieee"),
        )
        expected = backward(rows, columns, h, same, as_source, as_target)
        found = unpack(out, n), unpack(scalars, n)
        for slots, wanted in zip(found, expected, strict=True):
            for slot, value in zip(slots, wanted, strict=True):
                if value is None:
                    assert slot.isnan().all()
                else:
                    check(slot, value, TOLERANCE[dtype])
