"""Bodies of the OpenAI API as requests to the actors."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.actors.errors import CallerError, InvalidParameter, ServingError, UnsupportedParameter
from mlx_serving.actors.messages.values import ChatMessage, Sampling, Stopping, ToolCall, unpack_ids
from mlx_serving.frontends.http import openai
from mlx_serving.frontends.http.openai import Parser

PARSER = Parser(most_choices=16, window=256)
HI = [{"role": "user", "content": "hi"}]


def chat(**body: Any) -> openai.Call:
    return PARSER.chat({"messages": HI, **body})


def refusal(**body: Any) -> ServingError:
    with pytest.raises(ServingError) as caught:
        chat(**body)
    return caught.value


def completion_refusal(**body: Any) -> ServingError:
    with pytest.raises(ServingError) as caught:
        PARSER.completion(body)
    return caught.value


def test_a_bare_chat_has_the_defaults_of_the_messages() -> None:
    call = chat()
    (request,) = call.requests
    assert request.messages == (ChatMessage("user", "hi"),)
    assert (request.sampling, request.stopping) == (Sampling(), Stopping())
    assert (request.model, request.n, request.priority, request.tenant) == (None, 1, "normal", "")
    assert request.window == 256
    assert (call.stream, call.include_usage, call.logprobs, call.choices) == (False, False, False, 1)


def test_every_offered_parameter_arrives() -> None:
    call = chat(
        model="tiny",
        temperature=0,
        top_p=0.5,
        top_k=40,
        min_p=0.1,
        seed=-3,
        repetition_penalty=1.1,
        presence_penalty=-2,
        frequency_penalty=2,
        logit_bias={"7": -100, "9": 1.5},
        max_tokens=12,
        stop=["a", "b"],
        stop_token_ids=[3],
        ignore_eos=True,
        n=2,
        logprobs=True,
        top_logprobs=4,
        stream=True,
        stream_options={"include_usage": True},
        priority="high",
        timeout=2.5,
        user="ann",
    )
    (request,) = call.requests
    assert request.sampling == Sampling(
        0.0, 0.5, 40, 0.1, -3, 1.1, -2.0, 2.0, {7: -100.0, 9: 1.5}, logprobs=True, top_logprobs=4
    )
    assert request.stopping == Stopping(12, ("a", "b"), (3,), ignore_eos=True)
    assert (request.model, request.n, request.priority) == ("tiny", 2, "high")
    assert (request.timeout, request.tenant) == (2.5, "ann")
    assert call.stream
    assert call.include_usage
    assert call.logprobs


@pytest.mark.parametrize("content", ["ab", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]])
def test_a_prediction_is_text_or_parts_of_text(content: Any) -> None:
    (request,) = chat(prediction={"type": "content", "content": content}, speculation=False).requests
    assert (request.prediction, request.speculation) == ("ab", False)
    assert chat().requests[0].prediction is None
    assert chat().requests[0].speculation


@pytest.mark.parametrize("prediction", ["ab", {"type": "text", "content": "a"}, {"type": "content"}, {"content": "a"}])
def test_a_prediction_of_another_form_is_refused_by_name(prediction: Any) -> None:
    assert "prediction" in str(refusal(prediction=prediction).field)


def test_null_means_left_out() -> None:
    names = [member.name for member in PARSER.chat_body.members if not member.required]
    assert chat(**dict.fromkeys(names)) == chat()


def test_parts_are_joined_and_the_developer_speaks_as_the_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = PARSER.chat({"messages": [{"role": "developer", "content": parts}, *HI]})
    assert call.requests[0].messages == (ChatMessage("system", "ab"), ChatMessage("user", "hi"))


def test_an_answer_of_the_server_is_taken_back_as_a_turn() -> None:
    turn: dict[str, Any] = {
        "role": "assistant",
        "content": "hello",
        "refusal": None,
        "tool_calls": [],
        "annotations": [],
    }
    assert PARSER.chat({"messages": [*HI, turn]}).requests[0].messages == (
        ChatMessage("user", "hi"),
        ChatMessage("assistant", "hello"),
    )


def test_all_errors_of_a_body_are_told_at_once_each_with_its_path() -> None:
    error = refusal(
        messages=[{"role": "king", "content": 3}],
        temprature=1,
        temperature=True,
        n=1.0,
        stop=[""],
        logit_bias={"x": 1, "5": 101},
    )
    assert isinstance(error, InvalidParameter)
    for path in (
        "messages[0].role",
        "messages[0].content",
        "temperature",
        "n",
        "stop[0]",
        "logit_bias.x",
        "logit_bias.5",
    ):
        assert f"{path}: must" in error.message
    assert "temprature: unknown parameter, did you mean temperature?" in error.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 2.1),
        ("temperature", "1"),
        ("temperature", -0.1),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_k", -1),
        ("min_p", 2),
        ("seed", 2**63),
        ("seed", 1.5),
        ("presence_penalty", 2.5),
        ("repetition_penalty", 0),
        ("max_tokens", 0),
        ("max_tokens", "12"),
        ("max_completion_tokens", False),
        ("n", 17),
        ("n", 0),
        ("n", True),
        ("stop", ["x"] * 17),
        ("stop", 3),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [1, True]),
        ("ignore_eos", 1),
        ("logprobs", 1),
        ("top_logprobs", 21),
        ("stream", "true"),
        ("stream_options", {"include_usage": 1}),
        ("priority", "urgent"),
        ("timeout", 0),
        ("user", 3),
        ("model", ""),
        ("messages", []),
        ("messages", "hi"),
        ("messages", [HI]),
    ],
)
def test_a_wrong_type_or_value_is_refused_without_coercion(name: str, value: Any) -> None:
    error = refusal(**{name: value})
    assert isinstance(error, InvalidParameter)
    assert error.field is not None
    assert error.field.startswith(name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("function_call", "f"),
        ("service_tier", "flex"),
        ("store", True),
        ("metadata", {"a": "b"}),
        ("modalities", ["audio"]),
        ("best_of", 2),
        ("stream_options", {"include_obfuscation": True}),
    ],
)
def test_what_is_not_offered_is_refused_by_name(name: str, value: Any) -> None:
    error = refusal(**{name: value, "stream": True})
    assert isinstance(error, UnsupportedParameter)
    assert error.field is not None
    assert error.field.startswith(name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", []),
        ("tool_choice", "auto"),
        ("parallel_tool_calls", True),
        ("response_format", {"type": "text"}),
        ("service_tier", "auto"),
        ("store", False),
        ("metadata", {}),
    ],
)
def test_a_value_that_asks_for_nothing_is_let_in(name: str, value: Any) -> None:
    assert chat(**{name: value}) == chat()


def test_a_picture_is_refused_by_its_place() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:"}}
    error = refusal(messages=[*HI, {"role": "user", "content": [{"type": "text", "text": "a"}, picture]}])
    assert isinstance(error, UnsupportedParameter)
    assert error.field == "messages[1].content[1]"


def test_max_completion_tokens_is_max_tokens() -> None:
    assert chat(max_completion_tokens=5) == chat(max_tokens=5) == chat(max_tokens=5, max_completion_tokens=5)
    assert refusal(max_tokens=4, max_completion_tokens=5).field == "max_completion_tokens"


def test_parameters_that_need_another_say_so() -> None:
    assert refusal(top_logprobs=2).field == "top_logprobs"
    assert refusal(stream_options={"include_usage": True}).field == "stream_options"
    assert completion_refusal(prompt="a", best_of=2).field == "best_of"
    assert completion_refusal(prompt="a", echo=True, logprobs=0).field == "echo"
    assert completion_refusal(prompt=[1], echo=True).field == "echo"


def test_each_prompt_becomes_a_request() -> None:
    call = PARSER.completion({"prompt": ["a", "b"], "n": 2, "echo": True})
    assert [request.prompt for request in call.requests] == ["a", "b"]
    assert (call.choices, call.echoes) == (4, ("a", "b"))


def test_token_ids_are_prompts_too() -> None:
    assert unpack_ids(PARSER.completion({"prompt": [1, 2]}).requests[0].prompt_ids or b"") == [1, 2]
    call = PARSER.completion({"prompt": [[1], [2, 3]]})
    assert [unpack_ids(request.prompt_ids or b"") for request in call.requests] == [[1], [2, 3]]


@pytest.mark.parametrize("prompt", ["", [], [[]], [""], ["a", 1], [1, "a"], [1, -1], [[1], 2], [1, 1.0], 5, {}])
def test_an_empty_or_mixed_prompt_is_refused(prompt: Any) -> None:
    error = completion_refusal(prompt=prompt)
    assert isinstance(error, InvalidParameter)
    assert "prompt" in (error.field or "")


def test_logprobs_of_completions_is_a_number() -> None:
    sampling = PARSER.completion({"prompt": "a", "logprobs": 0}).requests[0].sampling
    assert (sampling.logprobs, sampling.top_logprobs) == (True, 0)
    assert completion_refusal(prompt="a", logprobs=True).field == "logprobs"
    assert completion_refusal(prompt="a", logprobs=6).field == "logprobs"


def test_tokenize_takes_exactly_one_source() -> None:
    assert openai.tokenize({"content": "a"}).text == "a"
    assert openai.tokenize({"messages": HI}).messages == (ChatMessage("user", "hi"),)
    for body in ({}, {"text": "a", "content": "a"}, {"text": "a", "messages": HI}):
        with pytest.raises(InvalidParameter):
            openai.tokenize(body)


def test_a_hostile_body_gets_a_short_answer() -> None:
    body = {f"{number}-" + "x" * 10_000: number for number in range(5_000)}
    with pytest.raises(UnsupportedParameter) as caught:
        PARSER.chat({"messages": HI, **body})
    assert len(caught.value.message) < 4_000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'"\\ud800"',
        b"[" * 100_000,
        b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
        b"\xef\xbb\xbf{}",
    ],
)
def test_what_is_not_json_is_the_callers_mistake(body: bytes) -> None:
    with pytest.raises(CallerError, match="not valid JSON"):
        openai.read_json(body)


SCALARS = st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
NAMES = st.sampled_from(
    [member.name for member in (*PARSER.chat_body.members, *PARSER.completion_body.members)]
    + ["text", "content", "tokens"]
)
TURNS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={name: VALUES | st.sampled_from(["user", "tool"]) for name in ("role", "content", "name")},
    ),
    max_size=3,
)
BODIES = VALUES | st.dictionaries(NAMES | st.text(), VALUES | TURNS, max_size=8)


def mistake(parse: Callable[[Any], object], body: Any) -> CallerError | None:
    """What a body is refused with; anything but a CallerError fails the test."""
    try:
        parse(body)
    except CallerError as error:
        return error
    return None


@given(BODIES)
def test_any_body_is_a_call_or_the_callers_mistake(body: Any) -> None:
    for parse in (PARSER.chat, PARSER.completion, openai.tokenize, openai.detokenize, openai.model_name):
        error = mistake(parse, body)
        assert error is None or (error.http_status == 400 and error.field and json.dumps(error.message))


@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_the_callers_mistake(body: bytes) -> None:
    error = mistake(openai.read_json, body)
    assert error is None or error.http_status == 400


WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}


def test_tools_and_the_choice_among_them_are_read() -> None:
    request = chat(tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "weather"}}).requests[0]
    [tool] = request.tool_use.tools
    assert (tool.name, tool.description, tool.strict) == ("weather", None, False)
    assert json.loads(tool.parameters) == WEATHER["function"]["parameters"]  # type: ignore[index]
    assert (request.tool_use.mode, request.tool_use.name) == ("named", "weather")
    request = chat(tools=[WEATHER], tool_choice="required", parallel_tool_calls=False).requests[0]
    assert (request.tool_use.mode, request.tool_use.parallel) == ("required", False)


def test_reasoning_and_template_arguments_are_read() -> None:
    given = {"enable_thinking": False, "n": [1]}
    request = chat(reasoning_effort="low", thinking_budget=5, chat_template_kwargs=given).requests[0]
    assert (request.reasoning_effort, request.thinking_budget) == ("low", 5)
    assert json.loads(request.template_arguments) == given


def test_turns_with_calls_and_their_answers_are_read() -> None:
    turns = [
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "so"},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    assistant, tool = chat(messages=turns).requests[0].messages or ()
    assert assistant.tool_calls == (ToolCall("weather", '{"city": "Köln"}', "call_1"),)
    assert (assistant.content, assistant.reasoning) == ("", "so")
    assert (tool.tool_call_id, tool.content) == ("call_1", "rain")


@pytest.mark.parametrize(
    ("field", "members"),
    [
        ("tools[0].function", {"tools": [{"type": "function"}]}),
        ("tools[0].type", {"tools": [{**WEATHER, "type": "custom"}]}),
        ("tools[0].function.name", {"tools": [{"type": "function", "function": {"name": "a b"}}]}),
        (
            "tools[0].function.parameters",
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": "x"}}]},
        ),
        ("tool_choice", {"tool_choice": "any"}),
        ("tool_choice.function", {"tool_choice": {"type": "function"}}),
        ("parallel_tool_calls", {"parallel_tool_calls": 1}),
        ("reasoning_effort", {"reasoning_effort": "much"}),
        ("thinking_budget", {"thinking_budget": -1}),
        ("chat_template_kwargs", {"chat_template_kwargs": []}),
        ("messages[0].content", {"messages": [{"role": "assistant"}]}),
        ("messages[0].role", {"messages": [{"role": "user", "content": "a", "tool_calls": [CALL]}]}),
        ("messages[0].tool_calls[0]", {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}),
    ],
)
def test_what_is_wrong_with_tools_and_reasoning_is_named(field: str, members: dict[str, Any]) -> None:
    error = refusal(**members)
    assert error.field is not None
    assert error.field.startswith(field)


def test_an_object_that_is_nested_too_deeply_is_refused() -> None:
    deep: Any = {}
    for _ in range(70):
        deep = {"a": deep}
    assert refusal(chat_template_kwargs=deep).field == "chat_template_kwargs"
