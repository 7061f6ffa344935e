"""Kernels of the exact median, described in ``median.py``: sample, pass, refine."""

from __future__ import annotations

import triton
import triton.language as tl

from stein_kernels.triton import tiles

BINS = tl.constexpr(2048)
FIELDS = tl.constexpr(8)
# Fields of the state. Separated: the first rank is the largest below LOW, the second the smallest
# not below it, and a pass looks for these two.
LOW = tl.constexpr(0)  # first bits of the bracket
HIGH = tl.constexpr(1)  # bits after its last
STATUS = tl.constexpr(2)
BELOW = tl.constexpr(3)  # pairs below LOW, counted by the pass
FIRST = tl.constexpr(4)  # bits of the two middle squared distances
SECOND = tl.constexpr(5)
LOST = tl.constexpr(6)  # pairs that were counted and not kept though their bucket had room
SEARCHING = tl.constexpr(0)
SEPARATED = tl.constexpr(1)
DONE = tl.constexpr(2)
ABOVE_ALL = tl.constexpr(0x7FFFFFFFFFFFFFFF)
_HELD = tl.constexpr(2048)  # values of a bin that a refine looks at together
_PITCH = tl.constexpr(128)  # particles that a packed cloud is padded to a multiple of


@triton.jit
def _origin(points, part, count, features, STORED: tl.constexpr):
    """Where a set begins, and its elements from one row to the next."""
    if STORED:
        pitch = count.to(tl.int64)
        rows = count
    else:
        pitch = tl.cdiv(count, _PITCH).to(tl.int64) * _PITCH
        rows = features
    return points + part.to(tl.int64) * rows * pitch, pitch


@triton.jit
def _bits(value):
    """The bits of T as an integer of its size."""
    if value.dtype == tl.float64:
        return value.to(tl.int64, bitcast=True)
    else:
        return value.to(tl.int32, bitcast=True)


@triton.jit
def _value(bits, like):
    """T from int64 bits."""
    if like.dtype == tl.float64:
        return bits.to(tl.float64, bitcast=True)
    else:
        return bits.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _bin_bits(low, high):
    """log2 of the width of a bin: the bracket has at most BINS of them."""
    shift = 0
    while ((high - low - 1) >> shift) >= BINS:
        shift += 1
    return shift


