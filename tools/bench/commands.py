"""The command line of the benchmarks."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import click

from tools.bench import load as loading
from tools.bench import report
from tools.bench.blas import blas as measure_blas
from tools.bench.compare import Plan
from tools.bench.compare import compare as measure_compare
from tools.bench.equality import equality as measure_equality
from tools.bench.memory import log_file
from tools.bench.memory import memory as measure_memory
from tools.bench.peers import Recipe, Server, llama_server, mlx_lm_server, ours
from tools.bench.pipeline import measure as measure_pipeline
from tools.bench.pipeline import request
from tools.bench.precision import copy_in_float32, peer_folder
from tools.bench.rows import ROWS
from tools.bench.sizes import FULL, QUICK, Size
from tools.bench.slow_reader import slow_reader as measure_slow_reader
from tools.bench.spec import Load
from tools.bench.startup import startup as measure_startup
from tools.bench.store import model_folder
from tools.bench.worker import serve_worker

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"


@attrs.frozen
class Run:
    """What every benchmark gets."""

    model: str
    out: Path
    size: Size
    peers: tuple[Recipe, ...] = ()

    def folder(self) -> Path:
        """The model's folder; fetches the model when it is not there."""
        return model_folder(self.model)


def _compare(run: Run) -> dict[str, Any]:
    size = run.size
    plan = Plan(size.compare_tokens, size.compare_repetitions, blas_peers=size.compare_blas_peers)
    return measure_compare(run.model, run.folder(), plan, run.out, run.peers)


def _equality(run: Run) -> dict[str, Any]:
    return measure_equality(run.model, run.folder(), run.size.equality_prompts, run.out)


def _pipeline(run: Run) -> dict[str, Any]:
    return measure_pipeline(run.model, run.out, 64, run.size.pipeline_tokens, run.size.pipeline_repetitions)


def _memory(run: Run) -> dict[str, Any]:
    run.folder()
    with Server(ours(run.model), log_file(run.out)) as server:
        return measure_memory(server, run.size.memory_requests, run.size.memory_baseline)


def _slow_reader(run: Run) -> dict[str, Any]:
    return measure_slow_reader(run.model, run.out, run.size.stop_seconds)


def _startup(run: Run) -> dict[str, Any]:
    with peer_folder(run.folder()) as folder:
        recipes = [ours(run.model), mlx_lm_server(folder)]
        return measure_startup(recipes, run.size.help_runs, run.size.server_runs, run.out)


def _blas(run: Run) -> dict[str, Any]:
    return measure_blas(run.folder(), run.size.prefill_tokens, run.size.prefill_repetitions)


BENCHMARKS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "startup": _startup,
    "pipeline": _pipeline,
    "slow_reader": _slow_reader,
    "blas": _blas,
    "equality": _equality,
    "compare": _compare,
    "memory": _memory,
}


def _common(command: Callable[..., None]) -> Callable[..., None]:
    options = (
        click.option("--model", default="smollm2-135m", show_default=True, help="A stored model, alias or folder."),
        click.option("--out", type=click.Path(path_type=Path), help="Folder of the results [build/benchmarks/TIME]."),
        click.option("--quick/--full", "quick", default=True, help="Show that it works, or measure [quick]."),
        click.option("--llama-server", type=click.Path(exists=True, path_type=Path), help="Binary of one more peer."),
        click.option("--gguf", type=click.Path(exists=True, path_type=Path), help="The model's file for that peer."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _run_from(model: str, out: Path | None, quick: bool, llama: Path | None, gguf: Path | None) -> Run:
    if (llama is None) != (gguf is None):
        raise click.UsageError("--llama-server and --gguf belong together")
    peers = (llama_server(llama, gguf),) if llama is not None and gguf is not None else ()
    return Run(model, out or Path("build/benchmarks") / report.stamp(), QUICK if quick else FULL, peers)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Benchmarks of this server and its peers."""
    # Ending by signal must still end the servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def _add(name: str) -> None:
    @main.command(name.replace("_", "-"), help=f"Run the {name.replace('_', ' ')} benchmark.")
    @_common
    def command(model: str, out: Path | None, quick: bool, llama_server: Path | None, gguf: Path | None) -> None:
        _carry_out(name, _run_from(model, out, quick, llama_server, gguf))


for _name in BENCHMARKS:
    _add(_name)


def _carry_out(name: str, run: Run) -> None:
    result = BENCHMARKS[name](run)
    path = report.save(run.out, name, result)
    report.show(name, ROWS[name](result))
    click.echo(path)


@main.command("all")
@_common
@click.option("--write/--no-write", default=False, help="Put the table into docs/benchmarks.md.")
def everything(
    model: str, out: Path | None, quick: bool, llama_server: Path | None, gguf: Path | None, write: bool
) -> None:
    """Run every benchmark; one that fails is reported at the end and does not stop the others."""
    run = _run_from(model, out, quick, llama_server, gguf)
    failed = []
    for name in BENCHMARKS:
        try:
            _carry_out(name, run)
        except Exception as error:
            failed.append(f"{name}: {error}")
            click.secho(failed[-1], fg="red", err=True)
    _table(run.out, write)
    if failed:
        raise click.ClickException("; ".join(failed))


@main.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--write/--no-write", default=False, help="Put the table into docs/benchmarks.md.")
def table(results: Path, write: bool) -> None:
    """Print the table of a folder of results as Markdown."""
    _table(results, write)


def _table(results: Path, write: bool) -> None:
    documents = {name: document for name in ROWS if (document := report.read(results, name)) is not None}
    if not documents:
        raise click.ClickException(f"{results} has no results")
    rows = [row for name, document in documents.items() for row in ROWS[name](document["result"])]
    block = report.markdown(rows, next(iter(documents.values())))
    click.echo(block)
    if write:
        report.write_between_markers(DOCUMENT, block)


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
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
def worker(folder: Path) -> None:
    """Answer questions about a model with mlx_lm; the other commands start this."""
    serve_worker(folder)
