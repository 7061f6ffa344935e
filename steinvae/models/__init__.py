"""Generative models p(x | z, theta): a likelihood and the network that feeds it, one file each."""
