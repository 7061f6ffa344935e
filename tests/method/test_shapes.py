"""The shapes in the annotations are checked while the tests run."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from steinvae.stein import code_direction


def test_a_wrong_shape_is_refused_by_its_annotation():
    codes = torch.randn(2, 5, 3)
    with pytest.raises(TypeCheckError, match="score"):
        code_direction(codes, codes[:, :4], bandwidth="liu_wang", leave_one_out=True)
