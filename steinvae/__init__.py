"""Stein variational autoencoders (Pu et al. 2017): training, evaluation and reproduction.

Importing the package loads nothing heavy; the entries are `python -m steinvae.train`,
`steinvae.evaluate`, `steinvae.sample` and `steinvae.reproduce`.
"""

from __future__ import annotations

__version__ = "0.1.0"
