"""The public functions on DTensors are those of one process, at the traffic that is promised."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench import scaling
from tests.distributed import on_ranks
from tests.distributed.on_ranks import Case

# float64: the sums over ranks are in another order than those of one process. Each is of at most
# 20 positive terms, so distances agree within 20 eps, and a kernel value within that times r^2 / h;
# 1e-10 is the bound that users are promised, 5 digits above.
EXACT = 1e-10

# d = 10 over 4 ranks is 3, 3, 3, 1; d = 3 leaves the fourth without a feature.
CASES = {
    "plain": Case("svgd_direction", (7, 10)),
    "fewer features than ranks": Case("svgd_direction", (6, 3)),
    "sets": Case("svgd_direction", (3, 6, 5)),
    "sets of sets": Case("svgd_direction", (2, 3, 6, 5)),
    "leave one out": Case("svgd_direction", (7, 10), (), (("leave_one_out", True),)),
    "weights": Case("svgd_direction", (7, 10), ("weights",)),
    "weights, leave one out": Case(
        "svgd_direction", (3, 7, 10), ("weights",), (("leave_one_out", True),)
    ),
    "query": Case("svgd_direction", (7, 10), ("query",)),
    "query and weights": Case("svgd_direction", (3, 7, 10), ("query", "weights")),
    "number": Case("svgd_direction", (7, 10), (), (("bandwidth", 3.0),)),
    "tensor": Case("svgd_direction", (3, 7, 10), ("bandwidth",)),
    "median rule": Case("svgd_direction", (7, 10), (), (("bandwidth", "median"),)),
    "one particle": Case("svgd_direction", (1, 10)),
    "gram": Case("rbf_gram", (3, 7, 10)),
    "gram of two sets": Case("rbf_gram", (7, 10), ("y", "bandwidth")),
    "bandwidth": Case("median_bandwidth", (3, 7, 10)),
    "divergence": Case("stein_divergence", (3, 7, 10), ("weights",)),
    "divergence at a query": Case("stein_divergence", (7, 10), ("query",)),
    "divergence, leave one out": Case("stein_divergence", (7, 10), (), (("leave_one_out", True),)),
    "discrepancy": Case("kernel_stein_discrepancy", (3, 7, 10)),
    "discrepancy, v": Case(
        "kernel_stein_discrepancy", (7, 10), ("weights",), (("statistic", "v"),)
    ),
}


def counted(case: Case) -> list[tuple[str, int]]:
    """What a call adds up over the ranks, by the formulas of docs/scaling.md."""
    *batch, particles, _ = case.shape
    queries = {"query", "y"} & set(case.given)
    given = {"bandwidth": "liu_wang", **dict(case.options)}["bandwidth"]
    rule = isinstance(given, str) and "bandwidth" not in case.given
    sets, targets = torch.Size(batch).numel(), 5 if queries else None
    numbers = scaling.summed(case.function, sets, particles, targets, rule=rule)
    return [("all_reduce", each) for each in numbers]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_features(ranks, case):
    """Values and gradients are those of one process; all that is moved is one matrix of pairs."""
    expected = counted(case)
    for outcome in ranks(on_ranks.compare, case):
        assert outcome.error <= EXACT
        assert outcome.gradient_error <= EXACT
        assert outcome.traffic == expected
        dim = len(case.shape) - 1
        placement = (
            f"(Shard(dim={dim}),)" if case.function == "svgd_direction" else "(Replicate(),)"
        )
        assert outcome.placements == placement


def test_one_process_moves_nothing(started):
    (outcome,) = started(1)(on_ranks.compare, CASES["weights"])
    assert max(outcome.error, outcome.gradient_error) <= EXACT
    assert outcome.traffic == outcome.backward_traffic == []


def test_backward_moves_a_matrix_of_pairs(ranks):
    *_, outcome = ranks(on_ranks.compare, CASES["weights"])
    assert outcome.backward_traffic == [("all_reduce", 7 * 7)]
    *_, outcome = ranks(on_ranks.compare, CASES["tensor"])  # and its own gradient for a bandwidth
    assert sorted(outcome.backward_traffic) == [("all_reduce", 3), ("all_reduce", 3 * 7 * 7)]
    *_, outcome = ranks(on_ranks.compare, CASES["gram"])  # which every rank has whole
    assert outcome.backward_traffic == []


@pytest.mark.parametrize("function", ["svgd_direction", "rbf_gram", "kernel_stein_discrepancy"])
@pytest.mark.parametrize("sharded", ["batch", "none"])
def test_sets_of_one_rank_need_no_other(ranks, function, sharded):
    """A batch of 5 over 2 or 4 ranks, uneven; replicated."""
    for outcome in ranks(on_ranks.compare, Case(function, (5, 6, 3)), (sharded,)):
        assert outcome.error <= EXACT
        assert outcome.gradient_error <= EXACT
        assert outcome.traffic == outcome.backward_traffic == []
        assert outcome.placements == ("(Shard(dim=0),)" if sharded == "batch" else "(Replicate(),)")


@pytest.mark.parametrize("given", [(), ("weights", "bandwidth"), ("query",)], ids=str)
def test_batch_and_features(ranks, given):
    """A mesh of two dimensions: the sets over one, their features over the other.

    Of 2 ranks each has its own sets, whole: a group of one process, which moves nothing.
    """
    case = Case("svgd_direction", (3, 6, 5), given)
    outcomes = ranks(on_ranks.compare, case, ("batch", "features"))
    for rank, outcome in enumerate(outcomes):
        assert outcome.error <= EXACT
        assert outcome.gradient_error <= EXACT
        sets = 2 if rank < ranks.size // 2 else 1
        expected = counted(case._replace(shape=(sets, 6, 5)))
        assert outcome.traffic == ([] if ranks.size == 2 else expected)
        assert outcome.placements == "(Shard(dim=0), Shard(dim=2))"


@pytest.mark.parametrize("sharded", [("batch",), ("batch", "features")], ids=str)
def test_what_serves_all_sets_gets_the_gradient_of_all(ranks, sharded):
    """Weights, targets and a bandwidth without the batch dimension."""
    case = Case("svgd_direction", (4, 6, 5), ("weights", "query", "bandwidth"), shared=True)
    for outcome in ranks(on_ranks.compare, case, sharded):
        assert outcome.error <= EXACT
        assert outcome.gradient_error <= EXACT


shapes = st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))
options = st.fixed_dictionaries(
    {}, optional={"leave_one_out": st.booleans(), "bandwidth": st.sampled_from(["median", 2.0])}
)


@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(shape=shapes, options=options, weighted=st.booleans())
def test_any_shape(ranks, shape, options, weighted):
    case = Case("svgd_direction", shape, ("weights",) if weighted else (), tuple(options.items()))
    for outcome in ranks(on_ranks.compare, case):
        assert outcome.error <= EXACT
        assert outcome.gradient_error <= EXACT


@pytest.mark.parametrize("shift", [0.0, 100.0, 1e4])
@pytest.mark.parametrize("shape", [(20, 3), (30, 50)], ids=str)
def test_float32_is_exact_under_a_shift(ranks, shape, shift):
    """The bound of the ops of one process, 2e-6 of the largest value.

    The slices sum in float64 and hand over float32; adding up W of them costs W half-ulps more.
    """
    case = Case("svgd_direction", shape, shift=shift, dtype=torch.float32)
    assert max(ranks(on_ranks.error_against_float64, case)) <= 2e-6


def test_half_types_sum_in_float32(ranks):
    case = Case("svgd_direction", (20, 10), dtype=torch.bfloat16)
    for outcome in ranks(on_ranks.compare, case):
        # one process and the ranks round the same float32 values, up to a neighbour in bfloat16
        assert outcome.error <= 2 * torch.finfo(torch.bfloat16).eps
        assert outcome.value.dtype == torch.bfloat16


@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("function", [*on_ranks.TAKES_SCORES, "rbf_gram", "median_bandwidth"])
def test_autocast_is_that_of_one_process(ranks, function):
    """float32 of mixed half types; 1e-5 is ten times what a discrepancy of float32 cancels."""
    for dtype, error in ranks(on_ranks.autocast, function):
        assert dtype == "torch.float32"
        assert error <= 1e-5


def test_one_bandwidth_to_the_bit(ranks):
    case = Case("median_bandwidth", (3, 30, 50), dtype=torch.float32)
    first, *others = ranks(on_ranks.compare, case)
    assert all(torch.equal(first.value, other.value) for other in others)


def test_reference_backend(ranks):
    for outcome in ranks(
        on_ranks.compare, CASES["weights, leave one out"], ("features",), "reference"
    ):
        assert outcome.error <= EXACT
        assert outcome.gradient_error <= EXACT
        assert len(outcome.traffic) == 1


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_adam_keeps_the_moments_of_a_slice(ranks, leave_one_out):
    answers = ranks(on_ranks.adam, "liu_wang", leave_one_out)
    for error, traffic, _ in answers:
        assert error <= EXACT
        assert traffic == [("all_reduce", 6 * 6)]
    assert sum(shape[1] for *_, shape in answers) == 10


REFUSALS = [
    r"ValueError: svgd_direction: x of shape \(6, 5\) may be sharded along .* got \(Shard\(dim=0",
    r"ValueError: svgd_direction: x of shape \(6, 5\) may be sharded along .* got \(Partial",
    r"ValueError: svgd_direction: grad must be placed as x is, \(Shard.*, got \(Replicate",
    r"TypeError: svgd_direction: grad must be a DTensor on the mesh of x, got a plain tensor",
    r"TypeError: svgd_direction: an argument is a DTensor, so x must be one, got a plain tensor",
    r"TypeError: svgd_direction: weights must be a DTensor on the mesh of x, got a plain tensor",
    r"ValueError: svgd_direction: grad must have the shape of x, \(6, 5\), got \(6, 4\)",
    r"TypeError: svgd_direction: grad must be a DTensor on the mesh of x, got another mesh",
    r"TypeError: svgd_direction: grad must have the dtype of x, torch.float32, got torch.float64",
    r"ValueError: svgd_direction: bandwidth must be positive and finite, got -1.0",
    r"ValueError: median_bandwidth: rule must be one of .* got 'mean'",
    r"TypeError: svgd_direction\(\) takes 2 positional arguments but 3 were given",
    r"TypeError: svgd_direction\(\) got multiple values for argument 'x'",
    r"TypeError: svgd_direction\(\) missing 1 required positional argument: 'grad'",
    r"TypeError: svgd_direction\(\) got an unexpected keyword argument 'sigma'",
]


def test_refusals(ranks):
    """On shapes of the whole, so no rank waits for one that refused."""
    for messages in ranks(on_ranks.refusals):
        assert len(messages) == len(REFUSALS)
        for message, pattern in zip(messages, REFUSALS, strict=True):
            assert re.match(pattern, message)


@pytest.mark.parametrize("ranks", [2], indirect=True)  # tracing takes seconds on every rank
def test_compiled_without_a_break(ranks):
    for error, gradient_error, collectives in ranks(on_ranks.compiled):
        assert error <= EXACT
        assert gradient_error <= EXACT
        assert collectives == [1, 1]
