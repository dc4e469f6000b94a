"""How a command says that it failed: one red line, what to do next, the exit status of the error tree."""

from __future__ import annotations

from mlx_serving.actors.errors import (
    ActorUnavailable,
    ConfigurationInvalid,
    ContextOverflow,
    GenerationFailed,
    ModelLoadFailed,
    ModelNotFound,
    ModelNotLoaded,
    Overloaded,
    ServingError,
    StartupFailed,
    StorageFull,
    TokenizerFailed,
    UntrustedPath,
)

NEXT: dict[str, str] = {
    ActorUnavailable.code: "start a server with: mlx-serving serve",
    ConfigurationInvalid.code: "every setting and its default: mlx-serving config show",
    ContextOverflow.code: "shorten the prompt or lower --max-tokens; see: mlx-serving models list",
    GenerationFailed.code: "the server goes on; its log says more",
    ModelLoadFailed.code: "check the machine with: mlx-serving doctor",
    ModelNotFound.code: "what is here: mlx-serving models list; to fetch one: mlx-serving models pull NAME",
    ModelNotLoaded.code: "load it with: mlx-serving models load NAME",
    Overloaded.code: "try again a little later",
    ServingError.code: "this is a bug of mlx-serving: please report it with what stands above",
    StartupFailed.code: "check the machine with: mlx-serving doctor",
    StorageFull.code: "free some space, or point MLX_SERVING_HOME to another disk",
    TokenizerFailed.code: "for a model without chat template: --raw",
    UntrustedPath.code: "name its folder in the setting models.trusted_folders",
}
"""What to do next, by error code."""


def report(error: ServingError) -> int:
    """Say the error on stderr and return the process's exit status."""
    from mlx_serving.frontends.cli.console import err

    where = f" ({error.field})" if error.field and error.field not in error.message else ""
    err.print(f"error: {error.message}{where}", style="red", markup=False, soft_wrap=True)
    advice = _advice(error)
    if advice is not None:
        err.print(f"  → {advice}", style="dim", markup=False, soft_wrap=True)
    return error.exit_status


def _advice(error: ServingError) -> str | None:
    if error.retry_after is not None:
        return f"try again in {error.retry_after:.1f} s"
    return NEXT.get(error.code)
