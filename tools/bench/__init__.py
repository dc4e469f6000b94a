"""Benchmarks of mlx-serving and its peers: `python tools/bench COMMAND`."""
