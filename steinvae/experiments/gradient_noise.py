"""How well directions of the codes estimate the ELBO's gradient in eta: cosine and signal to noise.

A direction phi gives the encoder -1/(B S) sum_bs J_bs^T phi_bs. For images held fixed and codes
drawn R times this is a random vector G. With E the same for the exact g - grad log q of the same
draws, whose mean is the exact gradient of the ELBO of these images,

    signal    |mean G|^2, without bias: the mean of <G_r, G_s> over r != s
    noise     mean |G - mean G|^2
    agreement <mean G, mean E>, likewise over r != s

A minibatch's gradient differs from the data's by its images, so signal is what all codes in the
world would leave, and signal to noise says whether images or codes are the larger part of the
gradient's variance.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from steinvae.experiments.direction_variants import KNOW_DENSITY, Direction, Seen, pathwise
from steinvae.gradients import encoder_gradients
from steinvae.monitor import exact_score
from steinvae.networks import Networks
from steinvae.stein import code_scores

PARTS = ("all", "mean", "width", "shape")
"""Of eta: everything; the last layer's rows of mu and of log sigma; the non-Gaussian residual."""

EXACT, _PASS = "exact", "decoder's pass"


@dataclass
class Sums:
    """What the repeats of one estimator leave, for one part of eta."""

    vector: Tensor
    square: float = 0.0
    beside: float = 0.0
    """sum_r <G_r, E_r>."""

    def add(self, estimate: Tensor, exact: Tensor) -> None:
        """One repeat."""
        self.vector += estimate
        self.square += estimate.square().sum().item()
        self.beside += (estimate @ exact).item()


@dataclass
class Power:
    """Squared norms over minibatches."""

    signal: float = 0.0
    noise: float = 0.0
    agreement: float = 0.0
    exact: float = 0.0
    seconds: float = 0.0
    """Processor seconds of an update of the encoder, the decoder's pass included."""

    def add(self, own: Sums, exact: Sums, repeats: int, seconds: float) -> None:
        """One minibatch: means over pairs of different repeats have no bias."""
        pairs = repeats * (repeats - 1)
        signal = (own.vector.square().sum().item() - own.square) / pairs
        self.signal += signal
        self.noise += own.square / repeats - signal
        self.agreement += ((own.vector @ exact.vector).item() - own.beside) / pairs
        self.exact += (exact.vector.square().sum().item() - exact.square) / pairs
        self.seconds += seconds

    def cosine(self, draws: float = 1.0) -> float:
        """With the exact gradient, of the mean of that many independent draws."""
        own = max(self.signal, 0.0) + self.noise / draws
        return self.agreement / sqrt(own * self.exact)

    def scale(self) -> float:
        """Of the exact gradient in mean G: <mean G, mean E> / |mean E|^2."""
        return self.agreement / self.exact

    def signal_to_noise(self) -> float:
        """|mean G| over the root mean square of G - mean G."""
        return sqrt(max(self.signal, 0.0) / self.noise)


def measure(
    networks: Networks,
    minibatches: Iterable[Float[Tensor, "B X"]],
    directions: Mapping[str, Direction],
    *,
    samples: int,
    repeats: int,
    generator: torch.Generator,
) -> dict[str, dict[str, Power]]:
    """Powers by direction and part with `samples` codes an image; all directions see the same.

    Their seconds are those of an update, summed over minibatches like the powers.
    """
    powers = {name: {part: Power() for part in PARTS} for name in directions}
    for pixels in minibatches:
        sums: dict[str, dict[str, Sums]] = {name: {} for name in (EXACT, *directions)}
        clock = dict.fromkeys((_PASS, EXACT, *directions), 0.0)
        for _ in range(repeats):
            _repeat(networks, pixels, directions, samples, generator, sums, clock)
        for name in directions:
            known = clock[EXACT] if name in KNOW_DENSITY else 0.0
            seconds = (clock[_PASS] + known + clock[name]) / repeats
            for part, power in powers[name].items():
                power.add(sums[name][part], sums[EXACT][part], repeats, seconds)
    return powers


def _repeat(
    networks: Networks,
    pixels: Tensor,
    directions: Mapping[str, Direction],
    samples: int,
    generator: torch.Generator,
    sums: dict[str, dict[str, Sums]],
    clock: dict[str, float],
) -> None:
    d = networks.encoder.codes
    noise = torch.randn(len(pixels), samples, d, generator=generator).to(pixels)
    basis = torch.linalg.qr(torch.randn(d, d, generator=generator))[0].to(pixels)
    started = time.process_time()
    codes = networks.encoder(pixels, noise)
    score = code_scores(networks.model, networks.theta, codes, pixels)
    clock[_PASS] += time.process_time() - started
    started = time.process_time()
    own = exact_score(networks.encoder, pixels, noise).score
    clock[EXACT] += time.process_time() - started
    seen = Seen(codes.detach(), score, own, basis)
    exact = parts(networks, codes, pathwise(seen))
    _add(sums[EXACT], exact, exact)
    for name, direction in directions.items():
        started = time.process_time()
        estimate = parts(networks, codes, direction(seen))
        clock[name] += time.process_time() - started
        _add(sums[name], estimate, exact)


def _add(sums: dict[str, Sums], estimate: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    for part, vector in estimate.items():
        own = sums.setdefault(part, Sums(torch.zeros_like(vector)))
        own.add(vector, exact[part])


def parts(networks: Networks, codes: Tensor, direction: Tensor) -> dict[str, Tensor]:
    """The encoder's gradient by part, flat."""
    gradients = encoder_gradients(networks, codes, direction, keep=True)
    names = [name for name, _ in networks.encoder.named_parameters()]
    named = dict(zip(names, gradients, strict=True))
    d = networks.encoder.codes
    head = torch.cat([named["head.last.weight"], named["head.last.bias"][:, None]], dim=1)
    further = [
        item.flatten() for name, item in named.items() if name.startswith(("residual", "further"))
    ]
    return {
        "all": torch.cat([item.flatten() for item in gradients]),
        "mean": head[:d].flatten(),
        "width": head[d:].flatten(),
        "shape": torch.cat(further),
    }
