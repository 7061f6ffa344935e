"""Poisson factor analysis of counts: Zhou et al. 2012; Pu et al. 2017, section 5.1.

    x_p ~ Pois( sum_v z_v theta_vp ),   theta_v ~ Dir on the simplex,   z_v ~ Gamma(a, rate b)

Codes are u in R^V, where Stein directions may go: z = e^u (`log`) or z = log(1 + e^u) (`softplus`).
As the rows of theta sum to 1, the rates of a document sum to sum_v z_v, and

    log p(x, u) = sum_p [ x_p log(z theta)_p - log x_p! ] - sum_v z_v
                + sum_v [ a log b - log Gamma(a) + (a - 1) log z_v - b z_v + log dz_v/du_v ]

Shapes: M particles of theta, B documents of P words, n codes a document, V topics. Units: nats.
"""

from __future__ import annotations

from math import lgamma, log
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from steinvae.particles import Parameter, ParticleEnsemble
from steinvae.recognition import standard_normal

Positivity = Literal["log", "softplus"]

_LEFT_TAIL = -15.0
"""Below it log log(1 + e^u) = u - e^u/2 to 1e-13, and log1p(exp(u)) would soon underflow."""

_DOCUMENTS_AT_ONCE = 8


class PoissonFactor:
    """The generative model, theta known; a `GenerativeModel`, so that every method trains on it.

    Training takes N(0, I) for the prior of codes. The gamma prior stands in the likelihood instead,
    as the ratio of the two, and every sum of both is the joint density log p(x, u) as it must be.

    `positivity`: in both maps the left tail of u | a falls as e^(a u). `softplus` bends less there
    and serves a < 1; `log` serves a >= 1.
    """

    def __init__(
        self,
        topics: Float[Tensor, "V P"],
        shape: float,
        rate: float,
        positivity: Positivity = "log",
    ) -> None:
        """topics is theta, each row a distribution over words; shape and rate are a and b.

        Errors: ValueError for a or b not positive, an unknown map, and rows that do not sum to 1.
        """
        for name, value in (("shape", shape), ("rate", rate)):
            if not 0 < value < float("inf"):
                raise ValueError(f"PoissonFactor: {name} must be positive and finite, got {value}")
        if positivity not in get_args(Positivity):
            expected = ", ".join(get_args(Positivity))
            raise ValueError(f"PoissonFactor: positivity must be {expected}, got {positivity!r}")
        if topics.ndim != 2 or not bool((topics >= 0).all()):
            raise ValueError(
                "PoissonFactor: topics must be (V, P) and not negative, "
                f"got {tuple(topics.shape)} with least entry {topics.min().item():g}"
            )
        off = (topics.sum(-1) - 1).abs().max().item()
        if not off < 1e-4:  # float32 rows of 2,000 words are within 1e-6
            raise ValueError(
                f"PoissonFactor: rows of topics must sum to 1, one is off by {off:.2g}"
            )
        self.loadings, self.shape, self.rate = topics, shape, rate
        self.positivity: Positivity = positivity
        self.parameters = (Parameter("topics", tuple(topics.shape), 0.0),)

    def ensemble(self) -> ParticleEnsemble:
        """The known theta as the one particle of an ensemble, float32."""
        ensemble = ParticleEnsemble(self.parameters, 1, torch.Generator())
        ensemble.flat.copy_(self.loadings.reshape(1, -1))
        return ensemble

    def topics(self, theta: dict[str, Tensor]) -> tuple[Float[Tensor, "M V P"]]:
        """theta, the one layer: what `steinvae.topics` names topics by."""
        return (theta["topics"],)

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "n P"]:
        """Documents x ~ p(x): (count, P)."""
        seed = int(torch.randint(2**62, (), generator=generator))  # torch's gamma takes none
        size = (count, len(self.loadings))
        scores = np.random.default_rng(seed).gamma(self.shape, 1 / self.rate, size)
        rates = torch.from_numpy(scores).to(self.loadings) @ self.loadings
        return torch.poisson(rates, generator=generator)

    def scores(self, codes: Float[Tensor, "*n V"]) -> Float[Tensor, "*n V"]:
        """Factor scores z > 0 of codes u."""
        return codes.exp() if self.positivity == "log" else F.softplus(codes)

    def codes(self, scores: Float[Tensor, "*n V"]) -> Float[Tensor, "*n V"]:
        """The inverse of `scores`: log z, or log(e^z - 1) = z + log(1 - e^-z)."""
        return scores.log() if self.positivity == "log" else scores + (-torch.expm1(-scores)).log()

    def log_prior(self, codes: Float[Tensor, "*n V"]) -> Float[Tensor, "*n"]:
        """log p(u): the gamma density at z(u) with the Jacobian of the map."""
        a, b = self.shape, self.rate
        if self.positivity == "log":
            terms = a * codes - b * codes.exp()
        else:
            terms = (a - 1) * log_softplus(codes) - b * F.softplus(codes) + F.logsigmoid(codes)
        return terms.sum(-1) + codes.shape[-1] * (a * log(b) - lgamma(a))

    def log_count_density(
        self,
        topics: Float[Tensor, "M V P"],
        codes: Float[Tensor, "#M B n V"],
        counts: Float[Tensor, "B P"],
    ) -> Float[Tensor, "M B n"]:
        """log p(x_b | z(u_bs), theta_m), the factorials included."""
        scores = self.scores(codes).expand(len(topics), -1, -1, -1)
        expected = (scores @ topics.sum(-1)[:, None, :, None]).squeeze(-1)
        seen = torch.stack(
            [_seen(z, theta, counts) for z, theta in zip(scores, topics, strict=True)]
        )
        return seen - expected

    def log_joint(
        self, codes: Float[Tensor, "B n V"], counts: Float[Tensor, "B P"]
    ) -> Float[Tensor, "B n"]:
        """log p(x_b, u_bs) under the model's own topics."""
        topics = self.loadings.to(codes)[None]
        return self.log_count_density(topics, codes[None], counts)[0] + self.log_prior(codes)

    def log_likelihood(
        self,
        theta: dict[str, Tensor],
        codes: Float[Tensor, "#M B n V"],
        pixels: Float[Tensor, "B P"],
    ) -> Float[Tensor, "M B n"]:
        """log p(x_b, u_bs | theta_m) - log N(u_bs; 0, I): (M or 1, B, n, V) -> (M, B, n)."""
        ratio = self.log_prior(codes) - standard_normal(codes)
        return self.log_count_density(theta["topics"], codes, pixels.to_dense()) + ratio

    def mean_images(
        self, theta: dict[str, Tensor], codes: Float[Tensor, "n V"]
    ) -> Float[Tensor, "n P"]:
        """E[x | u_i] = z(u_i) theta, counts rather than intensities; the particles take turns."""
        means = self.scores(codes) @ theta["topics"]
        order = torch.arange(len(codes), device=codes.device)
        return means[order % len(means), order]


