"""Commands of bench that take no options, or names alone: they say so and do nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bench.environment import ROOT


@pytest.mark.parametrize("module", ["scaling", "guide", "probe"])
@pytest.mark.parametrize(("option", "code"), [("--help", 0), ("--no_such_option", 2)])
def test_an_option_is_read_before_anything_is_done(module, option, code):
    page = ROOT / "docs" / "scaling.md"
    before = page.stat().st_mtime_ns
    command = [sys.executable, "-m", f"bench.{module}", option]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    assert (done.stdout or done.stderr).startswith(f"usage: python -m bench.{module}")
    assert page.stat().st_mtime_ns == before
