"""Experiments that `python -m steinvae.reproduce NAME` runs: one file per table or figure."""
