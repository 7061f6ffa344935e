"""Sets of long rows: inner products split over features, and the direction in one pass over them.

Rows are the user's tensors, features contiguous; everything is upcast as it is loaded. A set of up
to 128 particles is one tile: it is centred on its own mean as it goes, so x is read once for the
products and x and grad once for the direction. Larger sets are centred on a mean that is given.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def _load(base, index, count, step, feature, last, T: tl.constexpr):
    """Rows (index, feature) of one set in T, zero beyond the last particle and feature."""
    at = base + index.to(tl.int64)[:, None] * step + feature[None, :]
    mask = (index < count)[:, None] & (feature < last)[None, :]
    return tl.load(at, mask=mask, other=0.0).to(T)


@triton.jit
def _store(base, index, count, step, feature, last, value):
    at = base + index.to(tl.int64)[:, None] * step + feature[None, :]
    mask = (index < count)[:, None] & (feature < last)[None, :]
    tl.store(at, value.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _set_base(rows, member, total, step, UNIT: tl.constexpr):
    """Where a set begins: sets are ``total`` rows apart."""
    base = rows + member * total * step
    return tl.multiple_of(base, 16) if UNIT > 1 else base  # bytes


@triton.jit
def _centred(rows, index, count, centre):
    """Rows less a centre; those beyond the count stay zero."""
    return tl.where((index < count)[:, None], rows - centre[None, :], 0.0)


@triton.jit
def _own_centre(rows, count):
    return tl.sum(rows, 0) / count.to(rows.dtype)


INTEGERS = ["rows", "cols", "features", "span", "splits", "triangle", "origin", "blocks"]
INTEGERS += [f"{name}_{part}" for name in ("row", "col", "x", "grad", "y", "out") for part in "ts"]
POINTERS = ["row", "col", "row_centre", "col_centre", "partial", "coef", "mass", "own", "x", "grad"]
POINTERS += ["y", "centre", "h", "out", "first", "second", "factors"]


def _only(names: list[str], kernel: Any) -> list[str]:
    """Those of the names that are parameters of the kernel."""
    code = kernel.__code__
    parameters = code.co_varnames[: code.co_argcount]
    return [name for name in names if name in parameters]


def _jit(function: Any) -> Any:
    """Alignment and divisibility are what UNIT says, so nothing else is specialised."""
    return triton.jit(
        function,
        do_not_specialize=_only(INTEGERS, function),
        do_not_specialize_on_alignment=_only(POINTERS, function),
    )


@_jit
def products_kernel(
    row,  # (B, rows, d), sets row_t rows apart, rows row_s elements (of UNIT) apart
    col,
    row_centre,  # (B, d) of T; not read where WHOLE
    col_centre,
    partial,  # (splits, B, rows, cols) of T
    rows,
    cols,
    features,  # in units of UNIT, as every stride
    span,  # blocks of BK features of a split
    splits,
    triangle,  # rows are columns: tiles below the diagonal are left unwritten
    row_t,
    row_s,
    col_t,
    col_s,
    BR: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    WHOLE: tl.constexpr,
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """partial[s] = sum over the features of split s of (row_r - centre) . (col_c - centre).

    Blocks of BK features are added by Kahan's sum: tensor cores truncate as they accumulate.
    """
    T: tl.constexpr = partial.dtype.element_ty
    row_tiles, col_tiles = tl.cdiv(rows, BR), tl.cdiv(cols, BC)
    tiles = row_tiles * col_tiles
    program = tl.program_id(0)
    tile, rest = program % tiles, program // tiles
    sets = tl.num_programs(0) // (tiles * splits)
    split, member = rest % splits, (rest // splits).to(tl.int64)
    row_tile, col_tile = tile % row_tiles, tile // row_tiles
    if triangle != 0 and row_tile * BR >= (col_tile + 1) * BC:
        return
    r, c = row_tile * BR + tl.arange(0, BR), col_tile * BC + tl.arange(0, BC)
    d = features * UNIT
    row_step, col_step = row_s.to(tl.int64) * UNIT, col_s.to(tl.int64) * UNIT
    row_base = _set_base(row, member, row_t, row_step, UNIT)
    col_base = _set_base(col, member, col_t, col_step, UNIT)
    start = split * span * BK
    last = tl.multiple_of(tl.minimum(d, start + span * BK), UNIT)
    total, lost = tl.zeros([BR, BC], T), tl.zeros([BR, BC], T)
    for at in range(start, last, BK):
        f = at + tl.arange(0, BK)
        left = _load(row_base, r, rows, row_step, f, last, T)
        if WHOLE:
            shift = _own_centre(left, rows)
            left = _centred(left, r, rows, shift)
            right = left
            if BC < BR:
                right = _centred(_load(col_base, c, cols, col_step, f, last, T), c, cols, shift)
        else:
            shift = tl.load(row_centre + member * d + f, mask=f < last, other=0.0)
            left = _centred(left, r, rows, shift)
            right = _load(col_base, c, cols, col_step, f, last, T)
            shift = tl.load(col_centre + member * d + f, mask=f < last, other=0.0)
            right = _centred(right, c, cols, shift)
        block = tl.dot(left, tl.trans(right), input_precision=PRECISION, out_dtype=T)
        block -= lost
        risen = total + block
        lost = (risen - total) - block
        total = risen
    base = partial + (split.to(tl.int64) * sets + member) * rows * cols
    at = base + r.to(tl.int64)[:, None] * cols + c[None, :]
    tl.store(at, total, mask=(r < rows)[:, None] & (c < cols)[None, :])


@triton.jit
def _descend(param, at, mask, phi, first, second, factors):
    """Adam with decoupled decay on the gradient -phi; ``factors`` as in ``long_direction_adam``."""
    step_size, root = tl.load(factors), tl.load(factors + 1)
    keep_first, take_first = tl.load(factors + 2), tl.load(factors + 3)
    keep_second, take_second = tl.load(factors + 4), tl.load(factors + 5)
    eps, decay = tl.load(factors + 6), tl.load(factors + 7)
    moment = tl.load(first + at, mask=mask, other=0.0)
    square = tl.load(second + at, mask=mask, other=0.0)
    moment = keep_first * moment - take_first * phi
    square = keep_second * square + take_second * phi * phi
    tl.store(first + at, moment, mask=mask)
    tl.store(second + at, square, mask=mask)
    return param * decay - step_size * moment / (tl.sqrt(square) * root + eps)


@_jit
def whole_kernel(
    coef,  # (B, rows, rows) of T: w_i k_ij, source first, 0 at the pair of a particle with itself
    mass,  # (B, rows) of T: sum_i coef_ij
    own,  # (B, rows) of T: the factor of a target's own score
    x,  # (B, rows, d), sets x_t rows apart, rows x_s elements (of UNIT) apart; written where ADAM
    grad,
    h,
    out,  # (B, rows, d); x itself where ADAM
    first,  # (B, rows, d) of T, contiguous; read and written where ADAM
    second,
    factors,
    rows,
    features,
    blocks,  # of BF features, for one program
    x_t,
    x_s,
    grad_t,
    grad_s,
    out_t,
    out_s,
    P: tl.constexpr,
    BF: tl.constexpr,
    ADAM: tl.constexpr,
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """phi_j = sum_i coef_ij (g_i - c x_i) + c mass_j x_j + own_j g_j, x centred on its mean."""
    T: tl.constexpr = coef.dtype.element_ty
    d = features * UNIT
    runs = tl.cdiv(tl.cdiv(d, BF), blocks)
    program = tl.program_id(0)
    run, member = program % runs, (program // runs).to(tl.int64)
    x_step, grad_step = x_s.to(tl.int64) * UNIT, grad_s.to(tl.int64) * UNIT
    out_step = out_s.to(tl.int64) * UNIT
    x_base = _set_base(x, member, x_t, x_step, UNIT)
    grad_base = _set_base(grad, member, grad_t, grad_step, UNIT)
    out_base = _set_base(out, member, out_t, out_step, UNIT)
    first_base = _set_base(first, member, rows, d, UNIT)
    second_base = _set_base(second, member, rows, d, UNIT)
    i = tl.arange(0, P)
    present = i < rows
    pairs = present[:, None] & present[None, :]
    weight = tl.load(
        coef + member * rows * rows + i[None, :] * rows + i[:, None], mask=pairs, other=0.0
    )
    c = 2.0 / tl.load(h + member)
    shift = c * tl.load(mass + member * rows + i, mask=present, other=0.0)
    own_weight = tl.load(own + member * rows + i, mask=present, other=0.0)
    sign = tl.load(factors + 8) if ADAM else 1.0
    start = run * blocks * BF
    last = tl.multiple_of(tl.minimum(d, start + blocks * BF), UNIT)
    for at in range(start, last, BF):
        f = at + tl.arange(0, BF)
        raw = _load(x_base, i, rows, x_step, f, last, T)
        g = _load(grad_base, i, rows, grad_step, f, last, T)
        if ADAM:
            g *= sign
        centred = _centred(raw, i, rows, _own_centre(raw, rows))
        phi = tl.dot(weight, g - c * centred, input_precision=PRECISION, out_dtype=T)
        phi += shift[:, None] * centred + own_weight[:, None] * g
        if ADAM:
            place = i.to(tl.int64)[:, None] * d + f[None, :]
            mask = present[:, None] & (f < last)[None, :]
            phi = _descend(raw, place, mask, phi, first_base, second_base, factors)
        _store(out_base, i, rows, out_step, f, last, phi)


@_jit
def large_kernel(
    coef,  # (B, rows, cols) of T: w_i k_ij, source first, 0 at the pair of a particle with itself
    mass,  # (B, cols) of T
    own,  # (B, cols) of T; read where origin >= 0
    x,  # (B, rows, d): sources; written where ADAM
    grad,
    y,  # (B, cols, d): targets; where origin >= 0 they are sources, from that one on
    h,
    out,  # (B, cols, d); x itself where ADAM
    first,  # (B, rows, d) of T, contiguous; read and written where ADAM
    second,
    factors,
    rows,
    cols,
    features,
    origin,
    x_t,
    x_s,
    grad_t,
    grad_s,
    y_t,
    y_s,
    out_t,
    out_s,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BF: tl.constexpr,
    ADAM: tl.constexpr,
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The same for any number of sources and targets: a tile of targets by a block of features.

    The mean of the first BM sources serves as the centre: any point inside the cloud does. Where
    ADAM one program has all targets, and has read all sources of its features when it writes.
    """
    T: tl.constexpr = coef.dtype.element_ty
    d = features * UNIT
    tiles = tl.cdiv(cols, BN)
    program = tl.program_id(0)
    tile, rest = program % tiles, program // tiles
    runs = tl.cdiv(d, BF)
    at, member = rest % runs * BF, (rest // runs).to(tl.int64)
    x_step, grad_step = x_s.to(tl.int64) * UNIT, grad_s.to(tl.int64) * UNIT
    y_step, out_step = y_s.to(tl.int64) * UNIT, out_s.to(tl.int64) * UNIT
    x_base = _set_base(x, member, x_t, x_step, UNIT)
    grad_base = _set_base(grad, member, grad_t, grad_step, UNIT)
    y_base = _set_base(y, member, y_t, y_step, UNIT)
    out_base = _set_base(out, member, out_t, out_step, UNIT)
    j, f = tile * BN + tl.arange(0, BN), at + tl.arange(0, BF)
    c = 2.0 / tl.load(h + member)
    sign = tl.load(factors + 8) if ADAM else 1.0
    nearest = tl.arange(0, BM)
    centre = _own_centre(_load(x_base, nearest, rows, x_step, f, d, T), tl.minimum(rows, BM))
    total, lost = tl.zeros([BN, BF], T), tl.zeros([BN, BF], T)
    for begin in range(0, rows, BM):
        i = begin + nearest
        weight = tl.load(
            coef + (member * rows + i)[None, :] * cols + j[:, None],
            mask=(j < cols)[:, None] & (i < rows)[None, :],
            other=0.0,
        )
        source = _load(x_base, i, rows, x_step, f, d, T)
        drive = _load(grad_base, i, rows, grad_step, f, d, T) * sign
        drive -= c * _centred(source, i, rows, centre)
        block = tl.dot(weight, drive, input_precision=PRECISION, out_dtype=T) - lost
        risen = total + block
        lost = (risen - total) - block
        total = risen
    target = _load(y_base, j, cols, y_step, f, d, T)
    pull = c * tl.load(mass + member * cols + j, mask=j < cols, other=0.0)
    total += pull[:, None] * (target - centre[None, :])
    if origin >= 0:
        factor = tl.load(own + member * cols + j, mask=j < cols, other=0.0)
        score = _load(grad_base, origin + j, origin + cols, grad_step, f, d, T)
        total += factor[:, None] * (score * sign)
    if ADAM:
        place = j.to(tl.int64)[:, None] * d + f[None, :]
        mask = (j < cols)[:, None] & (f < d)[None, :]
        first_base = _set_base(first, member, rows, d, UNIT)
        second_base = _set_base(second, member, rows, d, UNIT)
        total = _descend(target, place, mask, total, first_base, second_base, factors)
    _store(out_base, j, cols, out_step, f, d, total)
