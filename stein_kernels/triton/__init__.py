"""The GPU kernels in Triton. ``launches`` has what the flows call; importing it imports Triton."""
