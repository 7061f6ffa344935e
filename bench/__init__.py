"""Benchmarks of stein_kernels against torch as users write it, torch.compile and KeOps."""
