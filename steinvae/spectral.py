"""An upper bound of a matrix's largest singular value by matrix products alone."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def spectral_norm_bound(weight: Float[Tensor, "m n"], squarings: int = 5) -> Float[Tensor, ""]:
    """Upper bound of the largest singular value of a matrix (m, n), at most n^(1/128) too large.

    With A = W^T W and k squarings, lambda_max(A) <= |A^(2^k)|_F^(1/2^k): matrix products only, so
    it needs no decomposition, no state between calls and no synchronisation on a GPU. Dividing
    by the largest entry first, and by the norm before every third squaring, keeps float32 in range:
    of norm 1, lambda_max is at least n^(-1/2), and n^-4 after three squarings.
    """
    rows, columns = weight.shape
    largest = weight.abs().max().clamp_min(torch.finfo(weight.dtype).tiny)
    weight = weight / largest
    power = weight.T @ weight if columns <= rows else weight @ weight.T
    logs = []
    for squaring in range(squarings):
        if squaring % 3 == 0:
            norm = _norm(power)
            logs.append(norm.log() / 2**squaring)
            power = power / norm
        power = power @ power
    logs.append(_norm(power).log() / 2**squarings)
    return largest * (torch.stack(logs).sum() / 2).exp()


def _norm(power: Tensor) -> Tensor:
    return power.norm().clamp_min(torch.finfo(power.dtype).tiny)
