"""What the answer to a conversation is made of, and the grammar that its tool calls are held to. Pure."""

from __future__ import annotations

import json
from typing import Any

import attrs

from mlx_serving.actors.admission.conversation import offered_tools
from mlx_serving.actors.errors import ConfigurationInvalid, UnsupportedParameter
from mlx_serving.actors.json_schema.check import prepared
from mlx_serving.actors.json_schema.guidance import schema_of
from mlx_serving.actors.messages.admission import GenerationRequested
from mlx_serving.actors.messages.values import AnswerFormat, Guidance, Tool, ToolUse
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.actors.parsing.formats import (
    CALLS,
    REASONING,
    call_format_of,
    reasoning_format_of,
)
from mlx_serving.actors.parsing.grammar import calls_grammar
from mlx_serving.config.schema import Models

OFF = "off"


@attrs.frozen
class ParserChoice:
    """Names of the parsers of one model's reasoning and calls; "" for none."""

    reasoning: str
    calls: str

    @classmethod
    def of(cls, tokenizer: TextTokenizer, model: str, settings: Models) -> ParserChoice:
        """What the settings say of the model, or else what its chat template tells."""
        template = "\n".join(tokenizer.chat.sources.values())
        reasoning = _override(settings.reasoning_parser, model, reasoning_format_of(template))
        return cls(reasoning, _override(settings.tool_parser, model, call_format_of(template)))


def check_parsers(settings: Models) -> None:
    """Raise ConfigurationInvalid for an entry that names no parser."""
    for field, entries, known in (
        ("models.tool_parser", settings.tool_parser, CALLS),
        ("models.reasoning_parser", settings.reasoning_parser, REASONING),
    ):
        for entry in entries:
            if entry.rpartition("=")[2] not in (*known, OFF):
                names = ", ".join((*known, OFF))
                raise ConfigurationInvalid(f"{field}: {entry!r} must name one of {names}", field=field)


def _override(entries: tuple[str, ...], model: str, found: str) -> str:
    """An entry is `model=parser`, or `parser` for every model; the more special one counts."""
    given = {name: parser for name, _, parser in (entry.rpartition("=") for entry in entries)}
    chosen = given.get(model, given.get("", found))
    return "" if chosen == OFF else chosen


def answer_format(asked: GenerationRequested, choice: ParserChoice, prompt: str) -> AnswerFormat | None:
    """How the answer to a rendered conversation is taken apart; None if all of it is content.

    Raises UnsupportedParameter for tools and budgets that the model has no known notation for.
    """
    tools = offered_tools(asked.tool_use)
    if tools and not choice.calls:
        raise UnsupportedParameter(
            "tools: it is not known how this model writes tool calls; set models.tool_parser", field="tools"
        )
    if asked.thinking_budget is not None and not choice.reasoning:
        raise UnsupportedParameter(
            "thinking_budget: this model does not mark its reasoning, as far as its chat template tells",
            field="thinking_budget",
        )
    if not tools and not choice.reasoning:
        return None
    span = REASONING.get(choice.reasoning)
    return AnswerFormat(
        reasoning=choice.reasoning,
        calls=choice.calls if tools else "",
        is_thinking=span is not None and prompt.rstrip().endswith(span.open),
        tools=tools,
        parallel=asked.tool_use.parallel,
        lazy=asked.tool_use.mode == "auto" and bool(tools) and asked.guidance is None,
        thinking_budget=asked.thinking_budget,
    )


def tool_guidance(asked: GenerationRequested, form: AnswerFormat, tokenizer: TextTokenizer) -> Guidance:
    """What holds the calls of a request with tools to their format and schemas; in its place also a JSON answer.

    Raises InvalidParameter for a strict tool's schema that cannot be enforced, UnsupportedParameter for guidance of
    other kinds than JSON beside tools.
    """
    use = asked.tool_use
    source = calls_grammar(
        form.calls,
        _callable_tools(use),
        tokenizer.backend.token_to_id,
        lazy=form.lazy,
        parallel=use.parallel and use.mode != "named",
        answer=_json_answer(asked.guidance) if use.mode == "auto" else None,
    )
    return Guidance("calls", source, "tools")


def _callable_tools(use: ToolUse) -> tuple[Tool, ...]:
    """Those that the model may call, strict ones with their schemas prepared."""
    return tuple(
        attrs.evolve(tool, parameters=json.dumps(_prepared(tool, index))) if tool.strict else tool
        for index, tool in enumerate(use.tools)
        if use.mode != "named" or tool.name == use.name
    )


def _prepared(tool: Tool, index: int) -> dict[str, Any]:
    return prepared(tool.parameters, f"tools[{index}].function.parameters")


def _json_answer(guidance: Guidance | None) -> dict[str, Any] | None:
    if guidance is None:
        return None
    if guidance.kind not in ("json_schema", "json_object"):
        raise UnsupportedParameter(
            f"{guidance.field}: beside tools an answer can only be held to JSON", field=guidance.field
        )
    return schema_of(guidance)
