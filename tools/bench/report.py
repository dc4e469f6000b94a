"""Results as files and tables. A table in the documentation is only ever written from a result file."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
from rich.console import Console
from rich.table import Table

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


@attrs.frozen
class Row:
    """One line of the table: what, the figure, the objective, and whether it was met (None: there is
    none)."""

    what: str
    figure: str
    objective: str = ""
    met: bool | None = None

    @property
    def verdict(self) -> str:
        """One word for the last column."""
        return "" if self.met is None else "yes" if self.met else "no"


def save(out: Path, name: str, header: dict[str, Any], result: dict[str, Any], model: str = "") -> Path:
    """Write `result` under its name, with the header taken before it was measured; the path of the file.

    `model` tells results of one benchmark with several models apart.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / (f"{name}@{model.replace(':', '-')}.json" if model else f"{name}.json")
    document = {"benchmark": name, **header, "result": result}
    path.write_text(dumps(document) + "\n")
    return path


def dumps(document: Any) -> str:
    """JSON for people and programs."""
    return json.dumps(document, indent=1)


def read_all(out: Path, name: str) -> list[dict[str, Any]]:
    """What `save` wrote of one benchmark, of all models."""
    paths = [out / f"{name}.json", *sorted(out.glob(f"{name}@*.json"))]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def show(title: str, rows: Sequence[Row]) -> None:
    """Print a table to the terminal."""
    table = Table(title=title, title_justify="left")
    for column in ("measured", "figure", "objective", "met"):
        table.add_column(column)
    for row in rows:
        table.add_row(row.what, row.figure, row.objective, row.verdict)
    console = Console()
    console.print(table, width=None if console.is_terminal else 160)


def markdown(rows: Sequence[Row], documents: Sequence[dict[str, Any]]) -> str:
    """The table of these results, with the machine and versions above it. ValueError if those are not all the same."""
    lines = [*_head(documents), "", "| measured | figure | objective | met |", "|---|---|---|---|"]
    lines += [f"| {row.what} | {row.figure} | {row.objective} | {row.verdict} |" for row in rows]
    return "\n".join(lines)


def _head(documents: Sequence[dict[str, Any]]) -> list[str]:
    where = {_where(document) for document in documents}
    if len(where) > 1:
        raise ValueError("results of different machines, versions or native choices make no table: " + "; ".join(where))
    taken: dict[str, list[str]] = {}
    for document in documents:
        names = taken.setdefault(f"{document['taken_at'][:10]} at commit {document['commit']}", [])
        if document["benchmark"] not in names:
            names.append(document["benchmark"])
    return [*(f"- Taken {when}: {', '.join(names)}" for when, names in taken.items()), where.pop()]


def _where(document: dict[str, Any]) -> str:
    machine, native = document["machine"], document["native"]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items() if version)
    blas = f"{native['blas']} ({native['blas_reason']})"
    lines = [
        f"- {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['os']}",
        f"- Python {document['python']}; {versions}",
        f"- Native code: {native['choice']} ({native['reason']}); BLAS: {blas}",
        f"- CPU kernels: {native['kernels']} ({native['kernels_reason']})",
    ]
    return "\n".join(lines)


def write_between_markers(path: Path, block: str) -> None:
    """Replace what stands between the markers of the page. ValueError when it has none."""
    text = path.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{path} has no {BEGIN} and {END}")
    before, rest = text.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    path.write_text(f"{before}{BEGIN}\n{block}\n{END}{after}")


def stamp() -> str:
    """A name for a folder of results."""
    return time.strftime("%Y%m%d-%H%M%S")
