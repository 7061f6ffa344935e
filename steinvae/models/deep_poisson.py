"""Counts of words below layers of gamma variables: the deep Poisson network of section 5.2.

    z_L ~ Gamma(a_L, a_L),   z_l ~ Gamma(a_l, a_l / (z_{l+1} W_l)),   x_w ~ Pois( (z_1 W_0)_w )

the sparse gamma deep exponential family of Ranganath et al. 2015 with continuous codes, as Stein
directions need them; sizes 200, 200 and 50 from the words up. Given its length N a document is
multinomial, log p(x | z, N) = sum_w x_w log( (z_1 W_0)_w / sum_v (z_1 W_0)_v ), as in
`SoftmaxCounts` without the coefficient, so that perplexities can be compared.

Gammas are a scale family, z_l = (z_{l+1} W_l) g_l with g_l ~ Gamma(a_l, a_l), g = F^-1(Phi(u)):
codes are the u, their prior is N(0, I) exactly, and a unit that a document says nothing of has the
posterior N(0, 1). Weights are gamma quantiles too, so that p(theta) = N(0, I) is a sparse gamma
prior on them; those of words are relative to a word's base rate e^(4 b_w).

Shapes: M decoders, B documents of V words, n codes a document, d = sum of the layers' sizes K_l.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import exp

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from steinvae.models.gamma_quantile import log_gamma_quantile
from steinvae.particles import Parameter
from steinvae.sparse_rows import entries

_BASE_SCALE = 4.0
"""Standard deviation of the prior of log base rates: those of words are spread over e^(+-8)."""

_START = 0.5
"""Weights of words start in the middle half of their prior; those between layers in all of it, so
that a unit begins with a few of those below."""

_PREPARED = "log W_0"
_BUCKETS = 8
"""Documents are padded to the longest of their bucket, of neighbours by number of words."""


class DeepPoisson:
    """A `GenerativeModel`; its codes are the layers' u side by side, from the words up."""

    normalised = True
    """Over the sequences of N words."""

    def __init__(
        self,
        layers: Sequence[int],
        words: int,
        shapes: Sequence[float] = (0.3,),
        weight_shape: float = 0.3,
    ) -> None:
        """layers are K_1, K_2, ...; shapes are the a_l of the codes, or one for all layers.

        Errors: ValueError for another number of shapes.
        """
        if len(shapes) not in (1, len(layers)):
            raise ValueError(
                f"DeepPoisson: shapes must be one or {len(layers)}, as there are layers, "
                f"got {len(shapes)}"
            )
        self.code_blocks = tuple(layers)
        self.shapes = tuple(shapes) * (len(layers) if len(shapes) == 1 else 1)
        self.weight_shape = weight_shape
        between = [
            Parameter(f"weight{number}", (above, below), 1.0)
            for number, (below, above) in enumerate(pairwise(layers), 1)
        ]
        self.parameters: Sequence[Parameter] = (
            Parameter("base", (1, words), 0.0),
            Parameter("words", (layers[0], words), _START),
            *between,
        )

    def start_at(
        self,
        theta: dict[str, Tensor],
        documents: Float[Tensor, "M K V"],
        totals: Float[Tensor, " V"],
    ) -> None:
        """Let the units next to the words speak one document each, in place of `theta`'s start.

        Units that start alike stay alike for long, and most then never come into use. Base rates
        start at the words' own, `totals` counting the training documents; a unit's weight of a word
        goes from the middle of its prior by how much more often its document has the word,

            W_0kw / base_w = median * (s_kw + p_w / 2) / (3 p_w / 2),

        s and p the shares of the word in document and corpus, e^-3 to e^3 at the most.
        """
        from scipy.special import gammainc, ndtri

        share = (totals.double() + 1) / (totals + 1).sum()
        log_share = share.log()
        theta["base"].copy_((log_share - log_share.mean()) / _BASE_SCALE)
        own = documents.double() / documents.sum(-1, keepdim=True)
        more = ((own + share / 2) / (1.5 * share)).clamp(exp(-3), exp(3))
        a, middle = self.weight_shape, torch.zeros((), dtype=torch.float64)
        weights = more * log_gamma_quantile(middle, self.weight_shape).exp()
        theta["words"].copy_(torch.from_numpy(ndtri(gammainc(a, a * weights.numpy()))))

    def prepare(self, theta: dict[str, Tensor]) -> dict[str, Tensor]:
        """theta with log W_0 beside it, for many evaluations under the same parameters."""
        return {**theta, _PREPARED: self.log_word_weights(theta)}

    def log_word_weights(self, theta: dict[str, Tensor]) -> Float[Tensor, "M K V"]:
        """log W_0 of the units next to the words."""
        if _PREPARED in theta:
            return theta[_PREPARED]
        own = log_gamma_quantile(theta["words"], self.weight_shape)
        return own + _BASE_SCALE * theta["base"]

    def log_units(
        self, theta: dict[str, Tensor], codes: Float[Tensor, "#M *n d"]
    ) -> Float[Tensor, "M *n K"]:
        """log z_1 up to a constant of each code, which the given length cancels."""
        blocks = codes.split(self.code_blocks, dim=-1)
        log_gammas = list(map(log_gamma_quantile, blocks, self.shapes))
        units = log_gammas.pop()
        for number in range(len(log_gammas), 0, -1):
            weight = log_gamma_quantile(theta[f"weight{number}"], self.weight_shape).exp()
            tiny = torch.finfo(weight.dtype).tiny
            rates = (units.softmax(-1).flatten(1, -2) @ weight).clamp_min(tiny)
            units = rates.unflatten(1, units.shape[1:-1]).log() + log_gammas[number - 1]
        return units

    def shares(
        self, theta: dict[str, Tensor], codes: Float[Tensor, "#M *n d"], log_weights: Tensor
    ) -> Float[Tensor, "M *n K"]:
        """z_1k sum_w W_0kw, normalised: the share of a document's words that unit k speaks."""
        volume = log_weights.logsumexp(-1).unflatten(1, (*[1] * (codes.ndim - 2), -1))
        return (self.log_units(theta, codes) + volume).softmax(-1)

    def log_likelihood(
        self,
        theta: dict[str, Tensor],
        codes: Float[Tensor, "#M B n d"],
        pixels: Float[Tensor, "B V"],
    ) -> Float[Tensor, "M B n"]:
        """log p(x_b | z_bs, theta_m, N_b) in nats, from the words that a document has.

        A mixture of words' distributions needs no sum over the vocabulary: the work goes with the
        different words of a document, not with V. Shapes: counts (B, V) -> (M, B, n).
        """
        log_weights = self.log_word_weights(theta)
        shares = self.shares(theta, codes, log_weights)
        topics = log_weights.softmax(-1).mT.contiguous()
        words, counts = present_words(pixels)
        lengths, by_length = (counts > 0).sum(1).sort()
        longest = [int(part[-1]) for part in lengths.tensor_split(min(_BUCKETS, len(lengths)))]
        parts = []
        for number, documents in zip(longest, by_length.tensor_split(len(longest)), strict=True):
            own, times = words[documents, :number], counts[documents, :number]
            likely = shares[:, documents] @ pick(topics, own).mT  # (M, b, n, T)
            tiny = torch.finfo(likely.dtype).tiny
            parts.append((likely.clamp_min(tiny).log() @ times[:, :, None]).squeeze(-1))
        return torch.cat(parts, 1)[:, by_length.argsort()]

    def topics(self, theta: dict[str, Tensor]) -> list[Float[Tensor, "M K V"]]:
        """Words' probabilities under each unit, layer by layer from the words up.

        Of layer l the rows of W_l ... W_1 W_0, as E[z_l | z_{l+1}] = z_{l+1} W_l.
        """
        found = [self.log_word_weights(theta).softmax(-1)]
        rates = self.log_word_weights(theta)
        rates = (rates - rates.amax((1, 2), keepdim=True)).exp()
        for number in range(1, len(self.code_blocks)):
            weight = log_gamma_quantile(theta[f"weight{number}"], self.weight_shape).exp()
            rates = weight @ rates
            found.append(rates / rates.sum(-1, keepdim=True))
        return found

    def mean_images(
        self, theta: dict[str, Tensor], codes: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n V"]:
        """Probability of each word under z_i, the decoders taking turns: (n, d) -> (n, V)."""
        log_weights = self.log_word_weights(theta)
        means = self.shares(theta, codes[None], log_weights) @ log_weights.softmax(-1)
        order = torch.arange(len(codes), device=codes.device)
        return means[order % len(means), order]


def pick(rows: Float[Tensor, "M V K"], words: Int[Tensor, "B T"]) -> Float[Tensor, "M B T K"]:
    """rows[:, words]; as an embedding, whose backward pass is several times that of an index."""
    particles, vocabulary, _ = rows.shape
    first = vocabulary * torch.arange(particles, device=words.device)
    return F.embedding(words + first[:, None, None], rows.flatten(0, 1))


def present_words(
    counts: Float[Tensor, "B V"],
) -> tuple[Int[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Words of each document and their counts, padded with word 0 and count 0 to the longest."""
    rows, words, times = entries(counts)
    number = torch.bincount(rows, minlength=len(counts))
    place = torch.arange(len(rows), device=rows.device) - (number.cumsum(0) - number)[rows]
    widest = int(number.max())
    padded = words.new_zeros(len(counts), widest)
    padded[rows, place] = words
    own = times.new_zeros(len(counts), widest)
    own[rows, place] = times
    return padded, own
