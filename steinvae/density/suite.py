"""Every estimator on the same images of one run, each with its assumptions checked.

Shapes: M decoders, B images of X pixels. Units: nats an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from steinvae.density.annealed import ais
from steinvae.density.annealing import Annealing
from steinvae.density.elbo import encoder_bounds
from steinvae.density.findings import UPPER, Assumption, Finding, mean_and_error
from steinvae.density.importance import ESTIMATORS as PROPOSALS
from steinvae.density.importance import importance_weights
from steinvae.density.likelihood import (
    Treatment,
    effective_samples,
    log_mean_exp,
    noise_dimension,
    over_decoders,
)
from steinvae.density.sandwich import Simulator, bdmc
from steinvae.density.units import active_units, enough_images, unit_activity
from steinvae.models.bernoulli import BernoulliPixels
from steinvae.networks import Networks

ESTIMATORS = ("iw_g", "elbo", "ais", "bdmc", "units")
MOST_CODES = 4096
"""Code dimensions whose d x d covariances and Jacobians are still made: 128 MB in float64."""

_FEW, _SMALL_SHARE = 2.0, 0.01
"""A median effective number below 2, or below 1 % of the samples, is called loose. It is a hint: a
proposal that misses a part of the posterior cannot see what it misses."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Which estimators, and how hard they try."""

    estimators: Sequence[str] = ESTIMATORS
    samples: int = 5000
    """Importance samples an image, of iw_g, ELBO and S-ELBO."""

    annealing: Annealing = field(default_factory=Annealing)
    simulated: int = 50
    """Simulated images of the sandwich."""

    fit_samples: int = 8
    inflation: float = 1.2
    proposal: Literal["fitted", "diagonal"] = "fitted"
    """Of iw_g: full covariances, or diagonal ones (then iw_d), for thousands of codes."""

    seed: int = 0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.estimators) - set(ESTIMATORS))
        if unknown:
            raise ValueError(f"estimators must be among {', '.join(ESTIMATORS)}, got {unknown[0]}")
        for name in ("samples", "simulated"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


Estimator = Callable[[Networks, Tensor, Suite], list[Finding]]


def measure_all(
    networks: Networks, pixels: Float[Tensor, "B X"], suite: Suite
) -> Iterator[Finding]:
    """The findings, one estimator after the other, as each is done.

    All but the sandwich look at the same images; image b's randomness depends on (seed, b) alone.
    With several decoders a bound comes twice, for the mixture and for the average of log p(x | z).
    Errors: ValueError, before anything is computed, where one of them is among `uncomputable`.
    """
    reasons = uncomputable(networks, len(pixels), suite)
    for name in suite.estimators:
        if name in reasons:
            raise ValueError(
                f"{name} cannot be computed: {reasons[name]}; leave it out of the estimators"
            )
    for name in ESTIMATORS:
        if name not in suite.estimators:
            continue
        begun = perf_counter()
        found = _TABLE[name](networks, pixels, suite)
        seconds = perf_counter() - begun
        shared = seconds / len(found)
        yield from (replace(each, seconds=shared, seed=suite.seed) for each in found)


def uncomputable(networks: Networks, images: int, suite: Suite) -> dict[str, str]:
    """Why estimators cannot be computed for these networks on so many images, by their names.

    An estimator would need d x d matrices of more than MOST_CODES codes, a density that the
    encoder has not, draws that the model does not make, or a second image.
    """
    encoder, reasons = networks.encoder, {}
    codes, noise, kind = encoder.codes, noise_dimension(encoder), type(encoder).__name__
    most = f"{codes:,} x {codes:,}, which is for at most {MOST_CODES:,} codes"
    if codes > MOST_CODES and suite.proposal == "fitted":
        reasons["iw_g"] = f"it fits a covariance of {most} (set evaluation.proposal to diagonal)"
    if noise != codes:
        maps = f"{kind} maps {noise:,} noise dimensions to {codes:,} codes"
        reasons["elbo"] = f"{maps}, which have no density by a Jacobian"
    elif codes > MOST_CODES:
        reasons["elbo"] = f"it takes determinants of {most}"
    if not isinstance(networks.model, Simulator):
        reasons["bdmc"] = f"images cannot be drawn from {type(networks.model).__name__}"
    if images < 2:
        reasons["units"] = "it looks for what varies over images, and there is one"
    return reasons


def _iw_g(networks: Networks, pixels: Tensor, suite: Suite) -> list[Finding]:
    chunks = importance_weights(
        networks,
        pixels,
        samples=suite.samples,
        seed=suite.seed,
        fit_samples=suite.fit_samples,
        inflation=suite.inflation,
        proposal=suite.proposal,
    )
    bounds: dict[Treatment, list[Tensor]] = {theta: [] for theta in _treatments(networks)}
    effective = []
    for each in chunks:
        effective.append(effective_samples(over_decoders(each, "mixture")))
        for theta, parts in bounds.items():
            parts.append(log_mean_exp(over_decoders(each, theta), -1))
    median = torch.cat(effective).median().item()
    of_its = " of diagonal covariance" if suite.proposal == "diagonal" else ""
    rests_on = (
        normalised(networks, pixels),
        Assumption(
            "the proposal's density is known",
            "yes",
            f"a Gaussian{of_its}, whatever the encoder; {_tightness(median, suite.samples)}",
        ),
    )
    name = f"{PROPOSALS[suite.proposal]}({suite.samples})"
    settings = {"inflation": suite.inflation}
    if suite.proposal == "fitted":
        settings["fit_samples"] = suite.fit_samples
    make = partial(_nll, name, rests_on, {"effective_samples": median}, settings=settings)
    return [make(theta, torch.cat(parts)) for theta, parts in bounds.items()]


def _elbo(networks: Networks, pixels: Tensor, suite: Suite) -> list[Finding]:
    found = encoder_bounds(networks, pixels, samples=suite.samples, seed=suite.seed)
    name = type(networks.encoder).__name__
    median = found.effective.median().item()
    share = (
        f"minority of det signs {found.minority:.2%} of {found.determinants:,}; "
        f"{_tightness(median, suite.samples)}"
    )
    if found.flagged:
        injective = Assumption(
            "f(x, .) is injective", "no", f"{name}: {share}, the share of signs is above 1 %"
        )
    elif found.injective:
        injective = Assumption("f(x, .) is injective", "yes", f"{name} by construction; {share}")
    else:
        injective = Assumption("f(x, .) is injective", "not shown", f"{name}: {share}")
    numbers = {"effective_samples": median, "minority_of_signs": found.minority}
    rests_on = (normalised(networks, pixels), injective)
    elbo = partial(_nll, f"elbo({suite.samples})", rests_on, numbers)
    s_elbo = partial(_nll, f"s_elbo({suite.samples})", rests_on, numbers)
    return [
        make(theta, values[theta])
        for make, values in ((elbo, found.elbo), (s_elbo, found.s_elbo))
        for theta in _treatments(networks)
    ]


def _ais(networks: Networks, pixels: Tensor, suite: Suite) -> list[Finding]:
    findings = []
    for theta in _treatments(networks):
        settings = replace(suite.annealing, theta=theta)
        found = ais(networks, pixels, settings, seed=suite.seed)
        acceptance, median = found.acceptance.mean().item(), found.effective.median().item()
        rests_on = (
            normalised(networks, pixels),
            Assumption(
                "every transition leaves its tempered posterior invariant",
                "yes",
                f"HMC with a Metropolis test, steps fixed by a pilot; acceptance {acceptance:.2f}, "
                f"{_tightness(median, settings.chains)}; no encoder is used",
            ),
        )
        name = f"ais({settings.temperatures}x{settings.chains})"
        numbers = {"acceptance": acceptance, "effective_chains": median}
        findings.append(_nll(name, rests_on, numbers, theta, found.lower))
    return findings


def _bdmc(networks: Networks, pixels: Tensor, suite: Suite) -> list[Finding]:
    settings = replace(suite.annealing, theta="mixture")
    found = bdmc(networks, suite.simulated, settings, seed=suite.seed)
    gap, error = mean_and_error(found.upper - found.lower)
    order = f"gap {gap:.3f} nats" + ("" if error is None else f" ± {error:.3f}")
    verdict = "yes" if found.consistent else "no"
    rests_on = (
        Assumption("codes are exact posterior draws", "yes", "each image was drawn from its code"),
        Assumption("the bounds are in order", "not shown" if error is None else verdict, order),
        Assumption(
            "test images are as hard as the model's own",
            "not shown",
            "no exact posterior code of a test image is known",
        ),
    )
    return [
        Finding(
            estimator=f"bdmc({settings.temperatures}x{settings.chains})",
            metric="bdmc_gap",
            value=gap,
            standard_error=error,
            images=suite.simulated,
            bounds="upper bound of the error of ais on images of the model, in expectation",
            assumptions=rests_on,
            diagnostics={
                "acceptance": found.acceptance,
                "nll_upper": -found.lower.mean().item(),
                "nll_lower": -found.upper.mean().item(),
            },
        )
    ]


def _units(networks: Networks, pixels: Tensor, suite: Suite) -> list[Finding]:
    activity = unit_activity(networks, pixels, seed=suite.seed)
    return [
        Finding(
            estimator="units(64)",
            metric="active_units",
            value=active_units(activity),
            standard_error=None,
            images=len(pixels),
            bounds=f"no bound: code dimensions of {len(activity)} whose mean varies over images",
            assumptions=(enough_images(len(pixels)),),
            diagnostics={"largest": activity.max().item(), "median": activity.median().item()},
        )
    ]


_TABLE: dict[str, Estimator] = {
    "iw_g": _iw_g,
    "elbo": _elbo,
    "ais": _ais,
    "bdmc": _bdmc,
    "units": _units,
}


def normalised(networks: Networks, pixels: Tensor) -> Assumption:
    """Whether p(x | z) is a probability, or a density, of these images at all."""
    text, model = "p(x | z) is normalised over images like these", networks.model
    name = type(model).__name__
    if isinstance(model, BernoulliPixels):
        if bool(((pixels == 0) | (pixels == 1)).all()):
            return Assumption(text, "yes", "all pixels are bits")
        return Assumption(text, "no", "grey levels under a Bernoulli likelihood: not a log density")
    if isinstance(model, Simulator):
        return Assumption(text, "yes", f"{name} can be drawn from")
    if getattr(model, "normalised", False):
        return Assumption(text, "yes", f"{name} by construction")
    return Assumption(text, "not shown", f"{name} has neither draw_images nor normalised = True")


def _treatments(networks: Networks) -> tuple[Treatment, ...]:
    return ("mixture",) if networks.theta.particles == 1 else ("mixture", "average")


def _tightness(median: float, samples: int) -> str:
    loose = ": the bound is loose" if median < max(_FEW, _SMALL_SHARE * samples) else ""
    return f"median effective number {median:.1f} of {samples:,}{loose}"


def _nll(
    name: str,
    rests_on: tuple[Assumption, ...],
    diagnostics: dict[str, float],
    theta: Treatment,
    log_evidence: Float[Tensor, " B"],
    settings: Mapping[str, float] | None = None,
) -> Finding:
    value, error = mean_and_error(-log_evidence)
    return Finding(
        estimator=name,
        metric="test_nll",
        value=value,
        standard_error=error,
        images=len(log_evidence),
        bounds=UPPER,
        assumptions=rests_on,
        theta=theta,
        diagnostics=diagnostics,
        settings=settings or {},
        per_image=-log_evidence,
    )
