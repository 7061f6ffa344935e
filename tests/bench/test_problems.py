"""What is measured: fair order, the bandwidth apart, rivals that compute the same, honest skips."""

from __future__ import annotations

import pytest
import torch

import stein_kernels
from bench import accuracy, baselines, methods
from bench.shapes import SHAPES, Shape, exact_bandwidth, make_inputs
from bench.timing import interleaved, rounds_of

SMALL = (Shape(3, 12, 4), Shape(0, 31, 5))


@pytest.mark.parametrize("shape", SMALL, ids=lambda shape: shape.name)
def test_bandwidth_apart_is_the_exact_one(shape):
    x, _ = make_inputs(shape)
    torch.testing.assert_close(exact_bandwidth(shape), stein_kernels.median_bandwidth(x))


@pytest.mark.parametrize("shape", SMALL, ids=lambda shape: shape.name)
@pytest.mark.parametrize("name", ["ours", "eager_gemm", "eager_difference"])
def test_rivals_compute_the_direction(name, shape):
    method = next(method for method in methods.DIRECTION if method.name == name)
    output = method.make()(*make_inputs(shape), exact_bandwidth(shape))
    assert isinstance(output, torch.Tensor)
    assert accuracy.relative_error("svgd_direction", shape, 0.0, output) < 1e-5
    assert accuracy.relative_error("svgd_direction", shape, 0.0, output * 1.01) > 5e-3


@pytest.mark.parametrize("method", methods.GRAM, ids=lambda method: method.name)
@pytest.mark.parametrize("shape", SMALL, ids=lambda shape: shape.name)
def test_rivals_compute_the_gram_matrix(method, shape):
    output = method.make()(*make_inputs(shape), exact_bandwidth(shape))
    assert isinstance(output, torch.Tensor)
    assert accuracy.relative_error("rbf_gram", shape, 0.0, output) < 1e-5


def test_rival_bandwidths_are_the_usual_ones():
    x, _ = make_inputs(SMALL[1])  # 465 pairs: an odd count, so the lower median is the median
    exact = exact_bandwidth(SMALL[1])
    torch.testing.assert_close(baselines.triu_bandwidth(x), exact)
    torch.testing.assert_close(baselines.pdist_bandwidth(x), exact)


def test_a_shift_keeps_the_scores():
    (x, grad), (moved, same) = make_inputs(SMALL[0]), make_inputs(SMALL[0], 100.0)
    torch.testing.assert_close(moved - 100, x, atol=1e-5, rtol=0)
    assert torch.equal(grad, same)


def test_the_difference_form_is_left_out_where_it_needs_gigabytes():
    reasons = {shape.name: baselines.skip_difference(shape) for shape in SHAPES}
    left_out = {name for name, reason in reasons.items() if reason}
    assert left_out == {"10000x16", "20000x3", "100x200000"}
    assert "4.8 GB" in str(reasons["20000x3"])


def test_methods_take_turns():
    pair = methods.BACKWARD
    order = [(case[2].name, case[3]) for case in interleaved(pair, SMALL[:1], [1])]
    names = [method.name for method in pair]
    assert order == [(names[0], 0), (names[1], 0), (names[1], 1), (names[0], 1)]


@pytest.mark.parametrize(
    ("seconds", "rounds"),
    [(0.0, 40), (1e-3, 40), (0.1, 30), (1.0, 6), (2.3, 5), (4.0, 3), (9.0, 3)],
)
def test_rounds_of_both_blocks(seconds, rounds):
    assert rounds_of(seconds, 0) + rounds_of(seconds, 1) == rounds
