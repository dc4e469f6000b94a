"""Tools and reasoning through a whole server: SmolLM2 with a template that has both, and on request a real tool model.

SmolLM2-135M was not trained for tools, so only what is enforced is tested with it. `MLX_SERVING_TEST_TOOL_MODEL` names
a folder with a model that was, such as Qwen2.5 in any size.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel
from support.server import Server

from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.store import ModelStore

pytestmark = pytest.mark.integration

TEMPLATE = """
{%- if tools %}<|im_start|>system
Tools: {{ tools | tojson }}. Call one as <tool_call>
{"name": "...", "arguments": {...}}
</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.reasoning_content %}<think>
{{ message.reasoning_content }}
</think>

{% endif %}{{ message.content }}{% for call in message.tool_calls or [] %}<tool_call>
{{ call.function | tojson }}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking %}<think>
{% endif %}{% endif %}"""
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"enum": ["celsius", "fahrenheit"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "description": "Weather", "parameters": SCHEMA}}
TIME: Any = {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}}
MESSAGES: Any = [{"role": "user", "content": "What is the weather in Paris in celsius?"}]
THINK: Any = {"chat_template_kwargs": {"enable_thinking": True}}


@pytest.fixture(scope="module")
def server(smollm2: ModelRecord, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """SmolLM2 with another template."""
    home, source = (tmp_path_factory.mktemp(name, numbered=True) for name in ("home", "caller"))
    for file in smollm2.path.iterdir():
        if file.name != "mlx-serving.json":
            (source / file.name).symlink_to(file)
    (source / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    ModelStore(home).import_folder(source, "caller", copy=True)
    with Server(home, models__default="caller", generation__guidance__compile_seconds=60) as started:
        yield started


def test_a_required_call_is_valid_whatever_the_model_would_say(client: OpenAI) -> None:
    for seed in range(3):
        answer = client.chat.completions.create(
            model="caller",
            messages=MESSAGES,
            tools=[WEATHER, TIME],
            tool_choice="required",
            parallel_tool_calls=False,
            max_tokens=100,
            seed=seed,
        )
        [call] = answer.choices[0].message.tool_calls or []
        assert (answer.choices[0].finish_reason, answer.choices[0].message.content) == ("tool_calls", None)
        assert call.type == "function"
        schema = SCHEMA if call.function.name == "weather" else {"type": "object"}
        jsonschema.validate(json.loads(call.function.arguments), schema)


def test_a_named_function_is_called_once_and_streams_as_it_is_said(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="caller",
            messages=MESSAGES,
            tools=[TIME, WEATHER],
            tool_choice={"type": "function", "function": {"name": "weather"}},
            temperature=0,
            max_tokens=100,
            stream=True,
            # Pieces that have come together share an event unless log-probabilities are asked for.
            logprobs=True,
        )
    )
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    assert [call.function.name for call in calls if call.function and call.function.name] == ["weather"]
    assert len(calls) > 3
    text = "".join((call.function.arguments or "") for call in calls if call.function)
    jsonschema.validate(json.loads(text), SCHEMA)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_without_tools_or_with_none_chosen_nothing_is_parsed(client: OpenAI) -> None:
    plain = client.chat.completions.create(model="caller", messages=MESSAGES, temperature=0, max_tokens=8)
    none = client.chat.completions.create(
        model="caller", messages=MESSAGES, tools=[WEATHER], tool_choice="none", temperature=0, max_tokens=8
    )
    assert none.choices[0].message.content == plain.choices[0].message.content
    assert none.usage is not None
    assert plain.usage is not None
    # The tools are not written into the prompt either.
    assert none.usage.prompt_tokens == plain.usage.prompt_tokens
    assert none.usage.completion_tokens == plain.usage.completion_tokens


def test_reasoning_is_ended_at_its_budget_and_stands_apart(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="caller",
        messages=MESSAGES,
        temperature=0,
        max_tokens=40,
        extra_body={**THINK, "thinking_budget": 5},
    )
    message = answer.choices[0].message
    assert message.reasoning_content  # type: ignore[attr-defined]
    assert "think>" not in (message.content or "")
    assert message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    # The forced end is a few tokens long: the model's vocabulary has no token for it.
    assert 5 < (answer.usage.completion_tokens_details.reasoning_tokens or 0) < 16


def test_a_call_after_reasoning_is_held_to_its_schema(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="caller",
        messages=MESSAGES,
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=120,
        temperature=0,
        extra_body={**THINK, "thinking_budget": 4},
    )
    [call] = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
    assert answer.choices[0].message.reasoning_content  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("field", "members"),
    [
        ("tool_choice.function.name", {"tools": [TIME], "tool_choice": WEATHER | {"function": {"name": "wether"}}}),
        ("tools[1].function.name", {"tools": [TIME, TIME]}),
        ("tool_choice", {"tool_choice": "required"}),
        ("chat_template_kwargs.thinking", {"extra_body": {"chat_template_kwargs": {"thinking": True}}}),
        (
            "tools[0].function.parameters",
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {
                            "name": "f",
                            "strict": True,
                            "parameters": {"type": "object", "propertyNames": {"pattern": "a"}},
                        },
                    }
                ]
            },
        ),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client: OpenAI, field: str, members: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="caller", messages=MESSAGES, **members)
    assert caught.value.param == field


# --- a model that was trained for tools -------------------------------------------------------------------------------

TOOL_MODEL = os.environ.get("MLX_SERVING_TEST_TOOL_MODEL", "")


class GetWeather(BaseModel):
    """Get the weather of a city."""

    city: str
    unit: str


class Place(BaseModel):
    city: str
    country: str


@pytest.fixture(scope="module")
def tool_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    home = tmp_path_factory.mktemp("home", numbered=True)
    ModelStore(home).import_folder(Path(TOOL_MODEL), "tools")
    settings: Any = {"models__default": "tools", "generation__guidance__compile_seconds": 60}
    with (
        Server(home, **settings) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


@pytest.mark.skipif(not TOOL_MODEL, reason="MLX_SERVING_TEST_TOOL_MODEL names no folder")
def test_the_clients_helpers_work_on_a_tool_model(tool_model: OpenAI) -> None:
    tools = [openai.pydantic_function_tool(GetWeather)]
    how: Any = {"model": "tools", "tools": tools, "temperature": 0, "max_tokens": 100, "parallel_tool_calls": False}
    for choice in ("auto", "required"):
        answer = tool_model.chat.completions.parse(messages=MESSAGES, tool_choice=choice, **how)
        [call] = answer.choices[0].message.tool_calls or []
        assert isinstance(call.function.parsed_arguments, GetWeather)
        assert "Paris" in call.function.parsed_arguments.city
        assert answer.choices[0].finish_reason == "tool_calls"
    turns = [*MESSAGES, answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "21, sunny"}]
    again = tool_model.chat.completions.parse(messages=turns, tool_choice="none", **how)
    assert again.choices[0].message.content
    with tool_model.chat.completions.stream(messages=MESSAGES, tool_choice="required", **how) as stream:
        kinds = {event.type for event in stream}
        message = stream.get_final_completion().choices[0].message
    assert "tool_calls.function.arguments.done" in kinds
    assert message.tool_calls is not None
    assert isinstance(message.tool_calls[0].function.parsed_arguments, GetWeather)


@pytest.mark.skipif(not TOOL_MODEL, reason="MLX_SERVING_TEST_TOOL_MODEL names no folder")
def test_a_parsed_answer_may_stand_beside_tools(tool_model: OpenAI) -> None:
    answer = tool_model.chat.completions.parse(
        model="tools",
        messages=[{"role": "user", "content": "In which country is Paris? Answer as JSON with city and country."}],
        tools=[openai.pydantic_function_tool(GetWeather)],
        response_format=Place,
        temperature=0,
        max_tokens=60,
    )
    message = answer.choices[0].message
    assert isinstance(message.parsed, Place) or message.tool_calls
