"""No wait at the first call: the library is loaded, nothing is compiled per shape or dtype."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.parametrize("kernels", ["compiled"], indirect=True)
MEASURE = """
import time, torch
import stein_kernels as sk
x = torch.randn({shape})
start = time.perf_counter()
sk.svgd_direction(x, -x)
print(time.perf_counter() - start)
"""


@pytest.mark.parametrize("shape", ["64, 100, 50", "1000, 7"])
def test_first_call_in_a_fresh_process(kernels, fresh_python, shape):
    """Under 0.2 s after the import, the best of three processes on a machine that others share."""
    seconds = []
    for _ in range(3):
        done = fresh_python(MEASURE.format(shape=shape))
        assert done.returncode == 0, done.stderr
        seconds.append(float(done.stdout))
    assert min(seconds) < 0.2


def test_import_does_not_load_the_library(kernels, fresh_python):
    done = fresh_python("import sys, stein_kernels; print('stein_kernels._C' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr
