"""Native code and its pure twins; which of the two runs is chosen here and nowhere else."""

from __future__ import annotations

from mlx_serving.native.pure import StopMatcher

__all__ = ["StopMatcher"]
