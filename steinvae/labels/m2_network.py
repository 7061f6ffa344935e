"""M2 on codes of M1: Kingma, Mohamed, Rezende & Welling 2014, section 2.2.

Shapes: B codes z of d dimensions, C classes, auxiliary codes a (the z_2 of the paper) of d too.
"""

from __future__ import annotations

from math import log, pi

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from steinvae.models.mlp import TanhMlp
from steinvae.recognition import gaussian_rate

HIDDEN = 500
"""Units of the one hidden layer of each network, as in the paper (section 4)."""

SMALL = 0.1
"""Factor on means and log scales of Gaussians: 500 softplus units whose weights all move by a step
of Adam at 1e-2 move their sum by 3.5 or more, and a log scale must not jump that far."""


class M2(nn.Module):
    """p(z | y, a) p(y) p(a), with q(y | z) and q(a | y, z): diagonal Gaussians, p(y) uniform."""

    def __init__(self, codes: int, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.codes, self.classes = codes, classes
        joint = codes + classes
        self.classifier = TanhMlp((codes, HIDDEN, classes), generator, last_scale=0.1)
        self.encoder = TanhMlp((joint, HIDDEN, 2 * codes), generator)
        self.decoder = TanhMlp((joint, HIDDEN, 2 * codes), generator)
        for network in (self.classifier, self.encoder, self.decoder):
            network.activation = F.softplus

    def trained(self) -> list[Tensor]:
        """All parameters."""
        return list(self.parameters())

    def tensors(self) -> dict[str, Tensor]:
        """The same by name."""
        return {f"m2.{name}": item.data for name, item in self.named_parameters()}

    def log_probabilities(self, codes: Float[Tensor, "B S d"]) -> Float[Tensor, "1 B S C"]:
        """log q(y | z) of every class."""
        return self.classifier(codes).log_softmax(-1)[None]

    def negative_bound(
        self,
        codes: Float[Tensor, "*B d"],
        onehot: Float[Tensor, "*B C"],
        noise: Float[Tensor, "*B d"],
    ) -> Float[Tensor, "*B"]:
        """L(z, y), eq. 6: E_q(a) [-log p(z | y, a)] + KL(q(a | y, z) || p(a)) - log p(y), nats.

        One draw of a = mean + sigma noise.
        """
        mean, log_sigma = (SMALL * self.encoder(torch.cat([codes, onehot], -1))).chunk(2, -1)
        rate = gaussian_rate(mean, log_sigma)
        drawn = mean + log_sigma.exp() * noise
        center, log_scale = (SMALL * self.decoder(torch.cat([drawn, onehot], -1))).chunk(2, -1)
        square = ((codes - center) * (-log_scale).exp()).square()
        distortion = (0.5 * square + log_scale + 0.5 * log(2 * pi)).sum(-1)
        return distortion + rate + log(self.classes)

    def loss(
        self,
        codes: Float[Tensor, "B d"],
        noise: Float[Tensor, "B d"],
        labels: Int[Tensor, " L"],
        shares: tuple[float, float],
        alpha: float,
    ) -> Float[Tensor, ""]:
        """J^alpha per training image, eq. 9; the last L codes have labels.

        `shares` = (N_u/N, N_l/N): the parts of the two sets. The term of the classifier is
        -alpha mean log q(y | z) over the labelled codes.
        """
        first = len(codes) - len(labels)
        every = torch.eye(self.classes, dtype=codes.dtype, device=codes.device)
        log_q = self.classifier(codes).log_softmax(-1)
        free = codes[:first, None].expand(-1, self.classes, -1)
        draws = noise[:first, None].expand(-1, self.classes, -1)
        each = self.negative_bound(free, every.expand(first, -1, -1), draws)
        unlabelled = (log_q[:first].exp() * (each + log_q[:first])).sum(-1).mean()
        labelled = self.negative_bound(codes[first:], every[labels], noise[first:]).mean()
        classified = F.nll_loss(log_q[first:], labels)
        return shares[0] * unlabelled + shares[1] * labelled + alpha * classified
