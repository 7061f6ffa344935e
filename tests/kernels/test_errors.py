"""Every argument that is refused: the type of the error and the sentence that names it."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import stein_kernels as sk
from stein_kernels.testing import gaussian_problem

X, GRAD = torch.zeros(2, 5, 3), torch.ones(2, 5, 3)
PAIRS = ("svgd_direction", "stein_divergence")
TENSORS = (*PAIRS, "rbf_gram", "median_bandwidth", "kernel_stein_discrepancy")
WITH_BANDWIDTH = (*PAIRS, "rbf_gram", "kernel_stein_discrepancy")


class Bad(NamedTuple):
    """Functions that share the contract, what replaces their good arguments, and the error."""

    functions: tuple[str, ...]
    given: dict[str, Any]
    error: type[Exception]
    message: str


def good(function):
    score = {"kernel_stein_discrepancy": "score", "rbf_gram": None, "median_bandwidth": None}
    name = score.get(function, "grad")
    return {"x": X} | ({name: GRAD} if name else {})


DTYPES = "float32, float64, bfloat16, float16"
TABLE = [
    # x
    Bad(TENSORS, {"x": [[1.0, 2.0]]}, TypeError, r"x must be a torch\.Tensor, got list"),
    Bad(TENSORS, {"x": X.numpy()}, TypeError, r"x must be a torch\.Tensor, got ndarray"),
    Bad(TENSORS, {"x": None}, TypeError, r"x must be a torch\.Tensor, got NoneType"),
    Bad(TENSORS, {"x": X.long()}, TypeError, rf"x must have one of the dtypes {DTYPES}.*int64"),
    Bad(TENSORS, {"x": X.bool()}, TypeError, rf"x must have one of the dtypes {DTYPES}.*bool"),
    Bad(
        TENSORS,
        {"x": X.to(torch.complex64)},
        TypeError,
        "x must have one of the dtypes .*complex64",
    ),
    Bad(TENSORS, {"x": X.to(torch.float8_e5m2)}, TypeError, "x must have one of .*float8_e5m2"),
    Bad(TENSORS, {"x": X.to_sparse()}, TypeError, r"x must be a dense.*sparse_coo"),
    Bad(TENSORS, {"x": X[0, 0]}, ValueError, r"x must have shape \(\.\.\., M, d\), got \(3,\)"),
    Bad(TENSORS, {"x": torch.tensor(1.0)}, ValueError, r"x must have shape .*, got \(\)"),
    # grad and score
    Bad(PAIRS, {"grad": 1.0}, TypeError, r"grad must be a torch\.Tensor, got float"),
    Bad(PAIRS, {"grad": GRAD.double()}, TypeError, "grad must have the dtype of x.*float64"),
    Bad(PAIRS, {"grad": GRAD.half()}, TypeError, "grad must have the dtype of x.*float16"),
    Bad(PAIRS, {"grad": GRAD.int()}, TypeError, "grad must have one of the dtypes.*int32"),
    Bad(PAIRS, {"grad": GRAD.to("meta")}, ValueError, "grad must be on the device of x, cpu.*meta"),
    Bad(PAIRS, {"grad": GRAD.to_sparse()}, TypeError, "grad must be a dense.*sparse_coo"),
    Bad(PAIRS, {"grad": GRAD[0]}, ValueError, r"grad must have the shape of x, \(2, 5, 3\)"),
    Bad(PAIRS, {"grad": GRAD[:, :4]}, ValueError, r"grad .* \(2, 5, 3\), got \(2, 4, 3\)"),
    Bad(PAIRS, {"grad": GRAD[..., :1]}, ValueError, r"grad .* got \(2, 5, 1\)"),
    Bad(
        ("kernel_stein_discrepancy",),
        {"score": GRAD[:, :4]},
        ValueError,
        r"score must have the shape of x, \(2, 5, 3\), got \(2, 4, 3\)",
    ),
    # weights
    Bad(PAIRS, {"weights": [0.2] * 5}, TypeError, r"weights must be a torch\.Tensor, got list"),
    Bad(PAIRS, {"weights": X[..., 0].double()}, TypeError, "weights must have the dtype of x"),
    Bad(PAIRS, {"weights": X[..., 0].to("meta")}, ValueError, "weights must be on the device of x"),
    Bad(PAIRS, {"weights": torch.ones(2, 4)}, ValueError, r"weights .* \(2, 5\), got \(2, 4\)"),
    Bad(PAIRS, {"weights": torch.ones(3, 5)}, ValueError, r"weights .* \(2, 5\), got \(3, 5\)"),
    Bad(PAIRS, {"weights": torch.tensor(1.0)}, ValueError, r"weights .* got \(\)"),
    Bad(PAIRS, {"weights": torch.ones(1, 2, 5)}, ValueError, r"weights .* got \(1, 2, 5\)"),
    # query, y
    Bad(PAIRS, {"query": X.tolist()}, TypeError, r"query must be a torch\.Tensor, got list"),
    Bad(PAIRS, {"query": X[..., :2]}, ValueError, r"query .* \(2, N, 3\), got \(2, 5, 2\)"),
    Bad(PAIRS, {"query": X[:, 0, 0]}, ValueError, r"query must have shape .* got \(2,\)"),
    Bad(PAIRS, {"query": torch.ones(3, 5, 3)}, ValueError, r"query .* got \(3, 5, 3\)"),
    Bad(PAIRS, {"query": X.bfloat16()}, TypeError, "query must have the dtype of x.*bfloat16"),
    Bad(("rbf_gram",), {"y": X[..., :2]}, ValueError, r"y .* \(2, N, 3\), got \(2, 5, 2\)"),
    Bad(("rbf_gram",), {"y": X.double()}, TypeError, "y must have the dtype of x.*float64"),
    Bad(("rbf_gram",), {"y": 3}, TypeError, r"y must be a torch\.Tensor, got int"),
    # leave_one_out
    Bad(PAIRS, {"leave_one_out": 1}, TypeError, "leave_one_out must be True or False, got int"),
    Bad(PAIRS, {"leave_one_out": None}, TypeError, "leave_one_out must be .*, got NoneType"),
    Bad(PAIRS, {"leave_one_out": True, "query": X}, ValueError, "leave_one_out .* got a query"),
    # statistic
    Bad(("kernel_stein_discrepancy",), {"statistic": "w"}, ValueError, "statistic must be .*'w'"),
    Bad(("kernel_stein_discrepancy",), {"statistic": None}, ValueError, "statistic must be .*None"),
    Bad(
        ("kernel_stein_discrepancy",),
        {"statistic": np.array(["u", "v"])},
        ValueError,
        "statistic must be .*array",
    ),
    Bad(("kernel_stein_discrepancy",), {"leave_one_out": 0}, TypeError, "leave_one_out must be"),
    # rules and bandwidths
    Bad(("median_bandwidth",), {"rule": "scott"}, ValueError, "rule must be .*'liu_wang'.*'scott'"),
    Bad(("median_bandwidth",), {"rule": 2}, ValueError, "rule must be one of .* got 2"),
    Bad(("median_bandwidth",), {"rule": None}, ValueError, "rule must be one of .* got None"),
    Bad(("median_bandwidth",), {"rule": ["median"]}, ValueError, "rule must be one of"),
    Bad(("median_bandwidth",), {"rule": np.array(["u", "v"])}, ValueError, "rule must be one of"),
    Bad(
        WITH_BANDWIDTH,
        {"bandwidth": "scott"},
        ValueError,
        "bandwidth must be a positive number or one of .*'median'.*got 'scott'",
    ),
    Bad(WITH_BANDWIDTH, {"bandwidth": torch.ones(2).to_sparse()}, TypeError, "bandwidth .*sparse"),
    Bad(WITH_BANDWIDTH, {"bandwidth": 0}, ValueError, "bandwidth must be positive .*, got 0"),
    Bad(WITH_BANDWIDTH, {"bandwidth": -1.0}, ValueError, "bandwidth must be positive .*, got -1"),
    Bad(WITH_BANDWIDTH, {"bandwidth": math.inf}, ValueError, "bandwidth must be .* got inf"),
    Bad(WITH_BANDWIDTH, {"bandwidth": math.nan}, ValueError, "bandwidth must be .* got nan"),
    Bad(
        WITH_BANDWIDTH,
        {"bandwidth": 1e50},
        ValueError,
        r"bandwidth must be .* got 1e\+50; float32 has",
    ),
    Bad(
        WITH_BANDWIDTH,
        {"bandwidth": 1e-50},
        ValueError,
        "bandwidth must be .* got 1e-50; float32 has",
    ),
    Bad(
        WITH_BANDWIDTH,
        {"bandwidth": 10**400},
        ValueError,
        "bandwidth must be .* got inf; float32 has",
    ),
    Bad(WITH_BANDWIDTH, {"bandwidth": 10**5000}, ValueError, "bandwidth must be .* got inf"),
    Bad(WITH_BANDWIDTH, {"bandwidth": -(10**5000)}, ValueError, "bandwidth must be .* got -inf"),
    Bad(WITH_BANDWIDTH, {"bandwidth": np.float32(0)}, ValueError, "bandwidth must be .* got 0"),
    Bad(WITH_BANDWIDTH, {"bandwidth": np.ones(2)}, TypeError, "bandwidth must be .* got ndarray"),
    Bad(WITH_BANDWIDTH, {"bandwidth": np.True_}, TypeError, "bandwidth must be .* got bool"),
    Bad(WITH_BANDWIDTH, {"bandwidth": True}, TypeError, "bandwidth must be .* got bool"),
    Bad(WITH_BANDWIDTH, {"bandwidth": None}, TypeError, "bandwidth must be .* got NoneType"),
    Bad(WITH_BANDWIDTH, {"bandwidth": 1j}, TypeError, "bandwidth must be .* got complex"),
    Bad(WITH_BANDWIDTH, {"bandwidth": [1.0]}, TypeError, "bandwidth must be .* got list"),
    Bad(
        WITH_BANDWIDTH,
        {"bandwidth": torch.ones(3)},
        ValueError,
        r"bandwidth must be one number or have the batch shape of x, \(2,\), got \(3,\)",
    ),
    Bad(WITH_BANDWIDTH, {"bandwidth": torch.ones(2, 1)}, ValueError, r"bandwidth .* got \(2, 1\)"),
    Bad(WITH_BANDWIDTH, {"bandwidth": torch.ones(2).double()}, TypeError, "bandwidth .*float64"),
    Bad(WITH_BANDWIDTH, {"bandwidth": torch.ones(2).long()}, TypeError, "bandwidth .*int64"),
    Bad(
        WITH_BANDWIDTH,
        {"bandwidth": torch.ones(2, device="meta")},
        ValueError,
        "bandwidth must be on the device of x, cpu, got meta",
    ),
]
CASES = [
    pytest.param(name, bad, id=f"{name}-{row}-{next(iter(bad.given))}")
    for row, bad in enumerate(TABLE)
    for name in bad.functions
]


@pytest.mark.parametrize(("function", "bad"), CASES)
def test_refused(function, bad):
    with pytest.raises(bad.error, match=bad.message) as caught:
        getattr(sk, function)(**good(function) | bad.given)
    assert str(caught.value).startswith(f"{function}: ")


@pytest.mark.parametrize(("function", "bad"), CASES)
def test_refused_by_the_reference_backend_too(function, bad):
    with sk.use_backend("reference"), pytest.raises(bad.error, match=bad.message):
        getattr(sk, function)(**good(function) | bad.given)


@pytest.mark.parametrize(
    ("function", "bad"),
    [
        (name, Bad((name,), given, TypeError, "must have the dtype of x, .*float32, got"))
        for name in WITH_BANDWIDTH
        for given in (
            {"x": X.bfloat16(), "bandwidth": torch.ones(2).double()},
            {"bandwidth": torch.ones(2).long()},
            {"bandwidth": torch.ones(2, dtype=torch.complex64)},
            {"query" if name in PAIRS else "y" if name == "rbf_gram" else "score": X.double()},
        )
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_refused_under_autocast(function, bad, backend):
    with sk.use_backend(backend), torch.autocast("cpu"), pytest.raises(bad.error) as caught:
        getattr(sk, function)(**good(function) | bad.given)
    assert re.match(f"{function}: .*{bad.message}", str(caught.value))


def _can_be_faked(bad):
    return not any(
        torch.is_tensor(value) and (value.layout is not torch.strided or value.is_meta)
        for value in bad.given.values()
    )


@pytest.mark.parametrize(
    ("function", "bad"), [case for case in CASES if _can_be_faked(case.values[1])]
)
def test_refused_with_the_same_words_on_fake_tensors(function, bad):
    mode = FakeTensorMode()
    arguments = {
        name: mode.from_tensor(value) if torch.is_tensor(value) else value
        for name, value in (good(function) | bad.given).items()
    }
    with mode, pytest.raises(bad.error, match=bad.message):
        getattr(sk, function)(**arguments)


def test_the_good_arguments_are_good():
    """So that every refusal above is for the one argument that was replaced."""
    for function in TENSORS:
        assert getattr(sk, function)(**good(function)).isfinite().all()
    for function in PAIRS:
        out = getattr(sk, function)(**good(function), weights=torch.ones(5) / 5, query=X[:, :2])
        assert out.isfinite().all()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.parametrize("function", TENSORS)
def test_nested_tensors_are_refused(function, layout):
    ragged = torch.nested.nested_tensor([torch.ones(3, 2), torch.ones(4, 2)], layout=layout)
    given = dict.fromkeys(good(function), ragged)
    with pytest.raises(TypeError, match=f"{function}: x must be .*got a nested one; .* pad them"):
        getattr(sk, function)(**given)
    if function in WITH_BANDWIDTH:
        with pytest.raises(TypeError, match=f"{function}: bandwidth must be .*got a nested one"):
            getattr(sk, function)(**good(function), bandwidth=ragged)


@pytest.mark.parametrize(
    "one",
    [
        2,
        np.float16(2),
        np.float32(2),
        np.float64(2),
        np.int64(2),
        Fraction(2),
        torch.tensor(2.0),
        torch.tensor([2.0]),
        torch.tensor([[[2.0]]]),
        torch.nn.Parameter(torch.tensor([2.0])),
    ],
    ids=repr,
)
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
@pytest.mark.parametrize("function", WITH_BANDWIDTH)
def test_a_bandwidth_that_is_one_number(function, batch, one):
    arguments = {name: value[(0,) * (1 - len(batch))] for name, value in good(function).items()}
    expected = getattr(sk, function)(**arguments, bandwidth=2.0)
    found = getattr(sk, function)(**arguments, bandwidth=one)
    assert torch.equal(found, expected)
    if isinstance(one, torch.nn.Parameter):
        (gradient,) = torch.autograd.grad(found.sum(), one)
        assert gradient.shape == one.shape


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("function", [*PAIRS, "kernel_stein_discrepancy"])
def test_a_flag_of_numpy(function, flag):
    weights = torch.ones(5) / 5
    for options in ({}, {"weights": weights}):
        options = {**good(function), **options, "bandwidth": 2.0}
        expected = getattr(sk, function)(**options, leave_one_out=flag)
        found = getattr(sk, function)(**options, leave_one_out=np.bool_(flag))
        assert torch.equal(found, expected)


def test_the_range_of_a_bandwidth_is_that_of_what_accumulates():
    x = X.double()
    assert sk.rbf_gram(x, bandwidth=1e50).isfinite().all()
    assert sk.rbf_gram(X.half(), bandwidth=1e10).isfinite().all()


@pytest.mark.parametrize("shape", [(4, 1), (5,), (1, 5), (1, 1), (4, 5)], ids=str)
def test_a_bandwidth_broadcasts_to_the_batch(shape):
    p = gaussian_problem(4, 5, 6, 2)
    h = (torch.arange(math.prod(shape)) + 1.0).reshape(shape)
    expected = sk.svgd_direction(p.x, p.grad, bandwidth=h.expand(4, 5))
    assert torch.equal(sk.svgd_direction(p.x, p.grad, bandwidth=h), expected)


def test_options_are_keywords():
    with pytest.raises(TypeError, match="positional argument"):
        sk.svgd_direction(X, GRAD, torch.ones(2, 5))  # type: ignore[misc]


@pytest.mark.parametrize("backend", ["gpu", "", None])
def test_an_unknown_backend_is_refused(backend):
    with pytest.raises((ValueError, TypeError), match="backend"), sk.use_backend(backend):
        pass  # entering is what has to fail
