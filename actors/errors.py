"""The error tree: whose fault it is, and how each frontend says so.

Four faults: the caller's mistake, overload, our bug, a dead or missing actor. Every class is one row of the table of
HTTP status, JSON-RPC code and process exit status; `code` is the stable name that crosses the wire (`ErrorInfo`).
"""

from __future__ import annotations

import attrs


class ServingError(Exception):
    """Our bug: something inside the runtime broke."""

    code = "internal_error"
    http_status = 500
    rpc_code = -32603
    exit_status = 70
    retryable = False

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        retry_after: float | None = None,
        model: str | None = None,
    ) -> None:
        """`field` is the path of the offending parameter, `retry_after` seconds, `model` the id concerned."""
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after = retry_after
        self.model = model


class CallerError(ServingError):
    """The caller's mistake: the same call will fail again."""

    code = "invalid_request"
    http_status = 400
    rpc_code = -32602
    exit_status = 2


class ProtocolError(CallerError):
    """Bytes on the bus that are not one of our messages."""

    code = "protocol_error"
    rpc_code = -32600


class InvalidParameter(CallerError):
    """A parameter has the wrong type or is out of range; `field` names it."""

    code = "invalid_parameter"


class GuidanceInvalid(InvalidParameter):
    """Answers cannot be held to this schema, expression or grammar; the message names keyword and path."""

    code = "invalid_guidance"
    rpc_code = -32004


class UnsupportedParameter(CallerError):
    """A parameter is unknown or not supported; `field` names it."""

    code = "unsupported_parameter"


class ContextOverflow(CallerError):
    """Prompt and requested tokens do not fit the model's context, or can never fit the memory limit."""

    code = "context_length_exceeded"


class RequestTooLarge(CallerError):
    """The body or line is larger than the configured limit."""

    code = "request_too_large"
    http_status = 413
    rpc_code = -32600


class Unauthorized(CallerError):
    """The API key is missing or wrong."""

    code = "unauthorized"
    http_status = 401


class ModelNotFound(CallerError):
    """No such model here; the message offers near names."""

    code = "model_not_found"
    http_status = 404
    rpc_code = -32005


class ModelNotLoaded(CallerError):
    """The model exists and no replica of it runs."""

    code = "model_not_loaded"
    http_status = 404
    rpc_code = -32005


class ModelTooLarge(CallerError):
    """The model needs more memory than models may take here; the message has the numbers."""

    code = "model_too_large"


class UntrustedPath(CallerError):
    """A path outside the trusted folders."""

    code = "untrusted_path"
    http_status = 403


class ModelLoadFailed(ServingError):
    """Weights, configuration or tokenizer of a model cannot be read or run."""

    code = "model_load_failed"
    rpc_code = -32001
    exit_status = 1


class TokenizerFailed(CallerError):
    """Text cannot be tokenised, or the chat template refused the messages."""

    code = "tokenizer_failed"
    rpc_code = -32003


class ConfigurationInvalid(CallerError):
    """Settings with unknown keys or wrong types; the message lists all of them with their paths."""

    code = "configuration_invalid"
    exit_status = 78


class StorageFull(ServingError):
    """The disk is full or not writable."""

    code = "storage_full"
    http_status = 507
    exit_status = 74


class Overloaded(ServingError):
    """Overload: try again after `retry_after` seconds."""

    code = "overloaded"
    http_status = 429
    rpc_code = -32006
    exit_status = 75
    retryable = True


class DeadlineExceeded(ServingError):
    """The request's deadline passed before it finished."""

    code = "deadline_exceeded"
    http_status = 504
    rpc_code = -32002
    exit_status = 75
    retryable = True


class Cancelled(ServingError):
    """The request was cancelled by its client."""

    code = "cancelled"
    http_status = 499
    rpc_code = -32800
    exit_status = 130


class GenerationFailed(ServingError):
    """The engine failed on this sequence alone."""

    code = "generation_failed"
    rpc_code = -32002


class ActorUnavailable(ServingError):
    """A dead or missing actor: it is restarting, or it is shutting down."""

    code = "actor_unavailable"
    http_status = 503
    rpc_code = -32002
    exit_status = 69
    retryable = True


class ReplicaLost(ActorUnavailable):
    """The process that was generating this sequence died."""

    code = "replica_lost"


class StartupFailed(ActorUnavailable):
    """An actor did not report ready within its deadline, or said why it could not."""

    code = "startup_failed"
    exit_status = 1


def _tree(root: type[ServingError]) -> list[type[ServingError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


ERRORS: dict[str, type[ServingError]] = {kind.code: kind for kind in _tree(ServingError)}
"""Every error type by its wire name."""


@attrs.frozen
class ErrorInfo:
    """An error as it crosses the bus: `code` is a key of ERRORS; the rest as in `ServingError`."""

    code: str
    message: str
    field: str | None = None
    retry_after: float | None = None
    model: str | None = None

    @property
    def kind(self) -> type[ServingError]:
        return ERRORS.get(self.code, ServingError)

    def to_exception(self) -> ServingError:
        return self.kind(self.message, field=self.field, retry_after=self.retry_after, model=self.model)


def describe(error: BaseException) -> ErrorInfo:
    """The wire form of any exception; what is not a ServingError is our bug and says only its type and text."""
    if isinstance(error, ServingError):
        return ErrorInfo(error.code, error.message, error.field, error.retry_after, error.model)
    return ErrorInfo(ServingError.code, f"{type(error).__name__}: {error}")
