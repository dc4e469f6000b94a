"""Renders chat templates as transformers does, without transformers.

The variables, filters, tags and white space rules are those that published templates are written for:
`messages`, `tools`, `documents`, `add_generation_prompt`, the special tokens; `tojson` without escapes,
`raise_exception`, `strftime_now`; `break`, `continue` and `generation` blocks; trimmed block lines. Templates
come with models from strangers, so they run in jinja's immutable sandbox and see nothing but JSON values.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import attrs
import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

from mlx_serving.actors.errors import TokenizerFailed

JSON = Any
_Result = TypeVar("_Result")
_NO_TEMPLATE = "this model has no chat template: send the prompt as plain text instead"
_PROBE_TOOLS = [{"type": "function", "function": {"name": "f", "description": "", "parameters": {"properties": {}}}}]
_REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
_MISPRINT = r"{{\"name\": <function-name>, \"arguments\": <args-json-object>}}"
"""How Qwen2.5-Coder's first templates show a call: within a string nothing makes these one brace each, so the model
learns from its prompt to write two, which is no JSON. Qwen mended it in the sizes it published again."""


def _mended(sources: Mapping[str, str]) -> dict[str, str]:
    return {name: source.replace(_MISPRINT, _MISPRINT[1:-1]) for name, source in sources.items()}


@attrs.define
class ChatTemplate:
    """The templates of one model by name; most have only `default`, some also `tool_use`."""

    sources: Mapping[str, str] = attrs.field(converter=_mended)
    special_tokens: Mapping[str, str] = attrs.field(factory=dict)
    _compiled: dict[str, jinja2.Template] = attrs.field(factory=dict, init=False, repr=False)
    _read: dict[str, frozenset[str]] = attrs.field(factory=dict, init=False, repr=False)
    _wants_text: bool | None = attrs.field(default=None, init=False, repr=False)

    def prepare(self) -> None:
        """Compile the templates and look into them, which the first request would wait for.

        Renders none: one of a stranger's might not end, and the model would never serve. Says nothing about a template
        that cannot be read: that is told to whoever asks for it.
        """
        for name in self.sources:
            with contextlib.suppress(TokenizerFailed):
                self._template(name)
                self.variables(name)

    @property
    def has_tools(self) -> bool:
        """Whether there is a template that shows tools to the model."""
        return "tools" in self.variables("tool_use" if "tool_use" in self.sources else "default")

    def variables(self, name: str = "default") -> frozenset[str]:
        """What the template reads and does not set itself. TokenizerFailed when there is no such template."""
        if name not in self.sources:
            raise TokenizerFailed(_NO_TEMPLATE)
        if name not in self._read:
            tree = _or_refused(lambda: _environment().parse(self.sources[name]))
            self._read[name] = frozenset(jinja2.meta.find_undeclared_variables(tree))
        return self._read[name]

    @property
    def wants_argument_text(self) -> bool:
        """Whether arguments of earlier calls must be JSON text: some templates write them as they are.

        Found by rendering a call with an object: a template for texts fails, or shows Python's notation of it.
        """
        if self._wants_text is None:
            self._wants_text = self._refuses_objects()
        return self._wants_text

    def _refuses_objects(self) -> bool:
        call = {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": {"key": "value"}}}
        turns: list[dict[str, JSON]] = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "b", "name": "f", "tool_call_id": "abcdefghi"},
        ]
        try:
            return "{'key': 'value'}" in self.render(turns, tools=_PROBE_TOOLS)
        except TokenizerFailed:
            return _renders(self, _with_text(turns))

    def render(
        self,
        messages: Sequence[Mapping[str, JSON]],
        *,
        tools: Sequence[Mapping[str, JSON]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, JSON] | None = None,
    ) -> str:
        """The prompt text. TokenizerFailed when there is no template or it refuses the messages."""
        if not messages:
            raise TokenizerFailed("a chat needs at least one message", field="messages")
        template = self._template("tool_use" if tools is not None and "tool_use" in self.sources else "default")
        values = {**self.special_tokens, "documents": None, **_plain(variables or {})}
        values["messages"] = [_message(message) for message in messages]
        values["tools"] = _plain(tools)
        values["add_generation_prompt"] = add_generation_prompt
        return _or_refused(lambda: template.render(values))

    def _template(self, name: str) -> jinja2.Template:
        if name not in self.sources:
            raise TokenizerFailed(_NO_TEMPLATE)
        if name not in self._compiled:
            self._compiled[name] = _or_refused(lambda: _environment().from_string(self.sources[name]))
        return self._compiled[name]


def _renders(chat: ChatTemplate, turns: Sequence[Mapping[str, JSON]]) -> bool:
    try:
        chat.render(turns, tools=_PROBE_TOOLS)
    except TokenizerFailed:
        return False
    return True


def _with_text(turns: Sequence[Mapping[str, JSON]]) -> list[dict[str, JSON]]:
    """The same with the arguments of the second turn's call as text."""
    user, assistant, tool = map(dict, turns)
    [call] = assistant["tool_calls"]
    text = json.dumps(call["function"]["arguments"])
    return [user, {**assistant, "tool_calls": [{**call, "function": {**call["function"], "arguments": text}}]}, tool]


def _or_refused(work: Callable[[], _Result]) -> _Result:
    """A template can raise anything, such as a TypeError over a missing key."""
    try:
        return work()
    except Exception as error:
        raise TokenizerFailed(f"the chat template refused the messages: {error}", field="messages") from error


def _plain(value: JSON) -> JSON:
    """A copy made of JSON types alone; anything else shows only the name of its type."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"


def _message(message: Mapping[str, JSON]) -> dict[str, JSON]:
    """Keys without a value count as missing; reasoning is offered under the names that templates read."""
    if not isinstance(message, Mapping):
        raise TokenizerFailed(f"a message must be an object, not {type(message).__name__}", field="messages")
    plain = {key: _plain(item) for key, item in message.items() if item is not None}
    reasoning = next((plain[name] for name in _REASONING_NAMES if name in plain), None)
    if reasoning is None:
        return plain
    return {"thinking": reasoning, **plain, "reasoning_content": reasoning}


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's words for training; here it only renders its body."""

    tags = {"generation"}  # noqa: RUF012 (declared without ClassVar by jinja)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(jinja2.utils.Namespace):
    """Takes no name with a leading underscore, so that a template cannot reach Python's own."""

    def __init__(self, *values: JSON, **named: JSON) -> None:
        for name in dict(*values, **named):
            _refuse_private(name)
        super().__init__(*values, **named)

    def __setitem__(self, name: str, value: JSON) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: JSON) -> None:
    if str(name).startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _tojson(
    value: JSON,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _new_dict(*items: JSON, **named: JSON) -> dict[str, JSON]:
    return dict(*items, **named)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, namespace=_Namespace, dict=_new_dict
    )
    return environment
