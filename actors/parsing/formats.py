"""The formats in which model families write reasoning and tool calls, and how a chat template tells which one."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from mlx_serving.actors.messages.values import Tool
from mlx_serving.actors.parsing import gemma_calls, headed_calls, json_calls, tagged_calls
from mlx_serving.actors.parsing.blocks import blocks
from mlx_serving.actors.parsing.harmony import CHANNEL, CONSTRAIN, ENDS, MESSAGE, START, harmony
from mlx_serving.actors.parsing.reader import Reader, Reading

Read = Callable[[Reader], Reading[None]]

PYTHON_TAG = "<|python_tag|>"
FENCES = ("```json", "```")
"""What models like to put around JSON."""


@attrs.frozen
class CallFormat:
    """How tool calls are written. `markers` are shown to the parser even where they are special tokens.

    A call begins with one of `triggers`, or at the start of the answer with one of `leads`: %s in it is the tool's
    name, and white space is left out. `id_length`: characters that the family's templates want of a call's id; 0: any.
    """

    read: Callable[[tuple[Tool, ...]], Read]
    markers: tuple[str, ...]
    triggers: tuple[str, ...]
    leads: tuple[str, ...] = ()
    id_length: int = 0


@attrs.frozen
class ReasoningFormat:
    """`open` and `close` stand around the reasoning. `forced` is written where a budget ends it.

    The answer begins after `entry`, or if that is empty where the reasoning ends.
    """

    open: str
    close: str
    forced: str
    entry: str = ""


def _hermes(tools: tuple[Tool, ...]) -> Read:
    """Some models leave the markers out, so an answer that begins with an object that calls a tool is a call too."""

    def block(reader: Reader, _: str) -> Reading[bool]:
        return (yield from json_calls.calls(reader, tagged_calls.CALL_END))

    def read(reader: Reader) -> Reading[None]:
        found = yield from _leading(reader, tools)
        yield from blocks(reader, [tagged_calls.CALL], block, stray=[tagged_calls.CALL_END], after_call=found)

    return read


def _llama(tools: tuple[Tool, ...]) -> Read:
    def block(reader: Reader, _: str) -> Reading[bool]:
        return (yield from json_calls.calls(reader, "", _names(tools)))

    def read(reader: Reader) -> Reading[None]:
        found = yield from _leading(reader, tools)
        yield from blocks(reader, [PYTHON_TAG], block, after_call=found)

    return read


def _leading(reader: Reader, tools: tuple[Tool, ...]) -> Reading[bool]:
    """Calls without a marker at the start of the answer, perhaps fenced. Whether there was one."""
    reader.attempt("")
    yield from reader.skip_space()
    fence = yield from reader.accept(FENCES)
    yield from reader.skip_space()
    if (yield from reader.peek()) != "{":
        reader.put_back()
        return False
    found = yield from json_calls.calls(reader, "", _names(tools))
    if found and fence:
        yield from reader.skip_space()
        yield from reader.accept(FENCES[-1:])
    return found


def _names(tools: tuple[Tool, ...]) -> frozenset[str]:
    return frozenset(tool.name for tool in tools)


def _plain(read: Read) -> Callable[[tuple[Tool, ...]], Read]:
    return lambda _: read


def _lead(key: str) -> str:
    return '{"name":"%s","KEY":'.replace("KEY", key)


def _fenced(key: str) -> tuple[str, ...]:
    return tuple(fence + _lead(key) for fence in ("", *FENCES))


_TAGS = (tagged_calls.CALL, tagged_calls.CALL_END)

CALLS: dict[str, CallFormat] = {
    "hermes": CallFormat(_hermes, _TAGS, _TAGS[:1], leads=_fenced("arguments")),
    "qwen3_coder": CallFormat(
        lambda tools: tagged_calls.Qwen3Coder(tools).read,
        (*_TAGS, tagged_calls.FUNCTION_END, tagged_calls.PARAMETER_END),
        _TAGS[:1],
    ),
    "glm": CallFormat(
        lambda tools: tagged_calls.Glm(tools).read,
        (*_TAGS, tagged_calls.KEY, tagged_calls.KEY_END, tagged_calls.VALUE, tagged_calls.VALUE_END),
        _TAGS[:1],
    ),
    "llama3_json": CallFormat(
        _llama, (PYTHON_TAG,), (), leads=(*_fenced("parameters"), PYTHON_TAG + _lead("parameters"))
    ),
    "mistral": CallFormat(_plain(headed_calls.mistral), headed_calls.MISTRAL, headed_calls.MISTRAL[:1], id_length=9),
    "deepseek": CallFormat(_plain(headed_calls.deepseek), headed_calls.DEEPSEEK, headed_calls.DEEPSEEK[:1]),
    "deepseek_v31": CallFormat(_plain(headed_calls.deepseek), headed_calls.DEEPSEEK, headed_calls.DEEPSEEK[:1]),
    "kimi_k2": CallFormat(_plain(headed_calls.kimi), headed_calls.KIMI, headed_calls.KIMI[:1]),
    "function_gemma": CallFormat(
        _plain(gemma_calls.Gemma(gemma_calls.FUNCTION_GEMMA).read),
        gemma_calls.FUNCTION_GEMMA,
        gemma_calls.FUNCTION_GEMMA[:1],
    ),
    "gemma4": CallFormat(
        _plain(gemma_calls.Gemma(gemma_calls.GEMMA4).read), gemma_calls.GEMMA4, gemma_calls.GEMMA4[:1]
    ),
    "harmony": CallFormat(_plain(harmony), (START, CHANNEL, CONSTRAIN, MESSAGE, *ENDS), ("to=functions.",)),
}
"""By the name that settings use."""

REASONING: dict[str, ReasoningFormat] = {
    "think": ReasoningFormat("<think>", "</think>", "\n</think>\n\n"),
    "mistral": ReasoningFormat("[THINK]", "[/THINK]", "[/THINK]"),
    "harmony": ReasoningFormat(
        CHANNEL + "analysis" + MESSAGE,
        ENDS[0],
        f"{ENDS[0]}{START}assistant{CHANNEL}final{MESSAGE}",
        CHANNEL + "final" + MESSAGE,
    ),
}
"""By the name that settings use. `harmony` is read by the format of its calls."""

_CALL_SIGNS: tuple[tuple[str, str], ...] = (
    ("harmony", CHANNEL),
    ("gemma4", "<|tool_call>"),
    ("function_gemma", "<start_function_call>"),
    ("glm", "<arg_key>"),
    ("qwen3_coder", "<function="),
    ("kimi_k2", "<|tool_call_argument_begin|>"),
    ("mistral", "[TOOL_CALLS]"),
    ("hermes", "<tool_call>"),
    ("llama3_json", '{"name": function name'),
    ("llama3_json", PYTHON_TAG),
)
"""Of several the first that the template has."""


def call_format_of(template: str) -> str:
    """The name of the format that a chat template writes calls in; "" if none is known."""
    if headed_calls.DEEPSEEK[0] in template:
        return "deepseek" if "```json" in template else "deepseek_v31"
    return next((name for name, sign in _CALL_SIGNS if sign in template), "")


def reasoning_format_of(template: str) -> str:
    """The name of the format that a chat template knows reasoning in; "" if none is known."""
    if CHANNEL in template and "analysis" in template:
        return "harmony"
    return next((name for name in ("think", "mistral") if REASONING[name].close in template), "")
