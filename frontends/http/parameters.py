"""The one table of body parameters: the parser checks against it, the OpenAPI document prints it."""

from __future__ import annotations

import re
from typing import Any

import attrs

from mlx_serving.actors.messages.values import CACHE_TIERS, PRIORITIES
from mlx_serving.frontends.http.conversation import MESSAGES, ContentPart, Prompts
from mlx_serving.frontends.http.guidance import GUIDANCE
from mlx_serving.frontends.http.kinds import (
    LARGEST_TOKEN_ID,
    AnyOf,
    Choice,
    Flag,
    ListOf,
    Neutral,
    Object,
    Parameter,
    Real,
    Schema,
    Text,
    TokenIds,
    Whole,
)
from mlx_serving.frontends.http.problems import Problems, inside, shown
from mlx_serving.frontends.http.tools import TOOLS, AnyObject, ToolChoice

MOST_TOKENS = 2**31 - 1
_MOST_BIASES = 1024


@attrs.frozen
class LogitBias:
    """Token id (as a string: JSON has no other keys) to addend, returned as dict[int, float]."""

    json_type = dict
    wants = f'an object of at most {_MOST_BIASES} entries such as {{"50256": -100}}'
    addend = Real(-100, 100)
    pattern = "^(0|[1-9][0-9]{0,8})$"

    def check(self, value: Any, path: str, problems: Problems) -> dict[int, float]:
        biases: dict[int, float] = {}
        if type(value) is not dict or len(value) > _MOST_BIASES:
            problems.add(path, f"must be {self.wants}, got {shown(value)}")
            return biases
        for key, addend in value.items():
            if not re.fullmatch(self.pattern[1:-1], key):
                problems.add(inside(path, key), "must have a token id as its key")
            else:
                biases[int(key)] = self.addend.check(addend, inside(path, key), problems)
        return biases

    def schema(self) -> Schema:
        return {
            "type": "object",
            "propertyNames": {"pattern": self.pattern},
            "additionalProperties": self.addend.schema(),
            "maxProperties": _MOST_BIASES,
        }


STREAM_OPTIONS = Object(
    (
        Parameter("include_usage", Flag(), "Send a last chunk with the usage of the whole request."),
        Parameter("include_obfuscation", Neutral((False,)), "Not supported."),
    )
)

_MODEL = Parameter("model", Text(1, 1024), "Name of a served model; left out, the default model.")

_SAMPLING = (
    Parameter("temperature", Real(0, 2), "0 is greedy; 1 by default."),
    Parameter("top_p", Real(0, 1, above=True), "Nucleus of this probability; 1 switches it off."),
    Parameter("top_k", Whole(0, LARGEST_TOKEN_ID), "Draw from the k likeliest tokens; 0 switches it off."),
    Parameter("min_p", Real(0, 1), "Drop tokens below this share of the likeliest one's probability."),
    Parameter("seed", Whole(-(2**63), 2**63 - 1), "Makes the draw repeatable, whatever else runs."),
    Parameter("repetition_penalty", Real(0.01, 10), "On tokens of prompt and answer; 1 switches it off."),
    Parameter("presence_penalty", Real(-2, 2), "On tokens that the answer already has."),
    Parameter("frequency_penalty", Real(-2, 2), "On tokens of the answer, times their count."),
    Parameter("logit_bias", LogitBias(), "Token id to an addend from -100 to 100."),
)

_STOPPING = (
    Parameter("max_tokens", Whole(1, MOST_TOKENS), "Longest answer; the server's setting bounds it by default."),
    Parameter("stop", AnyOf((Text(1), ListOf(Text(1), 0, 16))), "The answer ends before any of these strings."),
    Parameter("stop_token_ids", TokenIds(0, 256), "The answer ends at any of these tokens."),
    Parameter("ignore_eos", Flag(), "Go on after the end of sequence."),
)

PREDICTION = Object(
    (
        Parameter("type", Choice(("content",)), required=True),
        Parameter("content", AnyOf((Text(), ListOf(ContentPart(), shortest=1))), required=True),
    )
)

_SPECULATION = (
    Parameter("prediction", PREDICTION, "Text that much of the answer may repeat: it then comes faster."),
    Parameter("speculation", Flag(), "false: decode token by token."),
)

_DELIVERY = (
    Parameter("stream", Flag(), "Send the answer as server-sent events."),
    Parameter("stream_options", STREAM_OPTIONS, "Only with stream."),
    Parameter("priority", Choice(PRIORITIES), "Class of the request; normal by default."),
    Parameter("timeout", Real(0, 86_400, above=True), "Seconds after which the request is given up."),
    Parameter("user", Text(0, 512), "Your end user: the tenant among whom the server shares fairly."),
    Parameter("cache_salt", Text(1, 512), "Share cached prompt prefixes only with requests of the same salt."),
)

