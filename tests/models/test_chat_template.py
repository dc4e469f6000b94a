"""Templates render as in transformers, and refuse with TokenizerFailed."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from mlx_serving.actors.errors import TokenizerFailed
from mlx_serving.actors.models.chat_template import ChatTemplate

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": 'Ümlaut <&> "q"'},
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]},
    {"role": "assistant", "content": "b", "reasoning": "because", "name": None},
    {"role": "tool", "content": '{"x": 1}', "tool_call_id": "1"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"a": ["é", 1.5, True, None]}}}]
TEMPLATES = {
    "block lines are trimmed": """
        {%- for m in messages %}
        {% if m.role == 'user' %}
            [{{ m.content[0].text }}]
        {% endif %}
    {%- endfor %}
tail
""",
    "tojson keeps letters and order": (
        "{{ tools | tojson }}|{{ tools | tojson(indent=2) }}|{{ messages[0] | tojson(sort_keys=true) }}"
    ),
    "namespace carries values out of loops": (
        "{% set ns = namespace(n=0, last='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
        "{% set ns.last = m.role %}{% endfor %}{{ ns.n }}{{ ns.last }}"
    ),
    "loops can break and continue": (
        "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}"
        "{% if loop.index == 4 %}{% break %}{% endif %}{{ m.role }};{% endfor %}"
    ),
    "generation blocks show their body": (
        "{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}{% endfor %}"
    ),
    "reasoning has its names": (
        "{{ messages[2].reasoning_content }}{{ messages[2].thinking }}{{ messages[2].reasoning }}"
    ),
    "special tokens and variables are there": (
        "{{ bos_token }}{{ enable_thinking }}{{ add_generation_prompt }}{{ documents is none }}"
    ),
    "a missing name is empty": "[{{ nothing }}]{{ 'none' if unk_token is not defined }}",
    "a date can be made": "{{ strftime_now('%Y-%m-%d') }}",
    "dict and items work": (
        "{% for k, v in dict(a=1, b=2).items() %}{{ k }}{{ v }}{% endfor %}{{ messages[0].items() | list | length }}"
    ),
    "macros and filters work": (
        "{% macro say(x) %}<{{ x | upper | trim }}>{% endmacro %}{{ say(' hé ') }}"
        "{{ messages | map(attribute='role') | join(',') }}"
        "{{ 'a,b'.split(',')[-1] }}{{ messages[::-1][0].role }}"
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("tools", [TOOLS, None], ids=["tools", "no tools"])
def test_each_construct_renders_as_in_transformers(name: str, tools: list[dict[str, Any]] | None) -> None:
    source = TEMPLATES[name]
    ours = ChatTemplate({"default": source}, {"bos_token": "<s>"}).render(
        MESSAGES, tools=tools, variables={"enable_thinking": False}
    )
    plain = [{key: value for key, value in message.items() if value is not None} for message in MESSAGES]
    theirs = render_jinja_template(
        [plain],
        list(tools) if tools else None,
        chat_template=source,
        add_generation_prompt=True,
        bos_token="<s>",
        enable_thinking=False,
    )
    assert ours == theirs[0][0]


def test_the_template_for_tools_is_used_when_tools_are_given() -> None:
    chat = ChatTemplate({"default": "plain", "tool_use": "tools"})
    assert chat.render(MESSAGES) == "plain"
    assert chat.render(MESSAGES, tools=TOOLS) == "tools"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "refused"),
        ("{% for %}", "refused"),
        ("{{ messages[99].role.x }}", "refused"),
        ("{{ messages.append(1) }}", "refused"),
        ("{{ ''.__class__.__mro__ }}", "refused"),
        ("{% set n = namespace(__class__=1) %}", "refused"),
        ("{{ (1).__class__.__base__.__subclasses__() }}", "refused"),
        ("{% include 'x' %}", "refused"),
    ],
)
def test_what_a_template_refuses_or_must_not_do_is_the_callers_error(source: str, words: str) -> None:
    with pytest.raises(TokenizerFailed, match=words) as caught:
        ChatTemplate({"default": source}).render(MESSAGES)
    assert caught.value.field == "messages"


def test_a_model_without_a_template_says_so() -> None:
    with pytest.raises(TokenizerFailed, match="no chat template"):
        ChatTemplate({}).render(MESSAGES)


@pytest.mark.parametrize("messages", [[], ["text"], [None]])
def test_messages_must_be_objects(messages: list[Any]) -> None:
    with pytest.raises(TokenizerFailed):
        ChatTemplate({"default": "x"}).render(messages)


def test_objects_of_the_host_are_shown_by_their_type_alone() -> None:
    assert ChatTemplate({"default": "{{ messages[0].x }}"}).render([{"x": object()}]) == "<object>"


def test_a_call_that_qwens_first_templates_show_in_doubled_braces_is_shown_as_json() -> None:
    shown = r"<tool_call>\n{{\"name\": <function-name>, \"arguments\": <args-json-object>}}\n</tool_call>"
    chat = ChatTemplate({"default": '{{- "' + shown + '" }}{{ messages[0].content }}'})
    text = chat.render([{"role": "user", "content": "{{as it is}}"}])
    call = '{"name": <function-name>, "arguments": <args-json-object>}'
    assert text == f"<tool_call>\n{call}\n</tool_call>{{{{as it is}}}}"


def test_preparing_leaves_what_is_wrong_with_a_template_to_whoever_renders_it() -> None:
    chat = ChatTemplate({"default": "{% if %}", "tool_use": "{{ tools[0].function.name }}"})
    chat.prepare()
    assert chat.render(MESSAGES, tools=TOOLS) == "f"
    with pytest.raises(TokenizerFailed, match="refused"):
        chat.render(MESSAGES)


def test_preparing_renders_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[object] = []
    monkeypatch.setattr(ChatTemplate, "render", lambda *given, **_: rendered.append(given))
    ChatTemplate({"default": "{{ tools }}{{ messages }}"}).prepare()
    assert not rendered
