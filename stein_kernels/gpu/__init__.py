"""The ops on CUDA devices: routes (the dispatch table), flows (the order of launches), packing.

The launches themselves are a backend's: ``stein_kernels.triton`` or csrc/cuda. They have the same
names and arguments in both, so every flow is written once.
"""
