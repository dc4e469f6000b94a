"""The options that say how an answer is drawn and when it ends, shared by `generate` and `chat`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import attrs
import rich_click as click

from mlx_serving.actors.messages.admission import GenerationRequested
from mlx_serving.actors.messages.values import Sampling, Stopping
from mlx_serving.frontends.cli.sources import model_name


@attrs.frozen
class Drawing:
    """Model, sampling and stopping of the command's requests."""

    model: str | None
    sampling: Sampling
    stopping: Stopping
    reasoning_effort: str | None = None
    thinking_budget: int | None = None

    def request(self, **content: Any) -> GenerationRequested:
        """A request for `content`: `messages` or `prompt`."""
        return GenerationRequested(
            request_id=0,
            model=self.model,
            sampling=self.sampling,
            stopping=self.stopping,
            reasoning_effort=self.reasoning_effort,
            thinking_budget=self.thinking_budget,
            **content,
        )


_LARGEST = (1 << 63) - 1
"""Of the integers that cross the bus."""

OPTIONS = (
    click.option("--model", "-m", type=model_name, help="Model to ask; the default model if not given."),
    click.option("--max-tokens", "-n", type=click.IntRange(1, _LARGEST), help="Longest answer, in tokens."),
    click.option("--temperature", "-t", type=click.FloatRange(0, 2), help="0 is greedy; 1 if not given."),
    click.option(
        "--top-p", type=click.FloatRange(0, 1, min_open=True), help="Keep the likeliest tokens up to this probability."
    ),
    click.option("--top-k", type=click.IntRange(0, _LARGEST), help="Keep this many of the likeliest tokens."),
    click.option(
        "--min-p", type=click.FloatRange(0, 1), help="Drop tokens less likely than this share of the likeliest."
    ),
    click.option("--seed", type=click.IntRange(-_LARGEST, _LARGEST), help="Makes a sampled answer repeatable."),
    click.option(
        "--reasoning-effort", help="none, minimal, low, medium, high or xhigh: for models whose chat template knows it."
    ),
    click.option("--thinking-budget", type=click.IntRange(0), help="Tokens of reasoning after which it is ended."),
    click.option("--stop", multiple=True, help="End before this text; may be repeated."),
)


def sampled(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; the command receives them as `drawing`. What is not given keeps its default."""

    @functools.wraps(command)
    def wrapped(
        model: str | None,
        max_tokens: int | None,
        stop: tuple[str, ...],
        reasoning_effort: str | None,
        thinking_budget: int | None,
        **others: Any,
    ) -> Any:
        names = ("temperature", "top_p", "top_k", "min_p", "seed")
        given = {name: others.pop(name) for name in names}
        sampling = Sampling(**{name: value for name, value in given.items() if value is not None})
        stopping = Stopping(max_tokens=max_tokens, stop=stop)
        drawing = Drawing(model, sampling, stopping, reasoning_effort, thinking_budget)
        return command(drawing=drawing, **others)

    return functools.reduce(lambda function, option: option(function), reversed(OPTIONS), wrapped)
