"""Gradients of Bernoulli pixels behind an MLP, written out: no autograd graph.

With delta_l the derivative of a pair's log-likelihood in the pre-activation of layer l, and w its
importance weight,

    delta_L = x - sigmoid(logits),   delta_l = (delta_{l+1} W_{l+1}^T) * slope(h_l)
    grad_W_l = sum_pairs w h_{l-1}^T delta_l,   grad_b_l = sum_pairs w delta_l
    grad_z = delta_1 W_1^T

with slope(h) = 1 - h^2 for tanh and 1 - e^-h for softplus, from the output h alone.

A weight scales rows of the products over pairs and nothing else, so one pass gives the weighted
gradients of the decoders and the unweighted ones of the codes.

Pairs go through all layers in blocks that stay in a core's cache, and every block writes into the
same buffers: fresh memory costs more than the arithmetic on it, and products of blocks are faster
than those of a whole minibatch.

Shapes: M decoders, B images of X pixels, n codes an image, d code dimensions; a block has m
decoders and r pairs for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import ceil, prod
from typing import NamedTuple

import torch
from torch import Tensor

Block = tuple[slice, slice, slice]
"""Decoders, images, and codes of an image."""

Weigh = Callable[[Tensor, Block], Tensor]
"""Log-likelihoods of a block (m, images, codes) -> its weights; a block has whole groups."""

Layers = Sequence[tuple[Tensor, Tensor]]
"""Weight (M, in, out) and bias (M, 1, out), first layer first."""

NUMBERS_AT_ONCE = {"cpu": 2**20, "cuda": 2**27}
"""Numbers of the widest layer of a block: 4 MB in float32. At a quarter of that the calls for every
block cost more than the cache gives; a GPU wants more."""

_FACTORS = 112
"""As many numbers of [1/2, 1] have a product above float32's smallest normal number, 2^-126."""


class ClosedForm(NamedTuple):
    """What a pass over all pairs gives beside the decoders' gradients."""

    log_likelihood: Tensor
    """(M, B, n) nats."""

    codes: Tensor
    """(M, B, n, d): grad_z log p(x | z, theta) of each pair."""

    weights: Tensor | None
    """(M, B, n); None where unweighted."""


def bernoulli_gradients(
    layers: Layers,
    codes: Tensor,
    pixels: Tensor,
    gradients: Layers | None,
    *,
    hidden: Hidden | None = None,
    weigh: Weigh | None = None,
    group: int = 1,
    fresh: bool = True,
) -> ClosedForm:
    """One pass over all pairs; `gradients` get sum_pairs w grad log p(x | z, theta) in each layer.

    They are written where `fresh`, else added to; None: codes alone get theirs. `weigh` gives w
    from log-likelihoods of blocks with whole groups of `group` codes; without it w = 1. `hidden` is
    tanh by default.

    Shapes: codes (M or 1, B, n, d), pixels (B, X) in [0, 1].
    """
    decoders, (images, samples, dimension) = len(layers[0][0]), codes.shape[1:]
    codes = codes.expand(decoders, -1, -1, -1)
    found = codes.new_empty(decoders, images, samples)
    to_codes = codes.new_empty(decoders, images, samples, dimension)
    weights = None if weigh is None else torch.empty_like(found)
    space, hidden = _Workspace(codes), hidden or HIDDEN["tanh"]
    widest = max(weight.shape[-1] for weight, _ in layers)
    for block in blocks(found.shape, group, widest, codes.device.type):
        own = [(weight[block[0]], bias[block[0]]) for weight, bias in layers]
        sums = [(weight[block[0]], bias[block[0]]) for weight, bias in gradients or ()]
        inputs, logits = _forward(own, codes[block].flatten(1, 2), hidden, space)
        shape = found[block].shape
        outputs, x = logits.view(*shape, -1), pixels[block[1], None]
        found[block] = _log_likelihood(outputs, x, space)
        w = None
        if weigh is not None and weights is not None:
            weights[block] = weigh(found[block], block)
            w = weights[block].flatten(1)[..., None]
        torch.sub(x, outputs, out=outputs)  # they hold sigmoid(logits) by now
        beta = 0.0 if fresh and block[1].start == block[2].start == 0 else 1.0
        to_codes[block] = _backward(*(own, sums, inputs, logits, w, beta, hidden, space)).view(
            *shape, -1
        )
    return ClosedForm(found, to_codes, weights)


