"""Which networks: the settings under `model`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from steinvae.config._checks import require

Decoder = Literal["bernoulli", "softmax", "deep_poisson", "gaussian"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The networks: MLPs or convolutions on both sides, Bernoulli pixels, Gaussian ones in colour;
    for counts the encoder sees log(1 + n), and the decoder is one linear layer and a softmax (NVDM)
    or layers of gammas.
    """

    network: Literal["mlp", "conv", "residual"] = "mlp"
    """conv: 5x5 convolutions of stride 2 with leaky ReLU and one linear layer, for square images;
    residual: the all-convolutional one of appendix D, for image_folder. Decoders mirror them."""

    activation: Literal["tanh", "softplus"] = "tanh"
    """Of the hidden layers of an mlp. The noise networks of flow and residual stay tanh."""

    codes: int = 8
    """Dimension d of a code z."""

    hidden: tuple[int, ...] = (128, 128)
    """Units of each hidden layer, from the pixels to the code, or kernels of each convolution, or
    of each stage of residual; the decoder mirrors them."""

    stack: int | None = None
    """3x3 convolutions of a stage of residual, beside the one that halves the side (default 3)."""

    label_kernels: int | None = None
    """1x1 convolutions of a label decoder before its average over places; residual alone (default
    2048)."""

    decoder: Decoder | None = None
    """p(x | z): bernoulli for images, gaussian for those of image_folder; softmax (NVDM) or
    deep_poisson for counts of words. None: the first that fits the data."""

    layers: tuple[int, ...] = ()
    """Units of each layer of deep_poisson, from the words up; the codes are those of all layers."""

    gamma_shapes: tuple[float, ...] = (0.3,)
    """Shapes a of the gamma variables of deep_poisson, for each layer from the words up or one for
    all: the smaller, the fewer of a layer's units a document uses, and the more they vary."""

    start: Literal["documents", "prior"] = "documents"
    """Where the words of deep_poisson's units start: each at those of a training document, or near
    the middle of their prior, where all units are alike."""

    encoder: Literal["flow", "residual", "concat", "gaussian", "triangular", "layered"] = "flow"
    """Form of z = f(x, xi) for Stein methods and flow_elbo. flow is injective in xi; gaussian and
    triangular (any covariance) are affine in it; layered draws the codes of deep_poisson layer by
    layer (flow_elbo only). The other methods use the Gaussian part, planar_flow its own layers.
    concat of convolutions takes the noise as a further plane beside the image."""

    noise_hidden: int | None = None
    """Units of the two hidden layers of a noise network of flow or residual; by default those of
    the last hidden layer (200 for convolutions). The bound of its gain costs their cube a step."""

    flow_blocks: int = 1
    """Blocks of the flow encoder; each stretches at most 1.9 times, and far modes need several."""

    output_scale: float = 1.0
    """Factor on the output of the concat encoder of any network: how far codes reach."""

    input_dropout: float = 0.0
    """Probability that the encoder does not see a pixel in an update; the others are divided by 1
    less that (Srivastava et al. 2014). All codes of an image miss the same pixels, decoders see
    all of them, and so does prediction. Where labels are in use."""

    planar_layers: int = 10
    """Layers of the encoder of planar_flow."""

    def __post_init__(self) -> None:
        require(self.codes >= 1, "model.codes", "at least 1", self.codes)
        widths = len(self.hidden) >= 1 and all(width >= 1 for width in self.hidden)
        require(widths, "model.hidden", "one or more positive widths", self.hidden)
        self._check_layers()
        require(self.output_scale > 0, "model.output_scale", "positive", self.output_scale)
        plain = self.network == "mlp" or self.activation == "tanh"
        unused = f"tanh for model.network {self.network}, unused"
        require(plain, "model.activation", unused, self.activation)
        bent = f"another than concat for model.activation {self.activation}"
        ready = self.activation == "tanh" or self.encoder != "concat"
        require(ready, "model.encoder", bent, self.encoder)
        there = {"conv": ("flow", "gaussian", "concat"), "residual": ("concat", "gaussian")}
        ready = self.encoder in there.get(self.network, (self.encoder,))
        named = f"one of {there.get(self.network)} for model.network {self.network}"
        require(ready, "model.encoder", named, self.encoder)
        self._check_residual()
        dropped = self.input_dropout
        require(0 <= dropped < 1, "model.input_dropout", "at least 0 and below 1", dropped)
        noise = self.noise_hidden
        require(noise is None or noise >= 1, "model.noise_hidden", "at least 1", noise)
        for name in ("flow_blocks", "planar_layers"):
            require(getattr(self, name) >= 1, f"model.{name}", "at least 1", getattr(self, name))

    def _check_residual(self) -> None:
        for name, least in (("stack", 0), ("label_kernels", 1)):
            value, own = getattr(self, name), self.network == "residual"
            alone = f"left out for model.network {self.network}"
            require(own or value is None, f"model.{name}", alone, value)
            require(value is None or value >= least, f"model.{name}", f"at least {least}", value)

    def _check_layers(self) -> None:
        deep, layers = self.decoder == "deep_poisson", self.layers
        known = len(layers) >= 1 and all(width >= 1 for width in layers)
        wanted = "one or more positive widths for model.decoder deep_poisson, else none"
        require(known if deep else not layers, "model.layers", wanted, layers)
        total = f"{sum(layers)}, the sum of model.layers"
        require(not deep or self.codes == sum(layers), "model.codes", total, self.codes)
        fits = deep or self.encoder != "layered"
        other = "another than layered, which is for model.decoder deep_poisson"
        require(fits, "model.encoder", other, self.encoder)
        shapes = self.gamma_shapes  # the range of the table of quantiles
        inside = len(shapes) in (1, len(layers) or 1) and all(0.05 <= a <= 100 for a in shapes)
        each = "one between 0.05 and 100, or one for each of model.layers"
        require(inside, "model.gamma_shapes", each, shapes)
