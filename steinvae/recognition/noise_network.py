"""r = W_L tanh(... tanh(a(x) + W_1 xi)) for all codes of a minibatch, with its backward pass.

The gradients are those of autograd, in blocks of images that stay in a core's cache and with every
step in place (`models.closed_form` does the same for decoders).

Shapes: B images, S codes an image, H hidden units, d code dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from steinvae.models.closed_form import NUMBERS_AT_ONCE, tanh_


def noise_network(
    from_image: Float[Tensor, "B H"],
    noise: Float[Tensor, "#B S d"],
    first: Float[Tensor, "H d"],
    rest: Sequence[tuple[Tensor, Tensor]],
) -> Float[Tensor, "B S d"]:
    """r of the noise of every image, or of one noise for all (its first product is made once).

    `from_image` is a(x) with the first layer's bias, `rest` the weight (out, in) and bias of the
    layers after the first. Differentiable once.
    """
    keep = torch.is_grad_enabled()
    flat = [item for layer in rest for item in layer]
    return _NoiseNetwork.apply(keep, from_image, noise, first, *flat)  # type: ignore[return-value]


class _NoiseNetwork(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, keep: bool, from_image: Tensor, noise: Tensor, first: Tensor, *rest: Tensor
    ) -> Tensor:
        images, samples = len(from_image), noise.shape[1]
        layers = list(zip(rest[::2], rest[1::2], strict=True))
        widths = [len(first), *(len(weight) for weight, _ in layers)]
        shared = noise[0] @ first.T if len(noise) == 1 else None
        held = images if keep else _images_at_once(samples, widths, noise.device.type)
        hidden = [noise.new_empty(held, samples, width) for width in widths[:-1]]
        out = noise.new_empty(images, samples, widths[-1])
        for b in _blocks(images, samples, widths, noise.device.type):
            own = [h[b] if keep else h[: b.stop - b.start] for h in hidden]
            if shared is None:
                torch.mm(noise[b].flatten(0, 1), first.T, out=own[0].flatten(0, 1))
                own[0].add_(from_image[b, None])
            else:
                torch.add(from_image[b, None], shared, out=own[0])
            for h, after, (weight, bias) in zip(own, [*own[1:], out[b]], layers, strict=True):
                torch.addmm(bias, tanh_(h).flatten(0, 1), weight.T, out=after.flatten(0, 1))
        ctx.layers = len(layers)
        ctx.save_for_backward(noise, first, *rest[::2], *(hidden if keep else ()))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        (cotangent,) = cotangents
        noise, first, *saved = ctx.saved_tensors
        weights, hidden = saved[: ctx.layers], saved[ctx.layers :]
        images, samples = cotangent.shape[:2]
        widths = [len(first), *(len(weight) for weight in weights)]
        to_weights = [torch.zeros_like(weight) for weight in weights]
        to_biases = [weight.new_zeros(len(weight)) for weight in weights]
        to_image, to_first = noise.new_empty(images, len(first)), torch.zeros_like(first)
        summed = noise.new_zeros(samples, len(first)) if len(noise) == 1 else None
        to_noise = torch.zeros_like(noise) if ctx.needs_input_grad[2] else None
        for b in _blocks(images, samples, widths, noise.device.type):
            delta = cotangent[b].flatten(0, 1)
            for layer in reversed(range(len(weights))):
                h = hidden[layer][b].flatten(0, 1)
                torch.addmm(to_weights[layer], delta.T, h, out=to_weights[layer])
                to_biases[layer].add_(delta.sum(0))
                delta = delta @ weights[layer]
                torch.ops.aten.tanh_backward.grad_input(delta, h, grad_input=delta)
            apart = delta.view(-1, samples, len(first))
            torch.sum(apart, 1, out=to_image[b])
            if summed is None:
                torch.addmm(to_first, delta.T, noise[b].flatten(0, 1), out=to_first)
            else:
                summed.add_(apart.sum(0))
            if to_noise is not None:
                part = (delta @ first).view(-1, samples, first.shape[1])
                _ = to_noise[b].copy_(part) if summed is None else to_noise[0].add_(part.sum(0))
        if summed is not None:
            to_first = summed.T @ noise[0]
        of_rest = [item for pair in zip(to_weights, to_biases, strict=True) for item in pair]
        return (None, to_image, to_noise, to_first, *of_rest)


def _images_at_once(samples: int, widths: Sequence[int], device: str) -> int:
    return max(1, NUMBERS_AT_ONCE[device] // (samples * sum(widths)))


def _blocks(images: int, samples: int, widths: Sequence[int], device: str) -> Iterator[slice]:
    size = _images_at_once(samples, widths, device)
    return (slice(start, min(start + size, images)) for start in range(0, images, size))
