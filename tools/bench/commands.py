"""The command line of the benchmarks."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import click

from tools.bench import load as loading
from tools.bench import report
from tools.bench.header import header
from tools.bench.inside.child import MEASURES, serve_variant
from tools.bench.inside.child import serve as serve_inside
from tools.bench.kernels import VARIANTS, LlamaBench
from tools.bench.peers import llama_server
from tools.bench.pipeline import request
from tools.bench.precision import copy_in_float32
from tools.bench.rows import ROWS
from tools.bench.sizes import FULL, QUICK
from tools.bench.spec import Load
from tools.bench.suite import BENCHMARKS, Run
from tools.bench.worker import serve_worker

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"


_FILE = click.Path(exists=True, path_type=Path)


def _common(command: Callable[..., None]) -> Callable[..., None]:
    options = (
        click.option("--model", default="smollm2-135m", show_default=True, help="A stored model, alias or folder."),
        click.option("--out", type=click.Path(path_type=Path), help="Folder of the results [build/benchmarks/TIME]."),
        click.option("--quick/--full", "quick", default=True, help="Show that it works, or measure [quick]."),
        click.option("--llama-server", "llama", type=_FILE, help="Binary of one more peer."),
        click.option("--llama-bench", type=_FILE, help="Binary of one more peer of the kernels benchmark."),
        click.option("--gguf", type=_FILE, help="The model's file for these peers."),
        click.option("--draft", default="", help="Draft model of the speculation benchmark."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _run_from(
    model: str,
    out: Path | None,
    quick: bool,
    llama: Path | None,
    llama_bench: Path | None,
    gguf: Path | None,
    draft: str,
) -> Run:
    if (llama is None and llama_bench is None) != (gguf is None):
        raise click.UsageError("--gguf belongs to --llama-server and --llama-bench")
    peers = (llama_server(llama, gguf),) if llama is not None and gguf is not None else ()
    bench = LlamaBench(llama_bench, gguf) if llama_bench is not None and gguf is not None else None
    out = out or Path("build/benchmarks") / report.stamp()
    return Run(model, out, QUICK if quick else FULL, peers, draft, bench)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Benchmarks of this server and its peers."""
    # Ending by signal must still end the servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def _add(name: str) -> None:
    @main.command(name.replace("_", "-"), help=f"Run the {name.replace('_', ' ')} benchmark.")
    @_common
    def command(**options: Any) -> None:
        _carry_out(name, _run_from(**options))


for _name in BENCHMARKS:
    _add(_name)


def _carry_out(name: str, run: Run) -> None:
    before = header()
    result = BENCHMARKS[name](run)
    path = report.save(run.out, name, before, result, result["model"] if name in (*MEASURES, "kernels") else "")
    report.show(name, ROWS[name](result))
    click.echo(path)


@main.command("all")
@_common
@click.option("--write/--no-write", default=False, help="Put the table into docs/benchmarks.md.")
def everything(write: bool, **options: Any) -> None:
    """Run every benchmark; one that fails is reported at the end and does not stop the others."""
    run = _run_from(**options)
    failed = []
    for name in BENCHMARKS:
        try:
            _carry_out(name, run)
        except Exception as error:
            failed.append(f"{name}: {error}")
            click.secho(failed[-1], fg="red", err=True)
    _table([run.out], write)
    if failed:
        raise click.ClickException("; ".join(failed))


@main.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path), nargs=-1, required=True)
@click.option("--write/--no-write", default=False, help="Put the tables into docs/benchmarks.md.")
def table(results: tuple[Path, ...], write: bool) -> None:
    """Print a table for each folder of results as Markdown."""
    _table(results, write)


def _table(folders: Sequence[Path], write: bool) -> None:
    block = "\n\n".join(_table_of(folder) for folder in folders)
    click.echo(block)
    if write:
        report.write_between_markers(DOCUMENT, block)


def _table_of(folder: Path) -> str:
    documents = [(name, document) for name in ROWS for document in report.read_all(folder, name)]
    if not documents:
        raise click.ClickException(f"{folder} has no results")
    rows = [row for name, document in documents for row in ROWS[name](document["result"])]
    return report.markdown(rows, [document for _, document in documents])


@main.command("load")
@click.option("--url", required=True, help="Where the server listens, such as http://127.0.0.1:8080.")
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--clients", default=1, show_default=True, help="Connections of the closed loop.")
@click.option("--requests", default=8, show_default=True, help="Requests in all.")
@click.option("--rate", type=float, help="Requests a second: an open loop instead of a closed one.")
@click.option("--max-tokens", default=64, show_default=True)
@click.option("--prompt", default="Tell a long story.", show_default=True)
@click.option("--ignore-eos/--no-ignore-eos", default=False)
@click.option("--seed", default=0, show_default=True, help="Of the open loop's arrivals.")
@click.option("--api-key", default="", envvar="MLX_SERVING__HTTP__API_KEY")
def load_command(
    url: str,
    model: str,
    clients: int,
    requests: int,
    rate: float | None,
    max_tokens: int,
    prompt: str,
    ignore_eos: bool,
    seed: int,
    api_key: str,
) -> None:
    """Put a load on a running server and print what its clients saw, as JSON."""
    address = urlsplit(url)
    one = request(max_tokens, prompt)
    body = {**one.body, "model": model}
    if not ignore_eos:
        body.pop("ignore_eos")
    many = (attrs.evolve(one, body=body),) * requests
    load = Load(
        address.hostname or "127.0.0.1",
        address.port or 80,
        many,
        clients=clients,
        rate=rate,
        seed=seed,
        api_key=api_key,
    )
    click.echo(report.dumps(loading.summarise(loading.run(load)).json()))


@main.command(hidden=True)
def generator() -> None:
    """Carry out the load on standard input; the other commands start this."""
    loading.serve_generator()


@main.command(hidden=True)
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.argument("copy", type=click.Path(path_type=Path))
def float32(folder: Path, copy: Path) -> None:
    """Copy a model folder in float32 where this server computes in it; the other commands start this."""
    copy_in_float32(folder, copy)


@main.command(hidden=True)
@click.argument("model")
@click.argument("folder", type=click.Path(path_type=Path))
def folder(model: str, folder: Path) -> None:
    """Write a model of random weights; the other commands start this."""
    from tools.bench.inside.models import save_random_model

    save_random_model(model, folder)


@main.command(hidden=True)
@click.argument("name", type=click.Choice(MEASURES))
@click.argument("model")
@click.option("--quick/--full", "quick", default=True)
@click.option("--draft", default="")
def inside(name: str, model: str, quick: bool, draft: str) -> None:
    """Measure the engine in this process; the other commands start this."""
    serve_inside(name, model, quick, draft)


@main.command(hidden=True)
@click.argument("name", type=click.Choice(VARIANTS))
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.option("--repetitions", default=3)
def variant(name: str, folder: Path, repetitions: int) -> None:
    """Measure one variant of the CPU back end in this process; the other commands start this."""
    serve_variant(name, folder, repetitions)


@main.command(hidden=True)
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
def worker(folder: Path) -> None:
    """Answer questions about a model with mlx_lm; the other commands start this."""
    serve_worker(folder)
