"""The exact median of pairwise distances, without the host reading anything from the device.

Of M(M-1)/2 squared distances the two middle ranks are wanted. A sample of pairs brackets them
within 4 standard errors; one pass over all pairs counts those below the bracket and sorts those
inside it into bins, of which each keeps its first values; the counts prove which bin holds the
ranks, and they are selected from what it kept. Where the sample misled, or a bin got more than it
keeps (ties, or so many pairs that any bracket holds too many), the bracket moves to where the
counts say that the ranks are and the pass is repeated, each time with 11 bits less to find. The
launches are as many as the worst data needs, and a set that is done returns from them at once.

``state``, ``histogram`` and ``buckets`` are described in ``triton/median.py``. Distances are
differences of the coordinates as given; nothing depends on their scale or origin.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stein_kernels.gpu.packing import pack

BINS = 2048
BIN_BITS = 11
FIELDS = 8
LOW, HIGH, STATUS, BELOW, FIRST, SECOND, LOST = range(7)  # fields of the state
SEARCHING, SEPARATED, DONE = range(3)  # its status

# Pairs up to this number: pairs of the sample. +- 4 standard errors hold a share 4 / sqrt(sample)
# of the pairs. Few pairs are counted three times rather than sampled.
SAMPLES = ((2**16, 0), (2**20, 2**14), (2**27, 2**16), (2**30, 2**19), (2**62, 2**22))
SPREAD = 4.0  # standard errors; misses 6 of 1e5 sets, which cost a pass each
# Rows of bins and values that a bin keeps in each. Programs that meet ties wait at one counter less
# where they have 32 to share; where there are many sets, one row is enough.
SHAPES = ((32, 64), (32, 256), (32, 512), (1, 64), (1, 256), (1, 512))
# Of the sets that are searched at once:
KEPT = 2**25  # values kept in bins: 128 MB in float32
BIN_BYTES = 2**16  # kept in one bin by all rows: more would spill the registers of Triton's refine
SAMPLED = 2**22  # pairs of all samples, which take 28 bytes each to sort


class Plan(NamedTuple):
    """Sizes that follow from the shape alone."""

    sample: int  # pairs of the sample of a set; 0 begins with every pair in the bracket
    rows: int  # rows of bins
    depth: int  # values that a bin keeps in each row
    rounds: int  # passes that the worst data needs
    sets: int = 1  # searched at once


def plan(batch: int, count: int, dtype: torch.dtype) -> Plan:
    """How to search ``batch`` sets of ``count`` particles."""
    pairs = count * (count - 1) // 2
    sample = next(size for limit, size in SAMPLES if pairs <= limit)
    # From 31 or 63 bits to one value; a bracket that missed leaves all but its own place to search.
    rounds = math.ceil((63 if dtype == torch.float64 else 31) / BIN_BITS) + (sample > 0)
    if not sample:
        return _in_groups(Plan(0, 1, 0, rounds), batch, KEPT // (4 * BINS))
    inside = pairs * SPREAD / math.sqrt(sample) / (BINS // 2)  # of a bin: half of them or more fill

    def roomy(rows: int, depth: int) -> bool:
        mean = inside / rows
        return mean + 4 * math.sqrt(mean) <= depth and rows * depth * dtype.itemsize <= BIN_BYTES

    fitting = [shape for shape in SHAPES if roomy(*shape)]
    at_once = [shape for shape in fitting if batch * shape[0] * shape[1] * BINS <= KEPT]
    # Too many pairs for any shape: the first pass narrows the bracket to a bin, the second keeps.
    leanest = sorted(fitting, key=lambda shape: shape[0] * shape[1])
    rows, depth = (at_once or leanest or SHAPES)[0]
    sets = min(KEPT // (rows * depth * BINS), SAMPLED // sample)
    return _in_groups(Plan(sample, rows, depth, rounds), batch, sets)


def _in_groups(chosen: Plan, batch: int, most: int) -> Plan:
    """Groups of equal size, of at most so many sets."""
    groups = max(1, -(-batch // most))
    return chosen._replace(sets=max(1, -(-batch // groups)))


def median_distance(kernels: Any, x: Tensor) -> Tensor:
    """Midpoint median of the distances |x_i - x_j|, i < j; x (B, M, d) of any dtype -> (B,) of T.

    Where it is 0 (M < 2, or more than half the pairs coincide) the root mean squared pairwise
    distance takes its place, and 1 where that is 0 too. NaN where a coordinate is not finite.
    T is the accumulation dtype. Nothing of size M^2 is stored.
    """
    b, m, d = x.shape
    cloud = pack(x)
    if b == 0:
        return cloud.new_empty(0)
    ones = cloud.new_ones(b)
    if m * d == 0:
        return ones
    least, most = cloud.flatten(1).aminmax(dim=1)
    finite = least.isfinite() & most.isfinite()
    if m == 1:
        return torch.where(finite, ones, math.nan)
    fallback = root_mean_square(cloud[..., :m])
    cloud[..., m:].fill_(math.nan)
    median = _search_all(kernels, cloud, m, False)
    median = torch.where(median > 0, median, fallback)
    return torch.where(finite, median, math.nan)


def median_of_distances(kernels: Any, squared: Tensor, fallback: Tensor | None = None) -> Tensor:
    """Midpoint median of the distances whose squares are stored; (B, M, M) -> (B,) of its dtype.

    squared[b, i, j] = |x_i - x_j|^2 >= 0 in float32 or float64; only i < j is read, so the diagonal
    and the lower triangle may hold anything. A matrix that is not contiguous is copied. The
    midpoint is of distances, (sqrt(a) + sqrt(b)) / 2, not of squares.

    ``fallback`` (B,), the root mean squared pairwise distance of each set or 1 where that is 0,
    takes the place of a median that is 0 and of one that does not exist (M < 2); without it such a
    set gives 0. NaN in a matrix is in no rank: a set whose coordinates are not all finite is for
    the caller to set to NaN afterwards.
    """
    b, m, _ = squared.shape
    instead = squared.new_zeros(b) if fallback is None else fallback.to(squared.dtype)
    if b == 0 or m < 2:
        return instead.clone()
    median = _search_all(kernels, squared.contiguous(), m, True)
    return torch.where(median > 0, median, instead)


def root_mean_square(points: Tensor) -> Tensor:
    """Root mean squared distance of the pairs of (B, d, M), or 1 where that is 0; (B,).

    sum_ij |x_i - x_j|^2 = 2 M sum_i |x_i - mean|^2 over all i, j. Deviations from the first
    particle come first: of equal particles they are 0 exactly, and their mean too.
    """
    deviation = points - points[..., :1]
    deviation -= deviation.mean(2, keepdim=True)
    norm = torch.linalg.vector_norm(deviation, dim=2).double()
    mean = torch.linalg.vector_norm(norm, dim=1) * math.sqrt(2 / (points.shape[2] - 1))
    return torch.where(mean > 0, mean, 1.0).to(points.dtype)


def _search_all(kernels: Any, points: Tensor, count: int, stored: bool) -> Tensor:
    shape = plan(points.shape[0], count, points.dtype)
    groups = points.split(shape.sets)
    return torch.cat([search(kernels, group, count, stored, shape) for group in groups])


def search(
    kernels: Any,
    points: Tensor,
    count: int,
    stored: bool,
    shape: Plan,
    bracket: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The midpoint median of a packed cloud (B, d, ld), NaN beyond ``count``, or a stored matrix.

    ``bracket`` (bits of its first value, bits after its last; (B,) int64 each) takes the place of
    the sample's. Any bracket gives the same result, if ``shape.rounds`` allows for a miss.
    """
    b = points.shape[0]
    state = torch.zeros(b, FIELDS, dtype=torch.int64, device=points.device)
    if bracket is None and shape.sample:
        bracket = sampled_bracket(kernels, points, count, stored, shape.sample)
    if bracket is None:
        state[:, HIGH].fill_(bits_above_all(points.dtype))
    else:
        state[:, LOW], state[:, HIGH] = bracket
    histogram = torch.zeros(b, shape.rows, BINS, dtype=torch.int64, device=points.device)
    buckets = points.new_empty(b, shape.rows, BINS, shape.depth)
    for _ in range(shape.rounds):
        kernels.median_pass(points, state, histogram, buckets, count, stored)
        kernels.median_refine(state, histogram, buckets, count)
    middle = state[:, FIRST : SECOND + 1]
    middle = middle if points.dtype == torch.float64 else middle.to(torch.int32)
    distances = middle.contiguous().view(points.dtype).double().sqrt()
    return distances.mean(1).to(points.dtype)


def sampled_bracket(
    kernels: Any, points: Tensor, count: int, stored: bool, size: int
) -> tuple[Tensor, Tensor]:
    """First bits and bits after the last of a bracket that holds the median, most probably."""
    sample = points.new_empty(points.shape[0], size)
    kernels.median_sample(points, sample, count, stored)
    ordered = sample.sort(1).values
    margin = round(SPREAD * math.sqrt(size) / 2)  # a rank's standard error is sqrt(size) / 2
    bits = ordered.view(torch.int64 if points.dtype == torch.float64 else torch.int32)
    low, high = bits[:, max(0, size // 2 - margin)], bits[:, min(size - 1, size // 2 + margin)]
    return low.long(), high.long() + 1


def bits_above_all(dtype: torch.dtype) -> int:
    """The bits after those of infinity."""
    return 0x7FF0000000000001 if dtype == torch.float64 else 0x7F800001
