"""Adam over decoders and encoder; the learning rate is a pure function of the step."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi

import torch
from torch import Tensor

from steinvae.config import OptimizerConfig
from steinvae.networks import Networks

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def learning_rate(config: OptimizerConfig, step: int) -> float:
    """From `learning_rate` at step 0 along a cosine to `final_fraction` of it at `decay_steps`."""
    progress = min(1.0, step / config.decay_steps)
    fraction = config.final_fraction
    return config.learning_rate * (fraction + (1 - fraction) * 0.5 * (1 + cos(pi * progress)))


class Optimizer:
    """torch's Adam on the flat decoders (M, P) and the encoder's parameters.

    `apply` takes descent gradients and leaves out the update where they are not finite: the fused
    kernel asks a flag on the device, as it does for `torch.amp.GradScaler`. `captured` has it take
    learning rates from the device too, so that a CUDA graph of an update need not know its step.
    """

    def __init__(
        self, networks: Networks, config: OptimizerConfig, *, captured: bool = False
    ) -> None:
        self._config = config
        self._theta, self._eta = networks.theta.flat, networks.eta()
        self._labels = networks.labels.trained() if networks.labels else []
        encoder = list(networks.encoder.parameters())
        trained = (place for place, each in enumerate(encoder, 1) if each.requires_grad)
        after = range(len(encoder) + 1, len(encoder) + 1 + len(self._labels))
        self._places = [0, *trained, *after]  # frozen parameters keep theirs
        groups = [[self._theta], self._eta, *([self._labels] if self._labels else [])]
        self._adam = torch.optim.Adam(
            [{"params": group} for group in groups],
            lr=config.learning_rate,
            fused=True,
            capturable=captured,
        )
        for group in self._adam.param_groups if captured else ():
            group["lr"] = torch.zeros((), device=networks.device)
        self.schedule(0)

    def schedule(self, step: int) -> None:
        """Learning rates of update `step`, for those that follow."""
        whole = learning_rate(self._config, step)
        for index, group in enumerate(self._adam.param_groups):
            rate = self._config.encoder_factor * whole if index == 1 else whole
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def apply(
        self,
        theta: Tensor | None,
        eta: Sequence[Tensor],
        labels: Sequence[Tensor] = (),
        *,
        loss: Tensor | None = None,
        unless: Tensor | None = None,
    ) -> Tensor:
        """One update; `theta=None` leaves the decoders alone, no `labels` the label decoders.

        Returns the gradient norm, (), NaN where the `loss` is not finite. It stays on the device:
        where it is not finite, or `unless` is true, nothing changes, moments and their step count
        included, and no one has waited for it.
        """
        gradients = [*eta, *labels] if theta is None else [theta, *eta, *labels]
        norm = marked(torch.nn.utils.get_total_norm(gradients), loss)
        self.move(theta, eta, labels, left_out=is_left_out(norm, unless))
        return norm

    def move(
        self,
        theta: Tensor | None,
        eta: Sequence[Tensor],
        labels: Sequence[Tensor] = (),
        *,
        left_out: Tensor,
    ) -> None:
        """Adam's step, which changes nothing where the boolean scalar `left_out` is true.

        The fused kernel walks through memory, whatever the strides: a gradient that convolutions
        made channels-last would move other weights than its own.
        """
        self._theta.grad = None if theta is None else _laid_out(theta, self._theta)
        for parameter, gradient in zip(self._eta, eta, strict=True):
            parameter.grad = _laid_out(gradient, parameter)
        for index, parameter in enumerate(self._labels):
            parameter.grad = _laid_out(labels[index], parameter) if labels else None
        self._adam.found_inf = left_out.float()  # type: ignore[attr-defined]  # as GradScaler does
        self._adam.step()
        self._adam.zero_grad()  # or they would be held until the next ones are there

    def tensors(self) -> dict[str, Tensor]:
        """Adam's state by name; empty before the first update."""
        return {
            f"adam.{place}.{name}": state[name]
            for place, parameter in zip(self._places, self._parameters(), strict=True)
            if (state := self._adam.state.get(parameter))
            for name in _MOMENTS
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`; a parameter that was frozen until now starts anew."""
        groups = self._adam.state_dict()["param_groups"]
        state = {
            index: {name: _laid_out(tensors[f"adam.{place}.{name}"], like) for name in _MOMENTS}
            for index, (place, like) in enumerate(
                zip(self._places, self._parameters(), strict=True)
            )
            if f"adam.{place}.step" in tensors
        }
        self._adam.load_state_dict({"state": state, "param_groups": groups})

    def _parameters(self) -> list[Tensor]:
        return [self._theta, *self._eta, *self._labels]


def marked(norm: Tensor, loss: Tensor | None) -> Tensor:
    """`norm`, or NaN where the loss is not finite."""
    return norm if loss is None else norm + 0 * loss.detach()


def is_left_out(norm: Tensor, unless: Tensor | None = None) -> Tensor:
    """Whether an update of this gradient norm is left out, () on the device."""
    left_out = ~norm.isfinite()
    return left_out if unless is None else left_out | unless


def _laid_out(value: Tensor, like: Tensor) -> Tensor:
    """A gradient or moment in the memory order of its parameter, as the fused kernel takes them."""
    if value.shape != like.shape or value.stride() == like.stride():
        return value
    return torch.empty_like(like).copy_(value)
