"""Operations on MLX arrays with a native and a pure twin, and the modules that use them.

`operations` has the twin that was chosen; both have the same functions, but for what the engine itself does
without the native one. `pure` says what each computes.
"""

from mlx_serving.native.kernels.operations import OPERATIONS as operations
from mlx_serving.native.kernels.operations import choice

__all__ = ["choice", "operations"]
