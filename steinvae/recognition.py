"""Recognition networks z = f(x, xi), xi ~ N(0, I): Pu et al. 2017, section 2.2.

Only drawing codes is asked of an encoder. Where f(x, .) is injective by construction the codes have
a density, log q(f(x, xi) | x) = log N(xi; 0, I) - log |det df/dxi|, and `injective` says so.

Shapes: B images of X pixels, S codes an image, d code dimensions, H hidden units.
Everything that depends on x alone is computed once per image, not once per code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import e, log, pi

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from steinvae.models.mlp import TanhMlp
from steinvae.spectral import spectral_norm_bound

LOG_SIGMA_START = -1.0
"""Initial log standard deviation: posteriors of images are narrower than the prior."""

_SOFTPLUS_ONE = log(e - 1)
"""Where softplus is 1."""

GAIN = 0.9
"""Bound on the Lipschitz constant of a flow block's residual; below 1 it is invertible."""


class StochasticEncoder(nn.Module, ABC):
    """Common surface: `forward` draws codes; `codes` is d."""

    codes: int

    injective: bool = False
    """Whether f(x, .) is injective whatever the weights are, so that the codes have a density."""

    @abstractmethod
    def forward(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S e"]
    ) -> Float[Tensor, "B S d"]:
        """pixels (B, X), noise (B or 1, S, e) -> codes (B, S, d); e = d except in a user's own."""

    def jacobian(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S e"]
    ) -> Float[Tensor, "B S d e"]:
        """df/dxi by d backward passes; networks of this file override it with one forward pass."""
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            free = noise.expand(len(pixels), -1, -1).detach().requires_grad_()
            rows = [
                torch.autograd.grad(code.sum(), free, retain_graph=True, create_graph=graph)[0]
                for code in self(pixels, free).unbind(-1)
            ]
        return torch.stack(rows, dim=-2)

    def codes_and_log_density(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> tuple[Float[Tensor, "B S d"], Float[Tensor, "B S"]]:
        """Codes f(x, xi) and log q of each in nats, differentiable in the parameters and in xi.

        Errors: TypeError where f(x, .) is not injective: log N(xi) - log |det df/dxi| then counts
        one pre-image of several and is no density.
        """
        if not self.injective:
            raise TypeError(f"{type(self).__name__} is not injective, its codes have no density")
        if noise.shape[-1] != self.codes:
            raise ValueError(
                f"{type(self).__name__} takes {noise.shape[-1]} noise dimensions to {self.codes} "
                "of a code: without a square Jacobian its codes have no density"
            )
        log_det = torch.linalg.slogdet(self.jacobian(pixels, noise)).logabsdet
        return self(pixels, noise), standard_normal(noise) - log_det


class GaussianEncoder(StochasticEncoder):
    """z = mu(x) + sigma(x) xi: the encoder of an ordinary VAE (Kingma & Welling 2014)."""

    injective = True

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

    def jacobian(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d d"]:
        """diag sigma(x)."""
        _, log_sigma = self.moments(self.features(pixels))
        return log_sigma.exp().diag_embed()[:, None].expand(-1, noise.shape[1], -1, -1)

    def codes_and_log_density(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> tuple[Float[Tensor, "B S d"], Float[Tensor, "B S"]]:
        """log q = log N(xi) - sum log sigma."""
        mean, log_sigma = self.moments(self.features(pixels))
        codes = mean[:, None] + log_sigma.exp()[:, None] * noise
        return codes, standard_normal(noise) - log_sigma.sum(-1, keepdim=True)


class NoiseResidual(nn.Module):
    """r(x, xi) = W3 tanh(W2 tanh(Wx features(x) + Wxi xi)), the non-Gaussian part of an encoder."""

    constant_gain: bool = True
    """Whether autograd takes rho for a constant. An exact ELBO gradient may not."""

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

    def with_jacobian(
        self, features: Float[Tensor, "B H"], noise: Float[Tensor, "#B S d"]
    ) -> tuple[Float[Tensor, "B S d"], Float[Tensor, "B S d d"]]:
        """r and dr/dxi transposed: entry (i, j) is d r_j / d xi_i."""
        mixed = self.from_image(features)[:, None] + self.from_noise(noise)
        return _through(self.rest, mixed, self.from_noise.last.weight)

    def gain(self) -> Float[Tensor, ""]:
        """rho = min(1, 0.9 / Lip r): u -> u + rho r is injective."""
        bound = self.lipschitz_bound()
        return (GAIN / (bound.detach() if self.constant_gain else bound)).clamp(max=1.0)

    def lipschitz_bound(self) -> Float[Tensor, ""]:
        """Upper bound of the Lipschitz constant in xi, scalar: the product of the layers' norms."""
        weights = [*self.from_noise.weights(), *self.rest.weights()]
        return torch.stack([spectral_norm_bound(weight) for weight in weights]).prod()


class ResidualEncoder(GaussianEncoder):
    """z = mu(x) + sigma(x) xi + r(x, xi). Training makes it fold, so it has no simple density."""

    injective = False

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

    def jacobian(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d d"]:
        """diag sigma + dr/dxi."""
        features = self.features(pixels)
        _, log_sigma = self.moments(features)
        _, transposed = self.residual.with_jacobian(features, noise)
        return log_sigma.exp().diag_embed()[:, None] + transposed.mT

    def codes_and_log_density(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> tuple[Float[Tensor, "B S d"], Float[Tensor, "B S"]]:
        """Refused: not injective."""
        return StochasticEncoder.codes_and_log_density(self, pixels, noise)


class FlowEncoder(ResidualEncoder):
    """z = mu(x) + sigma(x) T(xi), T a stack of blocks u -> u + rho r(x, u): injective in xi.

    Every block has singular values in [0.1, 1.9] for every x, so the codes have a density and
    det df/dxi > 0. One block cannot put mass on modes far apart; `depth` of them stretch up to
    1.9^depth. rho = min(1, 0.9 / Lip r).
    """

    injective = True

    def __init__(
        self,
        pixels: int,
        hidden: Sequence[int],
        codes: int,
        generator: torch.Generator,
        depth: int = 1,
    ) -> None:
        super().__init__(pixels, hidden, codes, generator)
        further = (
            NoiseResidual(hidden[-1], hidden[-1], codes, generator) for _ in range(depth - 1)
        )
        self.further = nn.ModuleList(further)

    @property
    def blocks(self) -> list[NoiseResidual]:
        """The residuals r, the one next to the noise first."""
        return [self.residual, *self.further]  # type: ignore[list-item]

    def forward(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d"]:
        features = self.features(pixels)
        mean, log_sigma = self.moments(features)
        bent = noise
        for block in self.blocks:
            bent = bent + block.gain() * block(features, bent)
        return mean[:, None] + log_sigma.exp()[:, None] * bent

    def jacobian(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d d"]:
        """diag sigma times the product of the blocks' Jacobians I + rho dr/du."""
        features = self.features(pixels)
        _, log_sigma = self.moments(features)
        _, factors = self._bend(features, noise)
        product = factors[0]
        for factor in factors[1:]:
            product = product @ factor  # transposed, so the later block is on the right
        return log_sigma.exp()[:, None, :, None] * product.mT

    def codes_and_log_density(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> tuple[Float[Tensor, "B S d"], Float[Tensor, "B S"]]:
        """log q = log N(xi) - sum log sigma - sum over blocks of log det (I + rho dr/du)."""
        features = self.features(pixels)
        mean, log_sigma = self.moments(features)
        bent, factors = self._bend(features, noise)
        log_det = log_sigma.sum(-1, keepdim=True)
        for factor in factors:
            log_det = log_det + torch.linalg.slogdet(factor).logabsdet
        return mean[:, None] + log_sigma.exp()[:, None] * bent, standard_normal(noise) - log_det

    def _bend(
        self, features: Float[Tensor, "B H"], noise: Float[Tensor, "#B S d"]
    ) -> tuple[Float[Tensor, "B S d"], list[Tensor]]:
        """T(xi), and every block's transposed Jacobian (B, S, d, d)."""
        identity = torch.eye(self.codes, dtype=noise.dtype, device=noise.device)
        bent, factors = noise, []
        for block in self.blocks:
            gain = block.gain()
            moved, transposed = block.with_jacobian(features, bent)
            bent = bent + gain * moved
            factors.append(identity + gain * transposed)
        return bent, factors


class PlanarEncoder(GaussianEncoder):
    """`depth` planar layers z -> z + u tanh(w.z + b) on mu + sigma xi; u, w, b depend on x.

    Source: Rezende & Mohamed 2015, eqs. 10 to 12 and appendix A.1. u is moved along w so that
    w.u > -1, which makes a layer invertible; the softplus of A.1 is shifted to leave u = 0 alone,
    so that layers start near the identity.
    """

    def __init__(
        self,
        pixels: int,
        hidden: Sequence[int],
        codes: int,
        generator: torch.Generator,
        depth: int = 1,
    ) -> None:
        super().__init__(pixels, hidden, codes, generator)
        self.depth = depth
        self.layers = TanhMlp((hidden[-1], depth * (2 * codes + 1)), generator, last_scale=0.1)

    def forward(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d"]:
        return self.codes_and_log_density(pixels, noise)[0]

    def jacobian(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d d"]:
        """By d backward passes."""
        return StochasticEncoder.jacobian(self, pixels, noise)

    def codes_and_log_density(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> tuple[Float[Tensor, "B S d"], Float[Tensor, "B S"]]:
        """log q = log N(xi) - sum log sigma - sum over layers of log(1 + (1 - tanh^2) w.u)."""
        features = self.features(pixels)
        mean, log_sigma = self.moments(features)
        codes = mean[:, None] + log_sigma.exp()[:, None] * noise
        log_det = log_sigma.sum(-1, keepdim=True)
        for layer in self.layers(features).chunk(self.depth, dim=-1):
            raw, normal, shift = layer.split([self.codes, self.codes, 1], dim=-1)
            inner = (raw * normal).sum(-1, keepdim=True)
            allowed = F.softplus(inner + _SOFTPLUS_ONE) - 1  # > -1, and 0 at 0
            tiny = torch.finfo(normal.dtype).tiny
            square = normal.square().sum(-1, keepdim=True).clamp_min(tiny)
            along = raw + (allowed - inner) / square * normal
            height = (codes @ normal[:, :, None] + shift[:, None]).tanh()
            codes = codes + along[:, None] * height
            slope = (1 - height.square()) * allowed[:, None]
            log_det = log_det + slope.squeeze(-1).log1p()
        return codes, standard_normal(noise) - log_det


class ConcatEncoder(StochasticEncoder):
    """z = scale MLP([x, xi]): the form the paper draws. Not injective; kept for its experiments."""

    scale: float = 1.0
    """How far codes reach. A factor: Adam's steps do not grow with wider weights."""

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
        mixed = self.from_image(pixels)[:, None] + self.from_noise(noise)
        return self.scale * self.rest(mixed.tanh())

    def jacobian(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d d"]:
        """scale W_L D ... D W_xi in one forward pass."""
        mixed = self.from_image(pixels)[:, None] + self.from_noise(noise)
        return self.scale * _through(self.rest, mixed, self.from_noise.last.weight)[1].mT


ENCODERS: dict[str, type[StochasticEncoder]] = {
    "gaussian": GaussianEncoder,
    "flow": FlowEncoder,
    "planar": PlanarEncoder,
    "residual": ResidualEncoder,
    "concat": ConcatEncoder,
}


def make_encoder(
    kind: str,
    pixels: int,
    hidden: Sequence[int],
    codes: int,
    generator: torch.Generator,
    depth: int = 1,
) -> StochasticEncoder:
    """The encoder called `kind`; `depth` counts the blocks of flow and the layers of planar."""
    if kind not in ENCODERS:
        raise ValueError(f"model.encoder must be one of {sorted(ENCODERS)}, got {kind!r}")
    options = {"depth": depth} if kind in ("flow", "planar") else {}
    return ENCODERS[kind](pixels, hidden, codes, generator, **options)  # type: ignore[call-arg]


def standard_normal(noise: Float[Tensor, "*B d"]) -> Float[Tensor, "*B"]:
    """log N(xi; 0, I) in nats: (..., d) -> (...)."""
    return -0.5 * (noise.square().sum(-1) + noise.shape[-1] * log(2 * pi))


def _through(
    network: TanhMlp, mixed: Float[Tensor, "B S H"], first: Float[Tensor, "H d"]
) -> tuple[Tensor, Tensor]:
    """network(tanh(mixed)) and its transposed Jacobian in xi, where d mixed / d xi = `first`.

    Tangents are rows (B, S, d, width): every layer is one matrix product over all of them.
    """
    value = mixed.tanh()
    tangents = (1 - value.square())[..., None, :] * first.T
    for layer in network.hidden:
        value = layer(value).tanh()
        slope = (1 - value.square())[..., None, :]
        tangents = slope * F.linear(tangents, layer.weight)  # type: ignore[arg-type]
    return network.last(value), F.linear(tangents, network.last.weight)