@triton.jit
def _mixed(x):
    """A permutation of 32-bit words whose output bits depend on all input bits (murmur3)."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit(do_not_specialize=["count", "features", "size", "programs"])
def median_sample_kernel(
    points, sample, count, features, size, programs, STORED: tl.constexpr, BLOCK: tl.constexpr
):
    program = tl.program_id(0)
    part = program // programs
    place = (program % programs) * BLOCK + tl.arange(0, BLOCK)
    base, pitch = _origin(points, part, count, features, STORED)
    word = place.to(tl.uint32)
    m = count.to(tl.uint64)
    i = ((_mixed(word * 2 + 1).to(tl.uint64) * m) >> 32).to(tl.int64)
    j = i + 1 + ((_mixed(word * 2 + 2).to(tl.uint64) * (m - 1)) >> 32).to(tl.int64)
    j = tl.where(j >= count, j - count, j)
    if STORED:
        total = tl.load(base + tl.minimum(i, j) * pitch + tl.maximum(i, j))
    else:
        total = tl.zeros([BLOCK], points.dtype.element_ty)
        for feature in range(features):
            row = base + feature * pitch
            difference = tl.load(row + i) - tl.load(row + j)
            total += difference * difference
    tl.store(sample + part.to(tl.int64) * size + place, total, mask=place < size)


@triton.jit
def _squared(base, pitch, count, features, first, last, SHAPE: tl.constexpr, STORED: tl.constexpr):
    """Squared distances of a tile of pairs; NaN where there is no pair i < j."""
    BR: tl.constexpr = SHAPE[0]
    BC: tl.constexpr = SHAPE[1]
    RI: tl.constexpr = SHAPE[2]
    CI: tl.constexpr = SHAPE[3]
    row = tiles.pair_rows(first, SHAPE)
    column = tiles.pair_columns(last, SHAPE)
    nothing = float("nan")
    if STORED:
        pair = (row < column) & (column < count)
        total = tl.load(base + row.to(tl.int64) * pitch + column, mask=pair, other=nothing)
    else:
        total = tl.zeros([RI, CI, BR // RI, BC // CI], base.dtype.element_ty)
        rows = base + row
        columns = base + column
        for _ in range(features):
            difference = tl.load(rows) - tl.load(columns)
            total += difference * difference
            rows += pitch
            columns += pitch
        if first == last:
            total = tl.where(row < column, total, nothing)
    return tl.reshape(total, (BR * BC,))  # as the threads hold it: nothing moves


@triton.jit
def _ends(value, edge, below, above):
    """Bits of the largest value below an edge and of the smallest not below it, so far."""
    floor = _value(edge, value)
    most = tl.max(tl.where(value < floor, value, 0.0), axis=None)
    least = tl.min(tl.where(value >= floor, value, float("inf")), axis=None)
    below = tl.maximum(below, _bits(most).to(tl.int64))
    return below, tl.minimum(above, _bits(least).to(tl.int64))


@triton.jit
def _collect(value, low, high, shift, histogram, buckets, depth):
    """How many values lie below the bracket; those inside are counted into bins and kept."""
    floor = _value(low, value)
    below = tl.sum((value < floor).to(tl.int32))
    inside = (value >= floor) & (value <= _value(high - 1, value))
    bits = _bits(value)
    bin = ((bits - low.to(bits.dtype)) >> shift).to(tl.int32) & (BINS - 1)
    one = tl.full(value.shape, 1, tl.int64)
    slot = tl.atomic_add(histogram + bin, one, mask=inside, sem="relaxed")
    tl.store(buckets + bin * depth + slot.to(tl.int32), value, mask=inside & (slot < depth))
    return below


@triton.jit(do_not_specialize=["count", "features", "programs", "rows", "depth"])
def median_pass_kernel(
    points,
    state,
    histogram,
    buckets,
    count,
    features,
    programs,
    rows,
    depth,
    SHAPE: tl.constexpr,
    STORED: tl.constexpr,
):
    part = tl.program_id(0) // programs
    turn = tl.program_id(0) % programs
    state += part.to(tl.int64) * FIELDS
    status = tl.load(state + STATUS)
    if status == DONE:
        return
    base, pitch = _origin(points, part, count, features, STORED)
    shared = part.to(tl.int64) * rows + turn % rows
    histogram += shared * BINS
    buckets += shared * BINS * depth
    low = tl.load(state + LOW)
    high = tl.load(state + HIGH)
    shift = _bin_bits(low, high)

    # Tile t pairs row tile t % T with the one t // T further on, around the end: every pair of
    # tiles once for t < T (T + 1) / 2, and one step of `programs` needs no division.
    across = tl.cdiv(count, SHAPE[0])
    turns = (across.to(tl.int64) * (across + 1) // 2 - turn + programs - 1) // programs
    tile = turn % across
    ahead = turn // across
    below = tl.zeros([], tl.int64)  # how many; where the ranks are separated, the largest
    above = tl.full([], ABOVE_ALL, tl.int64)
    for _ in range(turns.to(tl.int32)):
        other = tile + ahead
        other = tl.where(other >= across, other - across, other)
        first = tl.minimum(tile, other)
        last = tl.maximum(tile, other)
        value = _squared(base, pitch, count, features, first, last, SHAPE, STORED)
        if status == SEPARATED:
            below, above = _ends(value, low, below, above)
        else:
            below += _collect(value, low, high, shift, histogram, buckets, depth)
        tile += programs % across
        ahead += programs // across
        around = (tile >= across).to(tl.int32)
        tile -= around * across
        ahead += around
    if status == SEPARATED:
        tl.atomic_max(state + FIRST, below, sem="relaxed")
        tl.atomic_min(state + SECOND, above, sem="relaxed")
    else:
        tl.atomic_add(state + BELOW, below, sem="relaxed")


@triton.jit
def _select(buckets, histogram, bin, rank, low, shift, ROWS: tl.constexpr, DEPTH: tl.constexpr):
    """Bits of the value of this rank in a bin that begins at ``low`` and is 2^shift wide."""
    PART: tl.constexpr = min(ROWS, _HELD // DEPTH)
    slot = tl.arange(0, DEPTH)
    found = tl.zeros([], tl.int64)
    for step in range(shift):
        trial = found + (tl.full([], 1, tl.int64) << (shift - 1 - step))
        less = tl.zeros([], tl.int32)
        for first in range(0, ROWS, PART):
            row = (first + tl.arange(0, PART)).to(tl.int64) * BINS + bin
            kept = slot[None, :] < tl.load(histogram + row)[:, None]
            at = buckets + row[:, None] * DEPTH + slot[None, :]
            bits = _bits(tl.load(at, mask=kept, other=0.0))
            less += tl.sum((kept & (bits < (low + trial).to(bits.dtype))).to(tl.int32))
        found = tl.where(less <= rank, trial, found)
    return low + found


@triton.jit
def _settle(state, first, second):
    tl.store(state + FIRST, first)
    tl.store(state + SECOND, second)
    tl.store(state + STATUS, DONE)


@triton.jit
def _separate(state, edge):
    tl.store(state + LOW, edge)
    tl.store(state + FIRST, 0)
    tl.store(state + SECOND, ABOVE_ALL)
    tl.store(state + STATUS, SEPARATED)


@triton.jit
def _narrow(state, low, high):
    tl.store(state + LOW, low)
    tl.store(state + HIGH, high)


@triton.jit
def _inside(
    state,
    histogram,
    buckets,
    counts,
    first,
    second,
    low,
    high,
    R: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Both ranks, counted from the bracket's begin, are in it."""
    shift = _bin_bits(low, high)
    bins = tl.arange(0, BINS)
    upto = tl.cumsum(counts, 0)
    a = tl.sum((upto <= first).to(tl.int32))
    b = tl.sum((upto <= second).to(tl.int32))
    width = tl.full([], 1, tl.int64) << shift
    begin = low + a * width
    end = tl.minimum(begin + width, high)
    row = tl.arange(0, R) * BINS
    in_a = tl.load(histogram + row + a)
    in_b = tl.load(histogram + row + b)
    fits = (tl.max(tl.maximum(in_a, in_b)) <= DEPTH) & (tl.load(state + LOST) == 0)
    if shift == 0:
        _settle(state, begin, low + b)
    elif fits:
        if DEPTH > 0:
            first -= tl.sum(tl.where(bins < a, counts, 0))
            second -= tl.sum(tl.where(bins < b, counts, 0))
            lower = _select(buckets, histogram, a, first, begin, shift, R, DEPTH)
            upper = _select(buckets, histogram, b, second, low + b * width, shift, R, DEPTH)
            _settle(state, lower, upper)
    elif a == b:
        _narrow(state, begin, end)
    else:
        _separate(state, end)


