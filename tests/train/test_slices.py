"""A slice of time ends by itself and says so; a signal from outside is no such end."""

from __future__ import annotations

import signal
import time

import pytest

from steinvae.experiments.slices import check_positive, time_slice
from steinvae.signals import Interrupted


def test_a_slice_that_is_over_says_how_to_go_on(capsys):
    with time_slice(0.001):  # 60 ms
        time.sleep(30)
        pytest.fail("the slice did not end")
    assert "run the same command" in capsys.readouterr().out


def test_a_signal_from_outside_goes_on(capsys):
    with pytest.raises(Interrupted) as ending, time_slice(10.0):
        signal.raise_signal(signal.SIGTERM)
    assert ending.value.code == 143
    assert not capsys.readouterr().out


def test_minutes_that_are_not_positive_are_named():
    check_positive(minutes=None, slice_minutes=1.0)
    with pytest.raises(ValueError, match=r"slice_minutes must be positive, got 0"):
        check_positive(minutes=2.0, slice_minutes=0.0)
