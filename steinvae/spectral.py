"""An upper bound of a matrix's largest singular value by matrix products alone."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def spectral_norm_bound(weight: Float[Tensor, "m n"], squarings: int = 5) -> Float[Tensor, ""]:
    """Upper bound of the largest singular value of a matrix (m, n), at most n^(1/128) too large.

    With A = W^T W and k squarings, lambda_max(A) <= |A^(2^k)|_F^(1/2^k): matrix products only, so
    it needs no decomposition, no state between calls and no synchronisation on a GPU. Dividing
    by the largest entry first, and by the norm before every squaring, keeps float32 in range.
    """
    rows, columns = weight.shape
    largest = weight.abs().max().clamp_min(torch.finfo(weight.dtype).tiny)
    weight = weight / largest
    power = weight.T @ weight if columns <= rows else weight @ weight.T
    log_scale = torch.zeros((), device=weight.device)
    for squaring in range(squarings):
        norm = power.norm().clamp_min(torch.finfo(power.dtype).tiny)
        log_scale = log_scale + norm.log() / 2**squaring
        power = power / norm
        power = power @ power
    tail = power.norm().clamp_min(torch.finfo(power.dtype).tiny).log() / 2**squarings
    return largest * ((log_scale + tail) / 2).exp()