@triton.jit(do_not_specialize=["count"])
def median_refine_kernel(state, histogram, buckets, count, R: tl.constexpr, DEPTH: tl.constexpr):
    part = tl.program_id(0).to(tl.int64)
    state += part * FIELDS
    histogram += part * R * BINS
    buckets += part * R * BINS * DEPTH
    status = tl.load(state + STATUS)
    if status == DONE:
        return
    if status == SEPARATED:
        tl.store(state + STATUS, DONE)
        return
    bins = tl.arange(0, BINS)
    counts = tl.zeros([BINS], tl.int64)
    for row in range(R):
        counts += tl.load(histogram + row * BINS + bins)
    total = tl.sum(counts)
    low = tl.load(state + LOW)
    high = tl.load(state + HIGH)
    below = tl.load(state + BELOW)
    pairs = count.to(tl.int64) * (count - 1) // 2
    first = (pairs - 1) // 2 - below
    second = pairs // 2 - below
    if second < 0:
        _narrow(state, tl.zeros([], tl.int64), low)
    elif first >= total:
        if buckets.dtype.element_ty == tl.float64:  # up to infinity
            _narrow(state, high, tl.full([], 0x7FF0000000000001, tl.int64))
        else:
            _narrow(state, high, tl.full([], 0x7F800001, tl.int64))
    elif first < 0:
        _separate(state, low)
    elif second >= total:
        _separate(state, high)
    else:
        _inside(state, histogram, buckets, counts, first, second, low, high, R, DEPTH)
    tl.debug_barrier()  # the counts are read above by other threads than those that clear them
    tl.store(state + BELOW, 0)
    tl.store(state + LOST, 0)
    for row in range(R):
        tl.store(histogram + row * BINS + bins, tl.zeros([BINS], tl.int64))
