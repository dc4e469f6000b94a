"""`mlx-serving generate`: one prompt, one streamed answer."""

from __future__ import annotations

import sys

import attrs
import rich_click as click

from mlx_serving.actors.errors import InvalidParameter
from mlx_serving.actors.messages.admission import GenerationRequested
from mlx_serving.actors.messages.frontend import Delta, RequestFinished
from mlx_serving.actors.messages.values import ChatMessage, Guidance
from mlx_serving.frontends.cli.console import awaited, print_json
from mlx_serving.frontends.cli.door import any_door
from mlx_serving.frontends.cli.figures import print_stats
from mlx_serving.frontends.cli.guidance import guided
from mlx_serving.frontends.cli.sampling import Drawing, sampled
from mlx_serving.frontends.cli.session import Session
from mlx_serving.frontends.cli.sources import Sources, configured
from mlx_serving.frontends.cli.telling import Telling


@click.command(cls=click.RichCommand)
@click.argument("prompt", nargs=-1)
@sampled
@guided
@click.option("--system", help="System message put before the prompt.")
@click.option("--chat/--raw", default=True, help="Through the chat template (default), or the bare text.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer as one JSON object.")
@click.option("--stats", is_flag=True, help="Print token counts and timings to stderr.")
@configured
def generate(
    prompt: tuple[str, ...],
    drawing: Drawing,
    guidance: Guidance | None,
    system: str | None,
    chat: bool,
    as_json: bool,
    stats: bool,
    sources: Sources,
) -> None:
    """Answer one prompt, from the command line or stdin.

    Asks the running server, or starts the model for this one answer. The answer streams to stdout.
    """
    if system is not None and not chat:
        raise click.UsageError("--system needs the chat template: leave --raw out")
    text = _prompt(prompt)
    request = attrs.evolve(_request(drawing, text, system, chat), guidance=guidance)
    with any_door(sources, drawing.model) as session:
        model, deltas, result = _stream(session, request, echo=not as_json)
    if as_json:
        print_json(_answer(model, deltas, result))
    if stats:
        print_stats(result)


def _prompt(words: tuple[str, ...]) -> str:
    text = " ".join(words) if words and words != ("-",) else sys.stdin.read()
    if not text.strip():
        raise InvalidParameter("the prompt is empty: give it as an argument or on stdin", field="prompt")
    return text


def _request(drawing: Drawing, text: str, system: str | None, chat: bool) -> GenerationRequested:
    if not chat:
        return drawing.request(prompt=text)
    before = () if system is None else (ChatMessage("system", system),)
    return drawing.request(messages=(*before, ChatMessage("user", text)))


def _stream(session: Session, request: GenerationRequested, echo: bool) -> tuple[str, list[Delta], RequestFinished]:
    """Print text as it comes if `echo`; the model that answered, every delta, and the result."""
    kept: list[Delta] = []
    telling = Telling()
    with session.answer(request) as answer:
        model = answer.accepted().model
        for deltas in awaited(answer, "reading"):
            kept += deltas
            if echo:
                telling.tell(deltas)
        if echo:
            print()
        return model, kept, answer.result


def _answer(model: str, deltas: list[Delta], result: RequestFinished) -> dict[str, object]:
    return {
        "model": model,
        "text": "".join(delta.text for delta in deltas),
        "reasoning": "".join(delta.reasoning for delta in deltas),
        "finish_reason": next((delta.end.reason for delta in deltas if delta.end is not None), None),
        "usage": result.usage,
        "timings": result.timings,
    }
