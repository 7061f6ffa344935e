"""The learning rule and its particles: the settings under `method`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from steinvae.config._checks import require
from steinvae.config.model import ModelConfig

Rule = Literal["liu_wang", "median", "median_squared"]
MethodName = Literal[
    "stein_vae",
    "stein_viwae",
    "vae",
    "iwae",
    "planar_flow",
    "vae_weighted_decoder",
    "flow_elbo",
    "m2",
    "supervised",
]
GROUPED = ("stein_viwae", "vae_weighted_decoder", "flow_elbo")
"""Methods whose code_particles counts groups of importance_samples codes."""
LABELLED = ("stein_vae", "stein_viwae", "vae", "m2", "supervised")
"""Methods that can use labels; m2 and supervised do nothing without."""

IMAGES = ("stein_vae", "stein_viwae", "vae", "iwae", "supervised")
"""Methods that images in files can be trained by."""

ANNEALED = "positive for a method.temperature above 1, else 0"


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """The learning rule and its particles."""

    name: MethodName = "stein_vae"
    """stein_vae: Algorithm 1 of Pu et al. 2017; stein_viwae: section 3. Baselines: vae, iwae,
    planar_flow; vae_weighted_decoder: an ELBO encoder with the decoder gradient of stein_viwae;
    flow_elbo: the flow encoder by its exact ELBO gradient. With labels alone: m2, M1+M2 of Kingma
    et al. 2014; supervised, encoder and label decoder on the labelled images."""

    self_term: Literal["leave_one_out", "include"] = "leave_one_out"
    """Does a code enter its own kernel average? include: eq. 5 as printed, which collapses."""

    code_particles: int = 10
    """Codes per image and step: M of the paper for z, samples of the bound for vae and iwae; for
    stein_viwae, vae_weighted_decoder and flow_elbo groups of importance_samples codes."""

    importance_samples: int = 5
    """k, the codes of a group, within which importance weights sum to 1; k = 1 has no weights."""

    weights: Literal["theta", "z", "both", "paper", "none"] = "theta"
    """Importance weights act on the decoders' score (theta), the codes' direction (z), both, as
    eqs. 12 and 13 print them (paper; theta_particles * k decoders), or not at all (none). Only
    theta and none for vae_weighted_decoder and flow_elbo."""

    log_q: Literal["gauss", "jac", "kde", "track"] = "gauss"
    """Density of the codes in the weights: a Gaussian fitted to them, the exact one of an injective
    encoder (jac), a kernel estimate (kde), or that of a chain (track: not for drawn codes).
    vae_weighted_decoder and flow_elbo know it."""

    entropy_weight: float = 1.0
    """Times the entropy in the ELBO of vae_weighted_decoder's encoder: narrower codes below 1."""

    theta_particles: int = 5
    """Decoders: M of the paper for theta; the baselines train one whatever this says."""

    pairing: Literal["full", "strat"] = "full"
    """full: every decoder sees every code; strat: the codes are dealt out to the decoders."""

    label_particles: int | None = None
    """Label decoders of Stein methods; 20 where labels are in use (a linear layer each). The
    baselines train one whatever this says."""

    zeta: float | None = None
    """Weight of log p(y | z) beside log p(x | z) in the codes of labelled images. By default X/(C
    rho): X pixels, C classes, rho the labelled half of a minibatch."""

    guess_above: float | None = None
    """Probability from which the most probable class of an unlabelled image counts as its label in
    the direction of its codes, with the weight zeta; left out, none does, as in the paper."""

    align_guesses: bool = False
    """Weigh a guessed class by its share of the labelled images over the running mean of what is
    predicted. For labelled images with the class frequencies of the others."""

    adversarial_radius: float = 0.0
    """Euclidean length, in pixels of [0, 1], of the perturbation of an unlabelled image that
    changes the particles' prediction most; the encoder sees it added. 0: none. With guesses."""

    bandwidth: Rule | float = "liu_wang"
    """Kernel bandwidth h of the codes, one per image: a rule, or h itself in squared code units."""

    bandwidth_factor: float = 1.0
    """Times the rule's h of the codes: a flatter kernel above 1. Only with a rule."""

    kernel_block: int = 0
    """Most code dimensions that share a kernel: the model's blocks of codes (the layers of
    deep_poisson, else all of them) are cut into even pieces; 0 leaves them whole."""

    kernel: Literal["joint", "sum", "linear"] = "joint"
    """Of the codes' direction. joint: one kernel of all dimensions; sum: that, divided by its mean
    over pairs, plus a kernel of each dimension alone, whose bandwidth the factor leaves alone. The
    sum sees the shape of every marginal where many dimensions drown it in the joint kernel. linear:
    1 + x^T y of centred codes in units of their spread, which sees means and covariances, and
    nothing else; bandwidths do not enter."""

    theta_bandwidth: Rule | float = "liu_wang"
    """Kernel bandwidth h of the decoders: a rule, or h itself in squared parameter units. Label
    decoders have an h of their own by the same rule."""

    regression_steps: int = 1
    """K of eq. (7): optimiser steps of the encoder towards the moved codes."""

    code_step: float = 0.1
    """Step size epsilon of eq. (4), for move_codes and K > 1; with K = 1 alone it cancels."""

    move_codes: bool = False
    """Move codes of stein_viwae by one leave-one-out step of size code_step, in units of the
    encoder's covariance, before decoders see them; encoder and weights then use the exact density
    of an injective encoder."""

    iwae_gradient: Literal["standard", "dreg"] = "standard"
    """Encoder gradient of iwae: that of the bound, or doubly reparameterised (Tucker et al.)."""

    temperature: float = 1.0
    """T of the codes' target p(x, z)^(1/T) at step 0, falling as T^(1 - step / annealing_steps) to
    1: far modes part late. About the square of half their distance, in standard deviations."""

    annealing_steps: int = 0
    """Steps until the temperature is 1; 0 for temperature 1."""

    normalise_direction: bool = False
    """Divide a code's Stein direction by its mean kernel value, so that codes of light modes, which
    have few neighbours, move as far as those of heavy ones."""

    mass_rate: float = 0.0
    """Times the direction that moves masses of far modes, by importance weights of the codes in
    few dimensions, added at temperature 1; 0: masses stay as they come. Try 0.3."""

    mass_codes: int = 50
    """Codes per image and step that are drawn and weighed to move masses: a few in every mode."""

    fixed_theta: bool = False
    """Leave the decoders as they are and train the encoder alone."""

    shared_noise: bool = False
    """Use the same noise xi for every image of a minibatch, as Algorithm 1 prints it."""

    def __post_init__(self) -> None:
        codes, decoders, steps = self.code_particles, self.theta_particles, self.regression_steps
        require(codes >= 1, "method.code_particles", "at least 1", codes)
        require(decoders >= 1, "method.theta_particles", "at least 1", decoders)
        require(steps >= 1, "method.regression_steps", "at least 1", steps)
        require(self.code_step > 0, "method.code_step", "positive", self.code_step)
        check_bandwidth(self.bandwidth, "method.bandwidth")
        check_bandwidth(self.theta_bandwidth, "method.theta_bandwidth")
        require(self.kernel_block >= 0, "method.kernel_block", "0 or more", self.kernel_block)
        factor, ruled = self.bandwidth_factor, isinstance(self.bandwidth, str)
        require(0 < factor < float("inf"), "method.bandwidth_factor", "positive", factor)
        fixed = "1 where method.bandwidth is a number: that is h itself"
        require(ruled or factor == 1, "method.bandwidth_factor", fixed, factor)
        entropy, alone = self.entropy_weight, self.name != "vae_weighted_decoder"
        allowed = entropy == 1 if alone else 0 < entropy < float("inf")
        fitting = f"{1 if alone else 'positive'} for method.name {self.name}"
        require(allowed, "method.entropy_weight", fitting, entropy)
        alone = self.name != "m2" or codes >= 2
        both = "at least 2 for method.name m2: one of M1, the noise of M2"
        require(alone, "method.code_particles", both, codes)
        heads, zeta = self.label_particles, self.zeta
        require(heads is None or heads >= 1, "method.label_particles", "at least 1", heads)
        sure = self.guess_above is None or 0 < self.guess_above < 1
        require(sure, "method.guess_above", "between 0 and 1", self.guess_above)
        guesses, radius = self.guess_above is not None, self.adversarial_radius
        beside = "false without method.guess_above"
        require(guesses or not self.align_guesses, "method.align_guesses", beside, True)
        fits = 0 <= radius < float("inf") and (guesses or radius == 0)
        bound = "0 or more" if guesses else "0 without method.guess_above"
        require(fits, "method.adversarial_radius", bound, radius)
        positive = zeta is None or 0 < zeta < float("inf")
        require(positive, "method.zeta", "positive", zeta)
        k = self.importance_samples
        require(k >= 1, "method.importance_samples", "at least 1", k)
        if self.is_stein:
            self._check_particles()
        self._check_annealing()
        self._check_masses()
        self._check_move()
        if self.name == "stein_viwae" and self.weights != "none":
            chain = "gauss, kde or jac: track needs a chain of persistent codes, these are redrawn"
            require(self.log_q != "track", "method.log_q", chain, self.log_q)
        follows_elbo = self.name in ("vae_weighted_decoder", "flow_elbo")
        require(
            not follows_elbo or self.weights in ("theta", "none"),
            "method.weights",
            f"theta or none for method.name {self.name}, whose codes follow no Stein direction",
            self.weights,
        )

    @property
    def is_stein(self) -> bool:
        """Whether codes and decoders follow Stein directions."""
        return self.name in ("stein_vae", "stein_viwae")

    def encoder_kind(self, model: ModelConfig) -> str:
        """The encoder this method trains."""
        if self.is_stein or self.name == "flow_elbo":
            return model.encoder
        return "planar" if self.name == "planar_flow" else "gaussian"

    @property
    def codes_per_image(self) -> int:
        """S: code_particles, times k where those count groups."""
        return self.code_particles * (self.importance_samples if self.name in GROUPED else 1)

    @property
    def decoders(self) -> int:
        """Decoders that are trained: theta_particles (times k for weights paper), or 1."""
        groups = self.name == "stein_viwae" and self.weights == "paper"
        per_particle = self.importance_samples if groups else 1
        return self.theta_particles * per_particle if self.is_stein else 1

    @property
    def label_decoders(self) -> int:
        """Label decoders that are trained, where labels are in use."""
        return (self.label_particles or 20) if self.is_stein else 1

    def _check_annealing(self) -> None:
        hot, steps = self.temperature, self.annealing_steps
        require(1 <= hot < float("inf"), "method.temperature", "at least 1", hot)
        require((steps > 0) == (hot > 1), "method.annealing_steps", ANNEALED, steps)
        weighted = self.name == "stein_viwae" and self.weights not in ("theta", "none")
        can = self.name in ("stein_vae", "stein_viwae", "planar_flow", "flow_elbo") and not weighted
        what = f"1 for method.name {self.name}, whose {'weights' if weighted else 'bound'} has none"
        require(can or hot == 1, "method.temperature", what, hot)

    def _check_masses(self) -> None:
        rate = self.mass_rate
        for setting in ("normalise_direction", "mass_rate"):
            value = getattr(self, setting)
            off = f"off for method.name {self.name}, whose codes follow no Stein direction"
            require(self.is_stein or not value, f"method.{setting}", off, value)
        require(0 <= rate < float("inf"), "method.mass_rate", "at least 0 and finite", rate)
        require(self.mass_codes >= 2, "method.mass_codes", "at least 2", self.mass_codes)

    def _check_move(self) -> None:
        if not self.move_codes:
            return
        settings = {
            "name": "stein_viwae",
            "weights": "theta",
            "pairing": "full",
            "regression_steps": 1,
            "temperature": 1.0,
            "mass_rate": 0.0,
            "normalise_direction": False,
        }
        for name, only in settings.items():
            value, what = getattr(self, name), f"{only} where method.move_codes is true"
            require(value == only, f"method.{name}", what, value)
        k, others = self.importance_samples, "at least 2 where method.move_codes is true"
        require(k >= 2, "method.importance_samples", others, k)

    def _check_particles(self) -> None:
        codes, decoders = self.code_particles, self.theta_particles
        others = self.self_term == "include" or self.codes_per_image >= 2
        enough = "at least 2 for method.self_term leave_one_out"
        require(others, "method.code_particles", enough, codes)
        unweighted = self.name == "stein_vae" or self.weights in ("theta", "none")
        alone = f"joint for method.weights {self.weights}, which weight codes"
        require(unweighted or self.kernel == "joint", "method.kernel", alone, self.kernel)
        if self.kernel == "linear":
            own, out = self.self_term, "leave_one_out for method.kernel linear"
            require(own == "leave_one_out", "method.self_term", out, own)
            few = "at least 4 for method.kernel linear: two others have no covariance to speak of"
            require(self.codes_per_image >= 4, "method.code_particles", few, codes)
        if self.kernel == "sum":
            pair = "at least 2 for method.kernel sum, which divides by the mean over pairs"
            require(self.codes_per_image >= 2, "method.code_particles", pair, codes)
        divided = "joint for method.normalise_direction, which divides by the mean of one kernel"
        plain = self.kernel == "joint" or not self.normalise_direction
        require(plain, "method.kernel", divided, self.kernel)
        dealt = self.pairing == "full" or codes % decoders == 0
        even = f"a multiple of method.theta_particles ({decoders}) for method.pairing strat"
        require(dealt, "method.code_particles", even, codes)


def check_bandwidth(value: Rule | float, setting: str) -> None:
    named = value in get_args(Rule)
    positive = isinstance(value, (int, float)) and 0 < value < float("inf")
    require(named or positive, setting, f"one of {get_args(Rule)} or a positive number", value)
