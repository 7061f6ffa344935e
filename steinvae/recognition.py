"""Recognition networks z = f(x, xi), xi ~ N(0, I_d): Pu et al. 2017, section 2.2.

Shapes: B images of X pixels, S codes an image, d code dimensions, H hidden units.
Everything that depends on x alone is computed once per image, not once per code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steinvae.models.mlp import TanhMlp

LOG_SIGMA_START = -1.0
"""Initial log standard deviation: posteriors of images are narrower than the prior."""

GAIN = 0.9
"""Bound on the Lipschitz constant of the flow's residual; below 1 it is invertible."""


class StochasticEncoder(nn.Module, ABC):
    """Common surface: `forward` draws codes; `codes` is d, also the dimension of the noise."""

    codes: int

    @abstractmethod
    def forward(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d"]:
        """pixels (B, X), noise (B or 1, S, d) -> codes (B, S, d)."""


class GaussianEncoder(StochasticEncoder):
    """z = mu(x) + sigma(x) xi: the encoder of an ordinary VAE (Kingma & Welling 2014)."""

    def __init__(
        self, pixels: int, hidden: Sequence[int], codes: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.codes = codes
        self.trunk = TanhMlp((pixels, *hidden), generator)
        self.head = TanhMlp((hidden[-1], 2 * codes), generator)
        with torch.no_grad():
            self.head.last.bias[codes:] = LOG_SIGMA_START

    def features(self, pixels: Float[Tensor, "B X"]) -> Float[Tensor, "B H"]:
        """Hidden features of the images, (B, X) -> (B, H)."""
        return self.trunk(pixels).tanh()

    def moments(
        self, features: Float[Tensor, "B H"]
    ) -> tuple[Float[Tensor, "B d"], Float[Tensor, "B d"]]:
        """mu and log sigma, each (B, d)."""
        mean, log_sigma = self.head(features).chunk(2, dim=-1)
        return mean, log_sigma

    def forward(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d"]:
        mean, log_sigma = self.moments(self.features(pixels))
        return mean[:, None] + log_sigma.exp()[:, None] * noise


class NoiseResidual(nn.Module):
    """r(x, xi) = W3 tanh(W2 tanh(Wx features(x) + Wxi xi)), the non-Gaussian part of an encoder."""

    def __init__(self, features: int, hidden: int, codes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.from_image = TanhMlp((features, hidden), generator)
        self.from_noise = TanhMlp((codes, hidden), generator)
        self.rest = TanhMlp((hidden, hidden, codes), generator, last_scale=0.1)

    def forward(
        self, features: Float[Tensor, "B H"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d"]:
        """features (B, H), noise (B or 1, S, d) -> (B, S, d)."""
        return self.rest((self.from_image(features)[:, None] + self.from_noise(noise)).tanh())

    def lipschitz_bound(self) -> Float[Tensor, ""]:
        """Upper bound of the Lipschitz constant in xi, scalar: the product of the layers' norms."""
        weights = [*self.from_noise.weights(), *self.rest.weights()]
        norms = [spectral_norm_bound(weight.detach()) for weight in weights]
        return torch.stack(norms).prod()


class ResidualEncoder(GaussianEncoder):
    """z = mu(x) + sigma(x) xi + r(x, xi). Training makes it fold, so it has no simple density."""

    def __init__(
        self, pixels: int, hidden: Sequence[int], codes: int, generator: torch.Generator
    ) -> None:
        super().__init__(pixels, hidden, codes, generator)
        self.residual = NoiseResidual(hidden[-1], hidden[-1], codes, generator)

    def forward(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d"]:
        features = self.features(pixels)
        mean, log_sigma = self.moments(features)
        gaussian = mean[:, None] + log_sigma.exp()[:, None] * noise
        return gaussian + self.residual(features, noise)


class FlowEncoder(ResidualEncoder):
    """z = mu(x) + sigma(x) (xi + rho r(x, xi)), rho = min(1, 0.9 / Lip r): injective in xi.

    The map xi -> xi + rho r has singular values in [0.1, 1.9] for every x, so the codes have a
    density and det df/dxi keeps one sign. rho is a constant for autograd.
    """

    def contraction(self) -> Float[Tensor, ""]:
        """rho, scalar."""
        return (GAIN / self.residual.lipschitz_bound()).clamp(max=1.0)

    def forward(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d"]:
        features = self.features(pixels)
        mean, log_sigma = self.moments(features)
        bent = noise + self.contraction() * self.residual(features, noise)
        return mean[:, None] + log_sigma.exp()[:, None] * bent


class ConcatEncoder(StochasticEncoder):
    """z = MLP([x, xi]): the form the paper draws. Not injective; kept for its experiments."""

    def __init__(
        self, pixels: int, hidden: Sequence[int], codes: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.codes = codes
        self.from_image = TanhMlp((pixels, hidden[0]), generator)
        self.from_noise = TanhMlp((codes, hidden[0]), generator)
        self.rest = TanhMlp((*hidden, codes), generator)

    def forward(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d"]:
        return self.rest((self.from_image(pixels)[:, None] + self.from_noise(noise)).tanh())


ENCODERS: dict[str, type[StochasticEncoder]] = {
    "gaussian": GaussianEncoder,
    "flow": FlowEncoder,
    "residual": ResidualEncoder,
    "concat": ConcatEncoder,
}


def make_encoder(
    kind: str, pixels: int, hidden: Sequence[int], codes: int, generator: torch.Generator
) -> StochasticEncoder:
    """The encoder called `kind`: gaussian, flow, residual or concat."""
    if kind not in ENCODERS:
        raise ValueError(f"model.encoder must be one of {sorted(ENCODERS)}, got {kind!r}")
    return ENCODERS[kind](pixels, hidden, codes, generator)  # type: ignore[call-arg]


def spectral_norm_bound(weight: Float[Tensor, "m n"], squarings: int = 5) -> Float[Tensor, ""]:
    """Upper bound of the largest singular value of a matrix (m, n), at most n^(1/128) too large.

    With A = W^T W and k squarings, lambda_max(A) <= |A^(2^k)|_F^(1/2^k): matrix products only, so
    it needs no decomposition, no state between calls and no synchronisation on a GPU. Dividing
    by the largest entry first, and by the norm before every squaring, keeps float32 in range.
    """
    rows, columns = weight.shape
    largest = weight.abs().max().clamp_min(torch.finfo(weight.dtype).tiny)
    weight = weight / largest
    power = weight.T @ weight if columns <= rows else weight @ weight.T
    log_scale = torch.zeros((), device=weight.device)
    for squaring in range(squarings):
        norm = power.norm().clamp_min(torch.finfo(power.dtype).tiny)
        log_scale = log_scale + norm.log() / 2**squaring
        power = power / norm
        power = power @ power
    tail = power.norm().clamp_min(torch.finfo(power.dtype).tiny).log() / 2**squarings
    return largest * ((log_scale + tail) / 2).exp()