def blocks(shape: Sequence[int], group: int, widest: int, device: str) -> Iterator[Block]:
    """Cut (M, B, n) pairs into blocks of whole groups, a decoder's blocks one after the other."""
    decoders, images, samples = shape
    rows = max(1, NUMBERS_AT_ONCE[device] // widest)
    some_samples = samples if samples <= rows else max(group, rows // group * group)
    some_images = max(1, rows // some_samples) if some_samples == samples else 1
    some_decoders = max(1, rows // (min(some_images, images) * some_samples))
    for m in _slices(decoders, some_decoders):
        for b in _slices(images, some_images):
            for s in _slices(samples, some_samples):
                yield m, b, s


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def tanh_(u: Tensor) -> Tensor:
    """tanh in place, as 2 sigmoid(2 u) - 1: a third of the time, and off by 1e-7 in float32."""
    return u.mul_(2).sigmoid_().mul_(2).sub_(1)


def _through_tanh_(delta: Tensor, h: Tensor) -> Tensor:
    return torch.ops.aten.tanh_backward.grad_input(delta, h, grad_input=delta)


def _softplus_(u: Tensor) -> Tensor:
    return torch.ops.aten.softplus.out(u, out=u)


def _through_softplus_(delta: Tensor, h: Tensor) -> Tensor:
    return delta.mul_(h.neg_().expm1_().neg_())


class Hidden(NamedTuple):
    """A hidden layer's function, in place."""

    activate_: Callable[[Tensor], Tensor]
    """u -> h."""

    pull_back_: Callable[[Tensor, Tensor], Tensor]
    """(delta, h) -> delta times the slope at h, in place of delta; h is used up."""


HIDDEN = {
    "tanh": Hidden(tanh_, _through_tanh_),
    "softplus": Hidden(_softplus_, _through_softplus_),
}


class _Workspace:
    """Buffers by name, as large as the largest block that asked for them."""

    def __init__(self, like: Tensor) -> None:
        self._like, self._buffers = like, {}

    def __call__(self, name: str, shape: Sequence[int]) -> Tensor:
        count = prod(shape)
        if name not in self._buffers or len(self._buffers[name]) < count:
            self._buffers[name] = self._like.new_empty(count)
        return self._buffers[name][:count].view(shape)


def _forward(
    layers: Layers, z: Tensor, hidden: Hidden, space: _Workspace
) -> tuple[list[Tensor], Tensor]:
    """The input of every layer, and the logits: (m, r, width) each."""
    inputs = [z]
    for number, (weight, bias) in enumerate(layers):
        out = space(f"layer {number}", (*z.shape[:2], weight.shape[-1]))
        torch.baddbmm(bias, inputs[-1], weight, out=out)
        if number < len(layers) - 1:
            hidden.activate_(out)
        inputs.append(out)
    return inputs[:-1], inputs[-1]


def _log_likelihood(logits: Tensor, x: Tensor, space: _Workspace) -> Tensor:
    """sum_i [ x_i l_i - log(1 + e^l_i) ], leaving sigmoid(l) in `logits`.

    log(1 + e^l) = max(l, 0) - log q with q = max(p, 1 - p), p = sigmoid(l): one sigmoid serves
    value and gradient, and the logarithm is of products of up to 112 factors q of [1/2, 1].
    """
    spare = space("spare", logits.shape)
    torch.clamp_min(logits, 0, out=spare).addcmul_(x, logits, value=-1)
    linear = spare.sum(-1)
    logits.sigmoid_()
    q = torch.sub(logits, 0.5, out=spare).abs_().add_(0.5)
    parts = ceil(q.shape[-1] / _FACTORS)
    even = q.shape[-1] // parts * parts
    logs = q[..., :even].unflatten(-1, (parts, -1)).prod(-1).log_().sum(-1)
    return logs + q[..., even:].log().sum(-1) - linear


def _backward(
    layers: Layers,
    sums: Layers,
    inputs: list[Tensor],
    delta: Tensor,
    w: Tensor | None,
    beta: float,
    hidden: Hidden,
    space: _Workspace,
) -> Tensor:
    """Gradients in the codes (m, r, d); `sums`, where there are any, become beta times themselves
    plus this block's.
    """
    for number in reversed(range(len(layers))):
        (weight, _), h = layers[number], inputs[number]
        if sums:
            rows, (of_weight, of_bias) = h, sums[number]
            if w is None:
                total = delta.sum(1, keepdim=True)
            else:
                rows = torch.mul(h, w, out=space(f"rows {number}", h.shape))
                total = w.mT @ delta
            torch.baddbmm(of_weight, rows.mT, delta, beta=beta, out=of_weight)
            torch.add(total, of_bias, alpha=beta, out=of_bias) if beta else of_bias.copy_(total)
        delta = torch.bmm(delta, weight.mT, out=space(f"delta {number}", h.shape))
        if number:
            hidden.pull_back_(delta, h)
    return delta
