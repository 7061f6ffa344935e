"""The products of a step are those that the step makes."""

from __future__ import annotations

import pytest
from torch.utils.flop_counter import FlopCounterMode

from bench.products import make_products
from bench.test_train_step import Setting, configure, make_step
from steinvae.networks import build_networks

IMAGES, PIXELS = 64, 784


@pytest.mark.parametrize("encoder", ["flow", "gaussian"])
@pytest.mark.parametrize(("decoders", "pairing"), [(1, "strat"), (2, "strat"), (2, "full")])
def test_a_step_has_the_products_and_few_more(decoders, pairing, encoder):
    """Counted by torch. Beside them a step has the bounds on the norms of the encoder's weights."""
    setting = Setting("any", 4, decoders=decoders, pairing=pairing, encoder=encoder)
    networks = build_networks(configure("stein_vae", setting), PIXELS, "cpu")
    seen = 4 // decoders if pairing == "strat" else 4
    counts = []
    products = make_products(networks, IMAGES, 4, seen)
    for call in (products, make_step("stein_vae", setting)):
        with FlopCounterMode(display=False) as counter:
            call()
        counts.append(counter.get_total_flops())
    # W^T W and five squarings, of (200, 200) and of two (200, 50)
    bounds = 2 * 6 * 200**3 + 2 * 2 * (5 * 50**3 + 200 * 50**2) if encoder == "flow" else 0
    assert counts[1] - bounds == pytest.approx(counts[0], rel=0.01)
