"""Bodies of the OpenAI API as requests to the actors. Pure: JSON in, messages or one CallerError out."""

from __future__ import annotations

from typing import Any

import attrs
import orjson

from mlx_serving.actors.errors import CallerError
from mlx_serving.actors.messages.admission import DetokenizeRequested, GenerationRequested, TokenizeRequested
from mlx_serving.actors.messages.values import Guidance, Sampling, Stopping, pack_ids
from mlx_serving.frontends.http import parameters
from mlx_serving.frontends.http.guidance import guidance
from mlx_serving.frontends.http.kinds import Object
from mlx_serving.frontends.http.problems import Problems
from mlx_serving.frontends.http.tools import tool_use

_SAMPLING_NAMES = frozenset(
    field.name for field in attrs.fields(Sampling) if field.name not in ("logprobs", "top_logprobs")
)


@attrs.frozen
class Call:
    """A generation as it was asked for over HTTP.

    One request per prompt, each with `n` choices: choice c of prompt p has the index p * n + c in the answer.
    `echoes` is the text to put before the answers to each prompt, or empty.
    """

    is_chat: bool
    requests: tuple[GenerationRequested, ...]
    n: int
    stream: bool
    include_usage: bool
    logprobs: bool
    echoes: tuple[str, ...] = ()

    @property
    def choices(self) -> int:
        return self.n * len(self.requests)

    @property
    def is_guided(self) -> bool:
        """Whether its answers are held to something."""
        return any(request.guidance is not None for request in self.requests)