def _seen(
    scores: Float[Tensor, "B n V"], topics: Float[Tensor, "V P"], counts: Float[Tensor, "B P"]
) -> Float[Tensor, "B n"]:
    """sum_p [ x_p log(z theta)_p - log x_p! ] over the words that a document has.

    Documents of like length go together, each group padded to the most words of one of its own. A
    20 Newsgroups document has 66 of 2,000 words: with 50 codes an eighth of the dense product's
    time.
    """
    words = (counts > 0).sum(-1)
    order = words.argsort()
    parts = []
    for group in order.split(_DOCUMENTS_AT_ONCE):
        times, present = counts[group].topk(max(1, int(words[group].max())), sorted=False)
        loadings = topics.index_select(1, present.flatten()).unflatten(1, present.shape)
        rates = scores[group] @ loadings.transpose(0, 1)
        factorials = torch.lgamma(times + 1).sum(-1, keepdim=True)
        parts.append(torch.xlogy(times[:, None], rates).sum(-1) - factorials)
    return torch.cat(parts)[order.argsort()]


def log_softplus(u: Tensor) -> Tensor:
    """log log(1 + e^u), without underflow on the left and with a finite gradient everywhere."""
    left = u.clamp(max=_LEFT_TAIL)
    right = F.softplus(u.clamp(min=_LEFT_TAIL)).log()
    return torch.where(u < _LEFT_TAIL, left - 0.5 * left.exp(), right)
