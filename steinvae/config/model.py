"""Which networks: the settings under `model`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from steinvae.config._checks import require


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The networks: tanh MLPs on both sides, Bernoulli pixels; for counts the encoder sees
    log(1 + n), and the decoder is one linear layer and a softmax (NVDM)."""

    codes: int = 8
    """Dimension d of a code z."""

    hidden: tuple[int, ...] = (128, 128)
    """Units of each hidden layer, from the pixels to the code; the decoder mirrors them."""

    encoder: Literal["flow", "residual", "concat", "gaussian", "triangular"] = "flow"
    """Form of z = f(x, xi) for Stein methods and flow_elbo; flow is injective in xi,
    gaussian and triangular (any covariance) are affine in it. The other methods use the flow's
    Gaussian part, planar_flow with layers of its own."""

    flow_blocks: int = 1
    """Blocks of the flow encoder; each stretches at most 1.9 times, and far modes need several."""

    output_scale: float = 1.0
    """Factor on the output of the concat encoder: how far codes reach."""

    planar_layers: int = 10
    """Layers of the encoder of planar_flow."""

    def __post_init__(self) -> None:
        require(self.codes >= 1, "model.codes", "at least 1", self.codes)
        widths = len(self.hidden) >= 1 and all(width >= 1 for width in self.hidden)
        require(widths, "model.hidden", "one or more positive widths", self.hidden)
        require(self.output_scale > 0, "model.output_scale", "positive", self.output_scale)
        for name in ("flow_blocks", "planar_layers"):
            require(getattr(self, name) >= 1, f"model.{name}", "at least 1", getattr(self, name))