REASONING_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
_TOOLS = (
    Parameter("tools", TOOLS, "Functions that the model may call."),
    Parameter("tool_choice", ToolChoice(), "Whether it must call one, and which; auto by default."),
    Parameter("parallel_tool_calls", Flag(), "Whether it may call several at once; true by default."),
)
_REASONING = (
    Parameter("reasoning_effort", Choice(REASONING_EFFORTS), "Where the model's chat template knows such degrees."),
    Parameter("thinking_budget", Whole(0, MOST_TOKENS), "Tokens of reasoning after which its end is forced."),
    Parameter("chat_template_kwargs", AnyObject(), "Variables for the chat template, such as enable_thinking."),
)

_NOT_OFFERED_IN_CHAT: dict[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "verbosity": (),
    "web_search_options": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "metadata": ({},),
    "moderation": (),
    "safety_identifier": (),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
}


def _choices(most: int) -> Parameter:
    return Parameter("n", Whole(1, most), "How many answers.")


def chat_body(most_choices: int) -> Object:
    """The body of POST /v1/chat/completions."""
    return Object(
        (
            _MODEL,
            Parameter("messages", MESSAGES, "The conversation so far.", required=True),
            *_SAMPLING,
            *_STOPPING,
            *_SPECULATION,
            *GUIDANCE,
            Parameter("max_completion_tokens", Whole(1, MOST_TOKENS), "Another name of max_tokens."),
            _choices(most_choices),
            Parameter("logprobs", Flag(), "Report the log-probability of every token."),
            Parameter("top_logprobs", Whole(0, 20), "And of this many likeliest ones; only with logprobs."),
            *_DELIVERY,
            *_TOOLS,
            *_REASONING,
            *(Parameter(name, Neutral(values), "Not supported.") for name, values in _NOT_OFFERED_IN_CHAT.items()),
        )
    )


def completion_body(most_choices: int) -> Object:
    """The body of POST /v1/completions."""
    return Object(
        (
            _MODEL,
            Parameter(
                "prompt",
                Prompts(),
                "What to continue; several prompts are answered side by side.",
                required=True,
            ),
            *_SAMPLING,
            *_STOPPING,
            *_SPECULATION,
            *GUIDANCE,
            _choices(most_choices),
            Parameter("best_of", Whole(1, most_choices), "Only equal to n."),
            Parameter("logprobs", Whole(0, 5), "Report the tokens' log-probabilities and this many likeliest ones."),
            Parameter("echo", Flag(), "Put the prompt before the answer; only with text and without logprobs."),
            *_DELIVERY,
            Parameter("suffix", Neutral(("",)), "Not supported."),
        )
    )


TOKENIZE_BODY = Object(
    (
        _MODEL,
        Parameter("text", Text(), "Text to tokenise."),
        Parameter("content", Text(), "Another name of text."),
        Parameter("messages", MESSAGES, "A conversation, tokenised through the model's chat template."),
        Parameter("add_special_tokens", Flag(), "Begin as the model's tokenizer does; true by default."),
    )
)

DETOKENIZE_BODY = Object((_MODEL, Parameter("tokens", TokenIds(), "Token ids.", required=True)))

_CACHE_MODEL = Parameter("model", Text(1, 1024), "Name of a loaded model; left out, all of them.")
CACHE_QUERY = Object((_CACHE_MODEL,))
CACHE_CLEAR_BODY = Object(
    (_CACHE_MODEL, Parameter("tier", Choice(CACHE_TIERS), "Which tier to empty; all by default."))
)
CACHE_WARM_BODY = Object(
    (_CACHE_MODEL, Parameter("prompt", Text(1, 64), "Name of a warm prompt of the settings; left out, each."))
)

ADAPTER_ADD_BODY = Object(
    (
        Parameter("folder", Text(1, 4096), "A folder within a trusted one, as mlx-lm or PEFT saves it.", required=True),
        Parameter("base", Text(1, 1024), "The stored model that it was trained on.", required=True),
        Parameter("name", Text(1, 96), "Its name beside that model.", required=True),
    )
)

ADAPTER_REMOVE_BODY = Object((Parameter("adapter", Text(1, 1200), "BASE:NAME.", required=True),))

MODEL_BODY = Object(
    (Parameter("model", Text(1, 1024), "A stored model, an alias or a trusted folder.", required=True),)
)
