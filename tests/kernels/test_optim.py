"""SVGDAdam against svgd_direction followed by torch's Adam and AdamW."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch

import stein_kernels
from stein_kernels.optim import SVGDAdam
from stein_kernels.testing import assert_relative_error, gaussian_problem, generator

LIMIT = {torch.float32: 2e-6, torch.float64: 1e-13, torch.bfloat16: 0.02, torch.float16: 2e-3}
OPTIONS = [
    {},
    {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3},
    {"weight_decay": 0.1, "lr": 0.05},
    {"bandwidth": "median"},
    {"bandwidth": 30.0},
    {"leave_one_out": True},
    {"maximize": True},
]


def particles(dtype=torch.float32, m=7, d=30):
    return torch.nn.Parameter(gaussian_problem(m, d, dtype=dtype).x)


def loss_gradient(step, param):
    """Of -log N(0, I) on a batch: the same noise for both optimisers."""
    noise = torch.randn(param.shape, generator=generator(step), dtype=torch.float64)
    return (param.detach().double() + 0.3 * noise).to(param.dtype)


def run(param, steps, **options):
    optimizer = SVGDAdam([param], **options)
    for step in range(steps):
        param.grad = loss_gradient(step, param)
        optimizer.step()
    return optimizer


def run_separately(param, steps, bandwidth="liu_wang", leave_one_out=False, maximize=False, **adam):
    param = torch.nn.Parameter(param.detach().double())
    optimizer = torch.optim.AdamW([param], **{"weight_decay": 0.0, **adam})
    for step in range(steps):
        score = loss_gradient(step, param) * (1 if maximize else -1)
        param.grad = -stein_kernels.svgd_direction(
            param.detach(), score, bandwidth=bandwidth, leave_one_out=leave_one_out
        )
        optimizer.step()
    return param.detach()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [(7, 30), (1, 3), (40, 200)], ids=str)
def test_steps_are_those_of_adam_along_the_direction(options, shape):
    param = particles(torch.float64, *shape)
    expected = run_separately(param, 5, **options)
    run(param, 5, **options)
    assert torch.equal(param, particles(torch.float64, *shape)) == (
        shape[0] == 1 and "leave_one_out" in options  # no other particle, so no direction
    )
    assert_relative_error(param.detach(), expected, LIMIT[torch.float64])


@pytest.mark.parametrize("dtype", LIMIT, ids=str)
def test_dtypes(dtype):
    param = particles(dtype)
    expected = run_separately(param, 3, lr=0.02)
    optimizer = run(param, 3, lr=0.02)
    assert param.dtype == dtype
    assert_relative_error(param.detach(), expected, LIMIT[dtype])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert optimizer.state[param]["exp_avg"].dtype == wide


def test_the_reference_gives_the_same():
    first, second = particles(), particles()
    run(first, 3)
    with stein_kernels.use_backend("reference"):
        run(second, 3)
    assert_relative_error(first.detach(), second.detach(), 2e-6)


def test_particles_become_samples():
    param = torch.nn.Parameter(torch.randn(50, 2, generator=generator()) * 0.1 + 3)
    optimizer = SVGDAdam([param], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = 0.5 * param.square().sum()
        loss.backward()
        return loss

    for _ in range(300):
        loss = optimizer.step(closure)
    assert loss.requires_grad
    assert param.mean(0).abs().max() < 0.1
    assert (param.std(0) - 1).abs().max() < 0.2


def test_groups_keep_their_options():
    first, second, still = particles(), particles(), particles()
    alone = particles()
    optimizer = SVGDAdam(
        [{"params": first, "lr": 0.1}, {"params": [second, still], "bandwidth": 5.0}], lr=0.01
    )
    for param in (first, second):
        param.grad = loss_gradient(0, param)
    optimizer.step()
    run(alone, 1, lr=0.1)
    assert torch.equal(first, alone)
    assert not torch.equal(first, second)
    assert torch.equal(still, particles())
    assert still not in optimizer.state


def test_parameters_that_are_not_contiguous():
    storage = torch.zeros(30, 7)
    param = torch.nn.Parameter(storage.t())
    with torch.no_grad():
        param.copy_(particles())
    run(param, 2)
    other = particles()
    run(other, 2)
    assert_relative_error(param.detach(), other.detach(), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_goes_on_after_a_checkpoint(dtype):
    straight = particles(dtype)
    run(straight, 6, lr=0.02)
    param = particles(dtype)
    optimizer = run(param, 3, lr=0.02)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = SVGDAdam([param], lr=0.7)
    resumed.load_state_dict(torch.load(file))
    for step in range(3, 6):
        param.grad = loss_gradient(step, param)
        resumed.step()
    assert torch.equal(param, straight)
    assert resumed.state[param]["step"].item() == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hooks_see_and_change_what_is_loaded(dtype):
    param = particles(dtype)
    saved = run(param, 2, lr=0.02).state_dict()
    early, late = SVGDAdam([param]), SVGDAdam([param])

    def halved(_, given):
        states = {
            index: {**state, "exp_avg": state["exp_avg"] / 2}
            for index, state in given["state"].items()
        }
        return {**given, "state": states}

    def emptied(optimizer):
        optimizer.state[param]["exp_avg_sq"].zero_()

    early.register_load_state_dict_pre_hook(halved)
    late.register_load_state_dict_post_hook(emptied)
    for optimizer in (early, late):
        optimizer.load_state_dict(saved)
        assert optimizer.state[param]["exp_avg"].dtype == torch.float32
    before = saved["state"][0]
    assert torch.equal(early.state[param]["exp_avg"], before["exp_avg"] / 2)
    assert torch.equal(late.state[param]["exp_avg"], before["exp_avg"])
    assert not late.state[param]["exp_avg_sq"].any()


def test_parameters_with_names():
    one, other = particles(), particles()
    optimizer = SVGDAdam([("one", one), ("other", other)])
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["one", "other"]
    one.grad = loss_gradient(0, one)
    optimizer.step()
    assert not torch.equal(one, other)


def test_groups_keep_their_numbers_on_the_device(monkeypatch):
    """A number made in Python is a copy from the host, which a CUDA graph cannot hold."""
    groups = [{"params": [torch.randn(4, 3).requires_grad_()], "lr": lr} for lr in (0.1, 0.2)]
    optimizer = SVGDAdam(groups)

    def step():
        for group in groups:
            group["params"][0].grad = torch.ones(4, 3)
        optimizer.step()

    step()
    monkeypatch.setattr(torch, "tensor", lambda *args, **kwargs: pytest.fail("a copy"))
    step()


def test_a_schedule_and_a_copy():
    param = particles()
    optimizer = SVGDAdam([param], lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)
    param.grad = loss_gradient(0, param)
    optimizer.step()
    schedule.step()
    before = param.detach().clone()
    optimizer.step()
    assert torch.equal(param, before)
    twin = copy.deepcopy(optimizer)
    assert twin.param_groups[0]["lr"] == 0


X = torch.zeros(3, 4)
BAD = [
    ([torch.zeros(0, 4)], {}, ValueError, r"at least one particle.*\(0, 4\)"),
    ([torch.zeros(3, 0)], {}, ValueError, r"at least one particle.*\(3, 0\)"),
    ([torch.zeros(2, 3, 4)], {}, ValueError, r"shape \(M, P\).*\(2, 3, 4\): join .*torch\.cat"),
    ([torch.zeros(4)], {}, ValueError, r"shape \(M, P\).*\(4,\): join the stacked .*torch\.cat"),
    ([torch.zeros(())], {}, ValueError, r"shape \(M, P\), one particle a row, got \(\)"),
    ([[0.0]], {}, TypeError, "a parameter must be a torch.Tensor, got list"),
    ([X.to(torch.complex64)], {}, TypeError, "complex64"),
    ([("w", X[0])], {}, ValueError, r"shape \(M, P\).*\(4,\)"),
    ([X], {"lr": -1.0}, ValueError, "lr must be at least 0"),
    ([X], {"lr": float("nan")}, ValueError, "lr must be"),
    ([X], {"lr": 10**5000}, ValueError, "lr must be at least 0 and less than inf, got inf"),
    ([X], {"lr": "1"}, TypeError, "lr must be a number, got str"),
    ([X], {"lr": True}, TypeError, "lr must be a number, got bool"),
    ([X], {"betas": (0.9, 1.0)}, ValueError, "betas must be at least 0 and less than 1"),
    ([X], {"betas": 0.9}, TypeError, "betas must be two numbers"),
    ([X], {"eps": -1e-8}, ValueError, "eps must be"),
    ([X], {"weight_decay": -0.1}, ValueError, "weight_decay must be"),
    ([X], {"bandwidth": "mean"}, ValueError, "bandwidth must be .* one of .* got 'mean'"),
    ([X], {"bandwidth": 0.0}, ValueError, "bandwidth must be positive"),
    ([X], {"bandwidth": 1e50}, ValueError, "bandwidth must be .* float32 has"),
    ([X.half()], {"bandwidth": 1e-50}, ValueError, "bandwidth must be .* 1e-50; float32 has"),
    ([{"params": [X], "bandwidth": 1e50}], {}, ValueError, "bandwidth must be .* float32 has"),
    ([X], {"bandwidth": None}, TypeError, "bandwidth must be a number"),
    ([X], {"leave_one_out": 1}, TypeError, "leave_one_out must be True or False"),
    ([X], {"maximize": "no"}, TypeError, "maximize must be True or False"),
    ([{"params": [X], "lr": -1}], {}, ValueError, "lr must be"),
]


@pytest.mark.parametrize(("params", "options", "error", "message"), BAD)
def test_what_is_refused(params, options, error, message):
    with pytest.raises(error, match=f"SVGDAdam: .*{message}"):
        SVGDAdam(params, **options)


def test_a_set_has_no_order():
    with pytest.raises(TypeError, match="ordered collections"):
        SVGDAdam([{"params": {X, X + 1}}])


def test_numbers_of_numpy_are_numbers():
    param, other = particles(), particles()
    run(param, 2, lr=np.float32(0.125), bandwidth=np.float32(2.0))
    run(other, 2, lr=0.125, bandwidth=2.0)
    assert torch.equal(param, other)


def test_a_state_made_with_numbers_of_numpy_loads_by_torchs_default(tmp_path):
    """torch.load takes tensors and types of Python alone."""
    numbers: Any = {"lr": np.float64(0.1), "eps": np.float32(1e-8), "weight_decay": np.int64(0)}
    numbers["betas"] = np.float64(0.9), np.float64(0.99)
    flags: Any = {"leave_one_out": np.True_, "maximize": np.False_}
    group = {"params": [particles()], "bandwidth": np.float32(2.0)}
    optimizer = SVGDAdam([group], **numbers, **flags)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    twin = SVGDAdam([particles()])
    twin.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert twin.param_groups[0]["betas"] == (0.9, 0.99)
    assert twin.param_groups[0]["bandwidth"] == 2.0
    assert twin.param_groups[0]["leave_one_out"] is True


def test_the_state_of_another_optimiser_is_refused():
    param = particles()
    param.grad = loss_gradient(0, param)
    optimizer = SVGDAdam([param], lr=0.1)
    for other in (torch.optim.Adam([param]), torch.optim.SGD([param], momentum=0.9)):
        other.step()
        with pytest.raises(ValueError, match=r"SVGDAdam: load_state_dict .* lacks .*'bandwidth'"):
            optimizer.load_state_dict(other.state_dict())
    optimizer.step()  # and has changed nothing
    saved = optimizer.state_dict()
    del saved["state"][0]["exp_avg_sq"]
    with pytest.raises(ValueError, match="the state of a parameter lacks 'exp_avg_sq'"):
        optimizer.load_state_dict(saved)


def test_a_sum_keeps_the_width_and_a_mean_does_not():
    """What the docstring warns of, at 20 particles of N(0, I)."""
    width = {}
    for name in ("sum", "mean"):
        param = torch.nn.Parameter(torch.randn(20, 2, generator=generator()))
        optimizer = SVGDAdam([param], lr=0.1)
        for _ in range(300):
            optimizer.zero_grad()
            getattr(0.5 * param.square().sum(1), name)().backward()
            optimizer.step()
        width[name] = param.detach().var(0).mean()
    assert 0.6 < width["sum"] < 1
    assert width["mean"] > 5


def test_a_sparse_gradient_is_refused():
    param = particles()
    param.grad = torch.zeros_like(param).to_sparse()
    with pytest.raises(TypeError, match=r"SVGDAdam: grad must be a dense"):
        SVGDAdam([param]).step()


def test_the_op_behind_it():
    p = gaussian_problem(1, 6, 9)
    moments = torch.zeros_like(p.x), torch.zeros_like(p.x)
    factors = torch.tensor([0.1, 1.0, 0.9, 0.1, 0.99, 0.01, 1e-8, 1.0, -1.0])
    torch.library.opcheck(
        torch.ops.stein_kernels.svgd_adam_step.default,
        (p.x, p.grad, *moments, factors, None, "liu_wang", False),
    )
