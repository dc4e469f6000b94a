"""Benchmarks of the engine in the process that runs it, beside mlx_lm on the same weights."""
