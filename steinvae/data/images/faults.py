"""What can be wrong with a tree of images, and what happens then: it raises, or it is counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from steinvae.data.dataset import BadRecords

EMPTY = "an empty file"
FOREIGN = "no JPEG, PNG, BMP or WebP image"
DAMAGED = "a damaged image"
HUGE = "an image of too many pixels"
STRANGE = "a file of another kind among the images"
LINK = "a link or a sparse file in a tar"
UNLABELLED = "an image without a label"
UNKNOWN = "a label that is no training class"
ABSENT = "a label without an image"
VACANT = "a class without images"
REASONS = (EMPTY, FOREIGN, DAMAGED, HUGE, STRANGE, LINK, UNLABELLED, UNKNOWN, ABSENT, VACANT)


class BadImage(ValueError):
    """Bytes that are no usable image, with one of `REASONS` and what the decoder said."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)  # both, so that it crosses processes
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason} ({self.detail})" if self.detail else self.reason


@dataclass
class Faults:
    """What was wrong where, under one policy."""

    on_bad: BadRecords = "raise"
    found: list[tuple[str, str]] = field(default_factory=list)
    """(path, reason) of everything that was left out."""

    def add(self, path: str, reason: str, detail: str = "") -> None:
        """Errors: ValueError naming path and reason where the policy is "raise"."""
        if self.on_bad == "raise":
            raise ValueError(f"{path}: {BadImage(reason, detail)}")
        self.found.append((path, reason))

    @property
    def skipped(self) -> dict[str, int]:
        """How many by reason."""
        return dict(Counter(reason for _, reason in self.found))