def read_json(body: bytes | bytearray) -> Any:
    """The JSON value of a body. CallerError for no body, malformed JSON, invalid UTF-8 or deep nesting."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise CallerError(f"The body is not valid JSON: {error}") from None


class Parser:
    """Reads bodies. `most_choices` bounds n; `window` is the credit in tokens that a stream begins with."""

    def __init__(self, most_choices: int, window: int) -> None:
        self.chat_body = parameters.chat_body(most_choices)
        self.completion_body = parameters.completion_body(most_choices)
        self._window = window

    def chat(self, body: Any) -> Call:
        """The call of POST /v1/chat/completions."""
        problems = Problems()
        given = self.chat_body.check(body, "", problems)
        _check_delivery(given, problems)
        held_to = guidance(given, problems)
        max_tokens = given.get("max_completion_tokens", given.get("max_tokens"))
        if max_tokens != given.get("max_tokens", max_tokens):
            problems.add("max_completion_tokens", "differs from max_tokens; give one of them")
        if "top_logprobs" in given and not given.get("logprobs"):
            problems.add("top_logprobs", "needs logprobs: true")
        problems.raise_found()
        logprobs = given.get("logprobs", False)
        sampling = _sampling(given, logprobs, given.get("top_logprobs", 0))
        request = self._request(given, sampling, max_tokens, held_to)
        return _call(given, True, (_with_chat(request, given),), logprobs)

    def completion(self, body: Any) -> Call:
        """The call of POST /v1/completions."""
        problems = Problems()
        given = self.completion_body.check(body, "", problems)
        _check_delivery(given, problems)
        held_to = guidance(given, problems)
        _check_completion(given, problems)
        problems.raise_found()
        logprobs = "logprobs" in given
        sampling = _sampling(given, logprobs, given.get("logprobs", 0))
        request = self._request(given, sampling, given.get("max_tokens"), held_to)
        requests = tuple(_with_prompt(request, prompt) for prompt in given["prompt"])
        echoes = tuple(given["prompt"]) if given.get("echo") else ()
        return _call(given, False, requests, logprobs, echoes)

    def _request(
        self, given: dict[str, Any], sampling: Sampling, max_tokens: int | None, held_to: Guidance | None
    ) -> GenerationRequested:
        return GenerationRequested(
            request_id=0,
            model=given.get("model"),
            n=given.get("n", 1),
            sampling=sampling,
            stopping=_stopping(given, max_tokens),
            priority=given.get("priority", "normal"),
            tenant=given.get("user", ""),
            cache_salt=given.get("cache_salt", ""),
            timeout=given.get("timeout"),
            window=self._window,
            prediction=_prediction(given),
            speculation=given.get("speculation", True),
            guidance=held_to,
        )


def tokenize(body: Any) -> TokenizeRequested:
    """The question of POST /tokenize."""
    problems = Problems()
    given = parameters.TOKENIZE_BODY.check(body, "", problems)
    sources = [name for name in ("text", "content", "messages") if name in given]
    if len(sources) != 1:
        problems.add("text", "give exactly one of text, content and messages")
    problems.raise_found()
    return TokenizeRequested(
        model=given.get("model"),
        text=given.get("text", given.get("content")),
        messages=given.get("messages"),
        add_special_tokens=given.get("add_special_tokens", True),
    )


def detokenize(body: Any) -> DetokenizeRequested:
    """The question of POST /detokenize."""
    given = checked(parameters.DETOKENIZE_BODY, body)
    return DetokenizeRequested(token_ids=pack_ids(given["tokens"]), model=given.get("model"))


def model_name(body: Any) -> str:
    """The model of the admin calls."""
    return str(checked(parameters.MODEL_BODY, body)["model"])


def checked(kind: Object, body: Any) -> dict[str, Any]:
    problems = Problems()
    given: dict[str, Any] = kind.check(body, "", problems)
    problems.raise_found()
    return given


def _check_delivery(given: dict[str, Any], problems: Problems) -> None:
    if "stream_options" in given and not given.get("stream"):
        problems.add("stream_options", "needs stream: true")


def _check_completion(given: dict[str, Any], problems: Problems) -> None:
    if given.get("best_of", given.get("n", 1)) != given.get("n", 1):
        problems.refuse("best_of", "is only supported equal to n")
    if not given.get("echo"):
        return
    if "logprobs" in given:
        problems.refuse("echo", "is not supported together with logprobs")
    if any(type(prompt) is list for prompt in given.get("prompt", ())):
        problems.refuse("echo", "is not supported for prompts of token ids")


def _sampling(given: dict[str, Any], logprobs: bool, top_logprobs: int) -> Sampling:
    chosen = {name: value for name, value in given.items() if name in _SAMPLING_NAMES}
    return Sampling(**chosen, logprobs=logprobs, top_logprobs=top_logprobs)


def _stopping(given: dict[str, Any], max_tokens: int | None) -> Stopping:
    stop = given.get("stop", ())
    return Stopping(
        max_tokens=max_tokens,
        stop=(stop,) if isinstance(stop, str) else stop,
        stop_token_ids=tuple(given.get("stop_token_ids", ())),
        ignore_eos=given.get("ignore_eos", False),
    )


def _prediction(given: dict[str, Any]) -> str | None:
    content = given.get("prediction", {}).get("content")
    return content if content is None or isinstance(content, str) else "".join(content)


def _with_chat(request: GenerationRequested, given: dict[str, Any]) -> GenerationRequested:
    return attrs.evolve(
        request,
        messages=given["messages"],
        tool_use=tool_use(given),
        template_arguments=given.get("chat_template_kwargs", "{}"),
        reasoning_effort=given.get("reasoning_effort"),
        thinking_budget=given.get("thinking_budget"),
    )


def _with_prompt(request: GenerationRequested, prompt: str | list[int]) -> GenerationRequested:
    if isinstance(prompt, str):
        return attrs.evolve(request, prompt=prompt)
    return attrs.evolve(request, prompt_ids=pack_ids(prompt))


def _call(
    given: dict[str, Any],
    is_chat: bool,
    requests: tuple[GenerationRequested, ...],
    logprobs: bool,
    echoes: tuple[str, ...] = (),
) -> Call:
    return Call(
        is_chat=is_chat,
        requests=requests,
        n=requests[0].n,
        stream=given.get("stream", False),
        include_usage=given.get("stream_options", {}).get("include_usage", False),
        logprobs=logprobs,
        echoes=echoes,
    )
