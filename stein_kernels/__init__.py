"""Fused Stein variational gradient kernels for torch: Gram matrix, exact median, direction."""

from stein_kernels import optim as optim
from stein_kernels._backends import use_backend as use_backend
from stein_kernels.functional import (
    kernel_stein_discrepancy as kernel_stein_discrepancy,
)
from stein_kernels.functional import (
    median_bandwidth as median_bandwidth,
)
from stein_kernels.functional import (
    rbf_gram as rbf_gram,
)
from stein_kernels.functional import (
    stein_divergence as stein_divergence,
)
from stein_kernels.functional import (
    svgd_direction as svgd_direction,
)

__version__ = "0.1.0"
__all__ = [
    "kernel_stein_discrepancy",
    "median_bandwidth",
    "rbf_gram",
    "stein_divergence",
    "svgd_direction",
    "use_backend",
]
