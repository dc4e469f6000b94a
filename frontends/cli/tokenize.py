"""`mlx-serving tokenize`: how a model's tokenizer cuts a text."""

from __future__ import annotations

import sys
from pathlib import Path

import rich_click as click
from rich.text import Text

from mlx_serving.actors.addresses import door_of
from mlx_serving.actors.messages.admission import TokenizeRequested
from mlx_serving.actors.messages.frontend import Tokenized
from mlx_serving.actors.messages.values import unpack_ids
from mlx_serving.frontends.cli.console import note, out, print_json
from mlx_serving.frontends.cli.door import running
from mlx_serving.frontends.cli.sources import Sources, configured, model_name

_SHADES = ("on grey23", "on grey35")


@click.command(cls=click.RichCommand)
@click.argument("text", nargs=-1)
@click.option("--model", "-m", type=model_name, help="Model whose tokenizer cuts; the default model if not given.")
@click.option("--ids", is_flag=True, help="Print the ids alone, separated by spaces.")
@click.option("--special/--no-special", default=True, help="Add the model's special tokens (default).")
@click.option("--json", "as_json", is_flag=True, help="Print ids and strings as one JSON object.")
@configured
def tokenize(
    text: tuple[str, ...], model: str | None, ids: bool, special: bool, as_json: bool, sources: Sources
) -> None:
    """Show the tokens of a text, from the command line or stdin.

    Asks the running server; without one the tokenizer of the stored model is used directly.
    """
    whole = " ".join(text) if text and text != ("-",) else sys.stdin.read()
    if door_of(sources.home) is None:
        name, token_ids, strings = _from_store(whole, model, special, sources)
    else:
        name, token_ids, strings = _from_server(whole, model, special, sources)
    if as_json:
        print_json({"model": name, "count": len(token_ids), "tokens": token_ids, "token_strings": strings})
    elif ids:
        print(*token_ids)
    else:
        _print(name, token_ids, strings)


def _from_server(text: str, model: str | None, special: bool, sources: Sources) -> tuple[str, list[int], list[str]]:
    with running(sources) as session:
        answer: Tokenized = session.ask(TokenizeRequested(model, text, add_special_tokens=special))
    return answer.model, unpack_ids(answer.token_ids), list(answer.token_strings)


def _from_store(text: str, model: str | None, special: bool, sources: Sources) -> tuple[str, list[int], list[str]]:
    from mlx_serving.actors.models.store import ModelStore
    from mlx_serving.actors.models.tokenizer import TextTokenizer

    models = sources.load_for(model).settings.models
    trusted = [Path(folder) for folder in models.trusted_folders]
    record = ModelStore(sources.home).resolve(models.default, trusted)
    tokenizer = TextTokenizer.load(record.path)
    ids = tokenizer.encode(text, add_special_tokens=special)
    return record.name, ids, tokenizer.token_strings(ids)


def _print(model: str, ids: list[int], strings: list[str]) -> None:
    shown = Text()
    for index, (id_, string) in enumerate(zip(ids, strings, strict=True)):
        shown.append(string, _SHADES[index % 2]).append(f" {id_} ", "dim")
    out.print(shown)
    note(f"{len(ids)} tokens, {model}")
