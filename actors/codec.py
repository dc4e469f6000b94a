"""One door in and out of bytes: envelope ↔ one msgpack frame.

A frame is the array `[version, tag, sender, correlation, deadline, trace_id, body]`. The tag is a message's class name
and is looked up in MESSAGES, the closed list of what may arrive. A body is a map of fields (cattrs, no coercion, no
extra keys), except for the two messages that carry tokens: they are positional arrays, packed and checked by hand,
because one of them crosses the bus at every step; most of their rows hold a text and its ids and no more, and take the
short way. Whatever is wrong with a frame becomes one ProtocolError.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from types import ModuleType, NoneType, UnionType
from typing import Any, Union, cast, get_args, get_origin

import attrs
import msgpack
from cattrs import Converter, transform_error
from cattrs.errors import BaseValidationError
from cattrs.fns import identity

from mlx_serving.actors.errors import ErrorInfo, ProtocolError
from mlx_serving.actors.messages import admission, batching, frontend, generation, qos, supervision, telemetry
from mlx_serving.actors.messages.admission import SequenceOutput, TokensGenerated
from mlx_serving.actors.messages.envelope import PROTOCOL_VERSION, Envelope
from mlx_serving.actors.messages.frontend import Delta, TokensDelivered
from mlx_serving.actors.messages.values import SequenceEnd, TokenLogprob, ToolCallPart
from mlx_serving.native import unpack_rows


def _defined_in(module: ModuleType) -> dict[str, type]:
    classes = inspect.getmembers(module, inspect.isclass)
    return {name: kind for name, kind in classes if kind.__module__ == module.__name__ and attrs.has(kind)}


MESSAGES: dict[str, type] = {
    name: kind
    for module in (admission, batching, frontend, generation, qos, supervision, telemetry)
    for name, kind in _defined_in(module).items()
}
"""Every type that may arrive, by its tag."""
_WITHIN_TOKENS: tuple[type, ...] = (SequenceEnd, ErrorInfo)
"""What is converted of the messages that carry tokens."""


def _exact(kind: type) -> Any:
    def structure(value: Any, _: Any) -> Any:
        if type(value) is not kind:
            raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
        return value

    return structure


def _structure_float(value: Any, _: Any) -> float:
    if type(value) not in (float, int):
        raise TypeError(f"expected float, got {type(value).__name__}")
    return float(value)


def _structure_text_or_id(value: Any, _: Any) -> str | int | None:
    if type(value) not in (str, int, NoneType):
        raise TypeError(f"expected str, int or nil, got {type(value).__name__}")
    return cast("str | int | None", value)


def _is_homogeneous_tuple(kind: Any) -> bool:
    return getattr(kind, "__origin__", None) is tuple and kind.__args__[-1:] == (Ellipsis,)


def _is_optional(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType) and len(get_args(kind)) == 2 and NoneType in get_args(kind)


def _converter() -> Converter:
    """Its hooks hold those of what they are made of: none is looked up, let alone made, while a message passes."""
    converter = Converter(forbid_extra_keys=True)
    for kind in (bool, int, str, bytes):
        converter.register_structure_hook(kind, _exact(kind))
    converter.register_structure_hook(float, _structure_float)
    converter.register_structure_hook(str | int | None, _structure_text_or_id)
    converter.register_unstructure_hook(str | int | None, identity)

    def tuple_factory(kind: Any) -> Any:
        item = kind.__args__[0]
        structure_item = converter.get_structure_hook(item)

        def structure(value: Any, _: Any) -> tuple[Any, ...]:
            if not isinstance(value, list):
                raise TypeError(f"expected an array, got {type(value).__name__}")
            return tuple([structure_item(each, item) for each in value])

        return structure

    def optional_factory(kind: Any) -> Any:
        inner = next(each for each in get_args(kind) if each is not NoneType)
        structure_inner = converter.get_structure_hook(inner)
        return lambda value, _: None if value is None else structure_inner(value, inner)

    converter.register_structure_hook_factory(_is_homogeneous_tuple, tuple_factory)
    converter.register_structure_hook_factory(_is_optional, optional_factory)
    # The converter forgets them whenever it learns of another kind of collection.
    converter.register_structure_hook_factory(attrs.has, cache(converter.gen_structure_attrs_fromdict))
    converter.register_unstructure_hook_factory(attrs.has, cache(converter.gen_unstructure_attrs_fromdict))
    return converter


_convert = _converter()


@cache
def _reader(kind: type) -> Callable[[Any, Any], Any]:
    return _convert.get_structure_hook(kind)


@cache
def _writer(kind: type) -> Callable[[Any], Any]:
    return _convert.get_unstructure_hook(kind)


def prepare() -> None:
    """Make what would be made when the first message of each type comes or goes: 40 ms for all of them.

    For processes that are to answer their first request as fast as any other.
    """
    for kind in (*MESSAGES.values(), *_WITHIN_TOKENS):
        _reader(kind)
        _writer(kind)


def _pack_logprob(value: TokenLogprob) -> tuple[Any, ...]:
    return (value.token_id, value.token, value.logprob, value.top)


def _pack_call(part: ToolCallPart) -> tuple[Any, ...]:
    return (part.index, part.arguments, part.id, part.name)


def _pack_end(value: SequenceEnd | None) -> tuple[Any, ...] | None:
    return None if value is None else tuple(_writer(SequenceEnd)(value).values())


def _pack_output(output: SequenceOutput) -> tuple[Any, ...]:
    if output.end is None and output.error is None and not (output.logprobs or output.tool_calls):
        return (output.sequence_id, output.text, output.token_ids, (), None, None, output.reasoning, ())
    error = None if output.error is None else attrs.astuple(output.error)
    logprobs = [_pack_logprob(each) for each in output.logprobs]
    calls = [_pack_call(each) for each in output.tool_calls]
    end = _pack_end(output.end)
    return (output.sequence_id, output.text, output.token_ids, logprobs, end, error, output.reasoning, calls)


def _pack_delta(delta: Delta) -> tuple[Any, ...]:
    if delta.end is None and not (delta.logprobs or delta.tool_calls):
        return (delta.request_id, delta.index, delta.text, delta.token_ids, (), None, delta.reasoning, ())
    logprobs = [_pack_logprob(each) for each in delta.logprobs]
    calls = [_pack_call(each) for each in delta.tool_calls]
    end = _pack_end(delta.end)
    return (delta.request_id, delta.index, delta.text, delta.token_ids, logprobs, end, delta.reasoning, calls)


def _check(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
    return value


def _check_all(values: tuple[Any, ...], kinds: tuple[type, ...]) -> None:
    for value, kind in zip(values, kinds, strict=True):
        _check(value, kind)


def _unpack_ids(value: Any) -> tuple[int, ...]:
    for each in _check(value, list):
        if type(each) is not int:
            raise TypeError(f"expected int, got {type(each).__name__}")
    return tuple(value)


def _unpack_logprob(value: Any) -> TokenLogprob:
    token_id, token, logprob, top = value
    alternatives = tuple(
        (cast(int, _check(i, int)), cast(str, _check(t, str)), cast(float, _check(p, float))) for i, t, p in top
    )
    return TokenLogprob(_check(token_id, int), _check(token, str), _check(logprob, float), alternatives)


def _unpack_call(value: Any) -> ToolCallPart:
    index, arguments, call_id, name = value
    names = (each if each is None else _check(each, str) for each in (call_id, name))
    return ToolCallPart(_check(index, int), _check(arguments, str), *names)


def _by_fields(value: Any, kind: type) -> Any:
    """An attrs class from its positional form; None stays None."""
    if value is None:
        return None
    read = _reader(kind)
    names = [field.name for field in attrs.fields(kind)]
    if len(_check(value, list)) != len(names):
        raise TypeError(f"{kind.__name__} has {len(names)} fields, got {len(value)}")
    return read(dict(zip(names, value, strict=True)), kind)


def _unpack_output(value: Any) -> SequenceOutput:
    sequence_id, text, ids, logprobs, end, error, reasoning, calls = value
    if not (type(sequence_id) is int and type(text) is type(reasoning) is str):
        _check_all((sequence_id, text, reasoning), (int, str, str))
    if end is error is None and logprobs == calls == []:
        return SequenceOutput(sequence_id, text, _unpack_ids(ids), (), None, None, reasoning, ())
    return SequenceOutput(
        sequence_id,
        text,
        _unpack_ids(ids),
        tuple([_unpack_logprob(each) for each in logprobs]),
        _by_fields(end, SequenceEnd),
        _by_fields(error, ErrorInfo),
        reasoning,
        tuple([_unpack_call(each) for each in calls]),
    )


def _unpack_delta(value: Any) -> Delta:
    request_id, index, text, ids, logprobs, end, reasoning, calls = value
    if not (type(request_id) is type(index) is int and type(text) is type(reasoning) is str):
        _check_all((request_id, index, text, reasoning), (int, int, str, str))
    if end is None and logprobs == calls == []:
        return Delta(request_id, index, text, _unpack_ids(ids), (), None, reasoning, ())
    return Delta(
        request_id,
        index,
        text,
        _unpack_ids(ids),
        tuple([_unpack_logprob(each) for each in logprobs]),
        _by_fields(end, SequenceEnd),
        reasoning,
        tuple([_unpack_call(each) for each in calls]),
    )


def _pack_body(message: Any) -> Any:
    kind: type = type(message)
    if kind is TokensGenerated:
        return (message.replica, [_pack_output(output) for output in message.outputs])
    if kind is TokensDelivered:
        return [_pack_delta(delta) for delta in message.deltas]
    return _writer(kind)(message)


def _unpack_body(tag: str, body: Any) -> Any:
    if tag == "TokensGenerated":
        replica, outputs = body
        return TokensGenerated(_check(replica, str), unpack_rows(SequenceOutput, "istennse", outputs, _unpack_output))
    if tag == "TokensDelivered":
        return TokensDelivered(unpack_rows(Delta, "iistense", body, _unpack_delta))
    kind = MESSAGES.get(tag)
    if kind is None:
        raise ProtocolError(f"unknown message {tag[:60]!r}")
    return _reader(kind)(_check(body, dict), kind)


def encode(envelope: Envelope) -> bytes:
    """The frame of an envelope. The message's type must be in MESSAGES.

    Raises ProtocolError for values that msgpack cannot hold: integers beyond 64 bits, lone surrogates.
    """
    message = envelope.message
    tag = type(message).__name__
    if MESSAGES.get(tag) is not type(message):
        raise TypeError(f"{tag} is not a message of the bus")
    header = (
        PROTOCOL_VERSION,
        tag,
        envelope.sender,
        envelope.correlation,
        envelope.deadline,
        envelope.trace_id,
    )
    try:
        return cast(bytes, msgpack.Packer().pack((*header, _pack_body(message))))  # as `packb`, a call less
    except (OverflowError, UnicodeEncodeError) as error:
        raise ProtocolError(f"{tag} holds a value that cannot be sent: {error}") from None


def decode(frame: bytes) -> Envelope:
    """The envelope of a frame. Raises ProtocolError with a short reason, and nothing else."""
    try:
        parts = msgpack.unpackb(frame, strict_map_key=False)
        version, tag, sender, correlation, deadline, trace_id, body = parts
        if version != PROTOCOL_VERSION:
            raise ProtocolError(f"protocol version {version!r}, this is {PROTOCOL_VERSION}")
        if deadline is not None:
            deadline = _structure_float(deadline, float)
        header = (_check(sender, str), _check(correlation, int), deadline, _check(trace_id, str))
        return Envelope(_unpack_body(_check(tag, str), body), *header)
    except ProtocolError:
        raise
    except BaseValidationError as error:
        raise ProtocolError("; ".join(transform_error(error)[:3])) from None
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
        msgpack.UnpackException,
    ) as error:
        raise ProtocolError(f"malformed frame: {str(error) or type(error).__name__}") from None
