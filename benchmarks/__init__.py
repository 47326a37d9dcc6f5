"""Measurements against PyTorch; each module runs alone, `python -m benchmarks` runs all."""
