"""Fused Stein variational gradient kernels for torch: Gram matrix, exact median, direction."""

from stein_kernels import optim
from stein_kernels._backends import use_backend
from stein_kernels.functional import (
    kernel_stein_discrepancy,
    median_bandwidth,
    rbf_gram,
    stein_divergence,
    svgd_direction,
)

__version__ = "0.1.0"
__all__ = [
    "kernel_stein_discrepancy",
    "median_bandwidth",
    "optim",
    "rbf_gram",
    "stein_divergence",
    "svgd_direction",
    "use_backend",
]
