"""An estimate together with what it bounds, what that rests on, and whether the run meets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

Verdict = Literal["yes", "no", "not shown"]

UPPER = "upper bound of the NLL, in expectation"
NOTHING = "nothing: an assumption of the bound fails"


@dataclass(frozen=True)
class Assumption:
    """One thing a bound rests on."""

    text: str
    holds: Verdict
    """yes: by construction or by test; no: refuted by this run; not shown: neither."""

    evidence: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One measurement of a finished run."""

    estimator: str
    """Name with its effort, for example ais(500x16): temperatures x chains."""

    metric: str
    """test_nll or bdmc_gap in nats an image, active_units as a count."""

    value: float

    standard_error: float | None
    """Over images, nats; None where there is none."""

    images: int

    bounds: str
    """What it bounds where its assumptions hold."""

    assumptions: tuple[Assumption, ...]

    theta: str = "mixture"
    """How the decoders count."""

    diagnostics: Mapping[str, float] = field(default_factory=dict)

    seconds: float = 0.0

    seed: int = 0
    """Of the estimator's own draws."""

    settings: Mapping[str, float | str] = field(default_factory=dict)
    """What else it was measured with, beside its effort and its seed."""

    per_image: Tensor | None = field(default=None, repr=False, compare=False)
    """(images,) float64 NLL, for differences on the same images."""

    @property
    def holds(self) -> Verdict:
        """The worst verdict on an assumption: no, not shown, yes."""
        verdicts = {assumption.holds for assumption in self.assumptions}
        if "no" in verdicts:
            return "no"
        return "not shown" if "not shown" in verdicts else "yes"

    @property
    def claim(self) -> str:
        """What it bounds in this run."""
        return NOTHING if self.holds == "no" else self.bounds

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without the values of single images."""
        return {
            "estimator": self.estimator,
            "metric": self.metric,
            "theta": self.theta,
            "value": self.value,
            "standard_error": self.standard_error,
            "images": self.images,
            "bounds": self.claim,
            "holds": self.holds,
            "assumptions": [vars(assumption) for assumption in self.assumptions],
            "diagnostics": dict(self.diagnostics),
            "seconds": round(self.seconds, 2),
            "evaluation_seed": self.seed,
            "settings": dict(self.settings),
        }


def mean_and_error(values: Tensor) -> tuple[float, float | None]:
    """Mean over images and its standard error; None for a single image."""
    images = len(values)
    error = values.std().item() / images**0.5 if images > 1 else None
    return values.mean().item(), error
