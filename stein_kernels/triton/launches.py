"""Every launch of this backend, by the name that the flows of ``stein_kernels.gpu`` call."""

from stein_kernels.triton.direction import direction
from stein_kernels.triton.direction_backward import direction_backward
from stein_kernels.triton.divergence import divergence
from stein_kernels.triton.divergence_backward import divergence_backward
from stein_kernels.triton.gram import gram
from stein_kernels.triton.gram_backward import gram_backward
from stein_kernels.triton.long_rows import long_direction, long_direction_adam, long_products
from stein_kernels.triton.median import median_pass, median_refine, median_sample
from stein_kernels.triton.small_set import small_set
from stein_kernels.triton.small_set_backward import small_set_backward

__all__ = [
    "direction",
    "direction_backward",
    "divergence",
    "divergence_backward",
    "gram",
    "gram_backward",
    "long_direction",
    "long_direction_adam",
    "long_products",
    "median_pass",
    "median_refine",
    "median_sample",
    "small_set",
    "small_set_backward",
]
