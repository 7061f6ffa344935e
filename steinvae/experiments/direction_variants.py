"""Directions for an image's codes that differ in the kernel, or in what they know of q.

All estimate the same: codes drawn from q(z | x) should follow g - grad log q, g the posterior's
score, at least on average over the codes that a test function sees together. Each leaves a code
out of the statistics it is moved by, or corrects for it, so that each is zero on average at q = p.
Given as covectors, ready for J^T.

Shapes: B images, S codes an image, d code dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from stein_kernels import median_bandwidth, rbf_gram, svgd_direction


@dataclass(frozen=True)
class Seen:
    """What a direction may look at."""

    codes: Tensor
    """(B, S, d)."""

    score: Tensor
    """(B, S, d): g = grad_z log p(x, z)."""

    own: Tensor
    """(B, S, d): grad_z log q(z | x), exact. Only those directions use it that say so."""

    basis: Tensor
    """(d, d), orthogonal, drawn afresh at every step."""

    def on(self, scale: Tensor) -> Seen:
        """The same in the coordinates z / scale: scores times scale."""
        return Seen(self.codes / scale, self.score * scale, self.own * scale, self.basis)


Direction = Callable[[Seen], Float[Tensor, "B S d"]]


def rbf(seen: Seen, factor: float = 1.0) -> Tensor:
    """One Gaussian kernel over all d dimensions, `factor` times Liu & Wang's bandwidth."""
    h = factor * median_bandwidth(seen.codes)
    return svgd_direction(seen.codes, seen.score, bandwidth=h, leave_one_out=True)


def mixture(seen: Seen, factors: tuple[float, ...] = (0.25, 1.0, 4.0)) -> Tensor:
    """The mean of several bandwidths' directions: the kernel is the mean of their kernels."""
    return torch.stack([rbf(seen, factor) for factor in factors]).mean(0)


def inverse_multiquadric(seen: Seen) -> Tensor:
    """k = (1 + r^2 / h)^(-1/2), h the median squared distance: tails that do not vanish."""
    codes = seen.codes
    difference = codes[:, None] - codes[:, :, None]  # source i, target j: z_j - z_i
    h = median_bandwidth(codes, rule="median_squared")[:, None, None]
    profile = (1 + difference.square().sum(-1) / h).rsqrt() * _others(codes)
    drive = profile.mT @ seen.score
    repulsion = ((profile**3 / h)[..., None] * difference).sum(1)
    return (drive + repulsion) / (codes.shape[1] - 1)


def whitened(seen: Seen, direction: Direction) -> Tensor:
    """`direction` in the coordinates z / s, s the spread of the codes of each dimension."""
    scale = spread(seen.codes)
    return direction(seen.on(scale)) / scale


def spread(codes: Float[Tensor, "B S d"]) -> Float[Tensor, "B 1 d"]:
    """Standard deviation of an image's codes, half way (in the logarithm) to that of the batch."""
    variance = codes.var(1, keepdim=True)
    return (variance * variance.mean(0)).sqrt().sqrt()


def coordinates(seen: Seen) -> Tensor:
    """d kernels of one dimension each: dimension l moves by the codes' l-th coordinates alone."""
    columns, scores = seen.codes.mT[..., None], seen.score.mT[..., None]
    return svgd_direction(columns, scores, leave_one_out=True)[..., 0].mT


def slices(seen: Seen) -> Tensor:
    """`coordinates` in a random orthogonal basis: kernels on d projections (Gong et al. 2021)."""
    basis = seen.basis
    turned = Seen(seen.codes @ basis, seen.score @ basis, seen.own @ basis, basis)
    return coordinates(turned) @ basis.mT


def moments(seen: Seen) -> Tensor:
    """g - grad log of the diagonal Gaussian that the S - 1 other codes have the moments of.

    With v their variance, nu = S - 2, the score -(nu - 2)/nu (z - m)/v is exact on average for a
    Gaussian q. Stein's identity with test functions 1 and z gives the same moments.
    """
    codes = seen.codes
    others = codes.shape[1] - 1
    centred = codes - codes.mean(1, keepdim=True)
    total = centred.square().sum(1, keepdim=True)
    variance = (total - centred.square() * (others + 1) / others) / (others - 1)
    from_mean = centred * (others + 1) / others
    freedom = others - 1
    return seen.score + (freedom - 2) / freedom * from_mean / variance


def kernel_of_known(seen: Seen, factor: float = 1.0) -> Tensor:
    """k * (g - grad log q): the repulsion's control variate, by the exact density."""
    gram = rbf_gram(seen.codes, bandwidth=factor * median_bandwidth(seen.codes))
    return gram.mT @ (seen.score - seen.own) / seen.codes.shape[1]


def pathwise(seen: Seen) -> Tensor:
    """g - grad log q, by the exact density: the ELBO's gradient without its score function."""
    return seen.score - seen.own


def _others(codes: Tensor) -> Tensor:
    return 1 - torch.eye(codes.shape[1], dtype=codes.dtype, device=codes.device)


DEFAULT = "RBF, h of Liu & Wang"
VARIANTS: dict[str, Direction] = {
    DEFAULT: rbf,
    "RBF, h x 2": partial(rbf, factor=2.0),
    "RBF, h x 4": partial(rbf, factor=4.0),
    "RBF, h x 8": partial(rbf, factor=8.0),
    "mixture of h x 1/4, 1, 4": mixture,
    "inverse multiquadric": inverse_multiquadric,
    "RBF on z / s": partial(whitened, direction=rbf),
    "coordinates": coordinates,
    "random slices": slices,
    "random slices of z / s": partial(whitened, direction=slices),
    "moments of the other codes": moments,
    "k * (g - grad log q)": kernel_of_known,
    "g - grad log q, no kernel": pathwise,
}
KNOW_DENSITY = tuple(VARIANTS)[-2:]
"""Directions that need log q and its gradient."""
